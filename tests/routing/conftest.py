"""Makes ``routing_fleets`` importable: test folders are no packages."""

import importlib.util
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("routing_fleets", Path(__file__).with_name("_fleets.py"))
module = importlib.util.module_from_spec(spec)
sys.modules["routing_fleets"] = module
spec.loader.exec_module(module)
