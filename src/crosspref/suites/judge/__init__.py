"""The judge: its questions, its answers, and what they cost."""
