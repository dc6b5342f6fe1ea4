"""Files that are whole or not there, and what a process remembers."""
