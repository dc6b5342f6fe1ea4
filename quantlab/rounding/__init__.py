"""Rounding: which integers stand for a weight, one file a choice."""
