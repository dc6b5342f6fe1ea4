"""The processor, its threads and its memory."""
