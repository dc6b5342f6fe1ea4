"""Time and memory, measured in fresh processes."""
