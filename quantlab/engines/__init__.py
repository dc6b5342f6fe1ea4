"""Engines: insert a plan into a model and run it, simulated in FP32 or in integers."""
