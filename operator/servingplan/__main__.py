"""``python -m servingplan``."""

import sys

from servingplan.cli import main

sys.exit(main())
