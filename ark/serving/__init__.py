"""`ark serve`: a published model behind a small page and JSON, on this machine.

command    the command line
app        the HTTP interface
guarding   who may call
turns      one image at a time
reading    an upload's bytes -> an upright picture
answers    predictions as JSON
page/      the page: no framework, nothing from elsewhere
"""
