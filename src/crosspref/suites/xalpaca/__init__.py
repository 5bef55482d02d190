"""X-AlpacaEval: win rates against a baseline, per language."""
