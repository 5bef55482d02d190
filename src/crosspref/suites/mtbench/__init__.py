"""Multilingual MT-Bench: answers of two turns, graded from 1 to 10. Found by its name in ``suites.SUITES``."""
