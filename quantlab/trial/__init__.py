"""One trial: quantize a model, evaluate it, profile it. Start at trial.py."""
