"""Calibration: the probe that observes every site's values, and the estimators that make ranges of them."""
