"""Which process of a training on several devices this is. torchrun, accelerate and Ray Train say so in the environment.

Every rank runs the same code on the same input; rank 0 alone writes files and shows progress.
"""

import os


def processes() -> int:
    """Return how many processes train together; 1 where nothing launched them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Tell whether this process is the one that writes."""
    return rank() == 0


def is_launched() -> bool:
    """Tell whether something launched this process to train, alone or with others."""
    return "WORLD_SIZE" in os.environ
