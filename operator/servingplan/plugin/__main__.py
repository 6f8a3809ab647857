"""``python -m servingplan.plugin``."""

import sys

from servingplan.plugin.cli import main

sys.exit(main())
