"""X-AlpacaEval: win rates against a baseline, per language. Found by its name in ``suites.SUITES``."""
