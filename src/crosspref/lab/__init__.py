"""The laboratory: the product's own code on a small world whose true reward is known (docs/lab.md)."""
