"""A checkpoint as a network: its weights, sites, taps and attention."""
