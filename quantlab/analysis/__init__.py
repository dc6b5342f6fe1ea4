"""Explains why a quantization fails: outliers, the errors they cause, the weights behind them, what helps."""
