"""Makes ``worlds`` importable: test folders are no packages."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("worlds", Path(__file__).with_name("_worlds.py"))
worlds = importlib.util.module_from_spec(_spec)
sys.modules["worlds"] = worlds
_spec.loader.exec_module(worlds)
