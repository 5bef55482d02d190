"""Multilingual NLP tasks through lm-evaluation-harness."""
