"""Multilingual MT-Bench: two turns, graded from 1 to 10."""
