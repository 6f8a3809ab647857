"""Makes ``worlds`` and ``cluster`` importable: test folders are no packages."""

import importlib.util
import sys
from pathlib import Path

for name in ("worlds", "cluster"):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"_{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
