"""A run directory: its paths, its units of work, and the processes that do them."""
