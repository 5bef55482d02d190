"""Models through transformers: sampling, scoring, translating, rating."""
