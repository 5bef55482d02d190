"""Recipes: every setting of a run, and reading and writing them. No torch. Imports errors and languages only."""
