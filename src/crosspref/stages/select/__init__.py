"""Selecting: from scores (or language imbalance) to preference pairs."""
