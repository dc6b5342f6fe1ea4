"""What the commands share: composing, the console, progress, signals, errors."""
