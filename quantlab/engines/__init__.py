"""What computes a quantized network's answers: simulated in FP32, or integer."""
