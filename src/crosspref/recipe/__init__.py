"""Every setting of a run, and reading and writing recipes; no torch."""
