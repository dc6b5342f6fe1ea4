"""The report: one HTML page about finished trials."""
