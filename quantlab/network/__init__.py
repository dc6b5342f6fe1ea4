"""Networks: checkpoints, their sites and taps, the site tables of model families, and attention."""
