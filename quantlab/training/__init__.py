"""How a checkpoint is fine-tuned."""
