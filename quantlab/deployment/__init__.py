"""A plan outside torch: an ONNX file, and the runtimes that run it."""
