"""Splits: what of a tensor is kept wide beside its narrow grid; one file a choice."""
