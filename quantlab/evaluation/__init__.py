"""A model's answers, their scores, and the significance of differences between models."""
