"""Rows without padding: a prompt is computed once and shared by all of its responses."""
