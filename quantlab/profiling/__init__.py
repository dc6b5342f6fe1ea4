"""Latency and memory of a model, measured in fresh processes."""
