"""Answers, and what their differences mean."""
