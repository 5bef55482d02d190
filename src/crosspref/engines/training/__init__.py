"""Training on pairs, in one process or several, on TRL's trainers."""
