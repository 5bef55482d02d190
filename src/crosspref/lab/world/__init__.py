"""A small world whose true reward is known."""
