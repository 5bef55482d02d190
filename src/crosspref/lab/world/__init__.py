"""A small world whose true reward is known, and studies in it; ``world`` defines it, ``studies`` runs seeds.

Only the commands ``lab`` and the project's own scripts import it.
"""
