"""A published model for other runtimes: ONNX, torch.export and AOTInductor.

graph      the network as one function of a batch of bytes, with named outputs
files      writes a file, runs it, and compares it with the network
runtime    an ONNX file in place of a network, for `ark predict`
"""
