"""NLP tasks in several languages through lm-evaluation-harness. Found by its name in ``suites.SUITES``."""
