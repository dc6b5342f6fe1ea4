"""Kernels: quantize-dequantize, integer products and attention, in C and in libraries."""
