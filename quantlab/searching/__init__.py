"""Searches for the cheapest precisions of activations that keep the accuracy."""
