"""Shards and training on a Ray cluster."""
