"""C and library kernels."""
