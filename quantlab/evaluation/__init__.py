"""Predictions, and what their differences mean."""
