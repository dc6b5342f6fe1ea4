"""In which basis sites are quantized: one file a choice of ``transform``."""
