"""Why quantization fails: outliers, the errors they cause, the weights behind them, and what removing them
gains."""
