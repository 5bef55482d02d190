"""Shards and training on Ray's workers; ``executor`` is imported by its name in ``engines.ENGINES``."""
