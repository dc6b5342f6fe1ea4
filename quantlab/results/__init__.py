"""What sweeps and reports read of finished trials."""
