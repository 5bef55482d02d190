"""The campaign: thousands of bad inputs, kills, full disks and hostile servers, drawn from a seed.

Nothing may end in a traceback or hang, no finished row may be lost, and no file of anybody else may be touched.

    make campaign SEED=7 SCALE=0.05        # a twentieth of it
    make campaign SEED=7 ONLY=data:417     # one case again, as it was

`cases.py` says what a case is and what it must not do, `world.py` makes what all cases need, and each kind of case has
a file of its own.
"""

KINDS = ("recipes", "data", "readers", "models", "servers", "kills", "disks", "odd")
"""The kinds of cases, each in the module of that name or in ``strikes``."""
