"""``python -m crosspref``: the command ``crosspref``."""

import sys

from crosspref.cli import main

sys.exit(main())
