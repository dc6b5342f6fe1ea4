"""One page about trials that belong together."""
