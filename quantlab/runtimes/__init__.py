"""ONNX Runtime and OpenVINO: exported files and what they answer."""
