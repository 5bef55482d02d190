"""Training on pairs by TRL's trainers, in one process or several, found by ``trainer`` in ``ENGINES``."""
