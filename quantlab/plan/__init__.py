"""Which grid and range every site and weight gets, and what follows from that alone."""
