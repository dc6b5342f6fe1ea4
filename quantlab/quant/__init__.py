"""Tensor math without models: grids, granularity, ranges, sketches and SQNR."""
