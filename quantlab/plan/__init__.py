"""Quantization plans: the grid and range of every site and weight, their size, coverage and fit."""
