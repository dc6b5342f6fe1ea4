"""Export to ONNX, and the runtimes that run exported models: ONNX Runtime and OpenVINO."""
