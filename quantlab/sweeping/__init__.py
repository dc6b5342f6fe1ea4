"""Sweeps: many trials of one question, and what they show."""
