"""YAML that people read."""

from __future__ import annotations

from typing import Any

import yaml


class PlainDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc] # known at run time: libyaml is ten times as fast, where there is one
    """Writes what occurs twice twice, instead of pointing at its first use."""

    def ignore_aliases(self, data: Any) -> bool:
        """No value is worth an anchor."""
        del data
        return True
