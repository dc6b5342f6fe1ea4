"""One trial: quantize, evaluate, profile."""
