"""Packed rows: nothing is padded, and a prompt is computed once for all of its responses.

``rows`` lays prompts and responses out in one row and attends within it; ``head`` turns hidden states into
log-probabilities, for scoring and for training; ``decoding`` samples. Only engines import this package.
"""
