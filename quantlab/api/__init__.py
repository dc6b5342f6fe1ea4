"""Quantlab's calls from Python, behind the names of the package itself."""
