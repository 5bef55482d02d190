"""From scores, or from language imbalance, to preference pairs (Eq. 10, 15; A.5).

``phase`` is the phase, ``select`` makes the pairs of one language, ``screen`` tells which responses are usable.
"""
