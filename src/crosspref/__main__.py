"""``python -m crosspref``: the command ``crosspref``."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the working directory, in which a person's own yaml.py or random.py may lie

from crosspref.cli import main

sys.exit(main())
