"""One table an architecture."""
