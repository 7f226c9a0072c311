"""A model for other runtimes: one file that needs neither Ark nor its classes to run.

`ark onnx MODEL FILE.onnx` and `ark pt2 MODEL FILE.pt2` write it; `ark predict FILE.onnx` reads the
former. Each is compared with torch before it gets its name. docs/deployment.md says what works.
"""
