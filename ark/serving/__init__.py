"""`ark serve`: a published model behind a small page and JSON, on this machine.

command   the command line
app       the HTTP interface
answers   predictions as JSON
page/     the page: no framework, nothing from elsewhere
"""
