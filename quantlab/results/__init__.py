"""Finished trials as sweeps and reports read them: results, answers, tables and figures."""
