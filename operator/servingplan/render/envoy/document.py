"""Envoy's configuration as text, and the few shapes that every part of it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from servingplan.api.document import PlainDumper

METADATA = "servingplan"
"""Namespace of the metadata that routes, hosts and requests carry for logs and metrics."""

REQUEST_METADATA = "servingplan.request"
"""Namespace of what was read from a request's body."""


def dump(document: Mapping[str, Any]) -> str:
    """The document as YAML, keys in the order given."""
    return yaml.dump(document, Dumper=PlainDumper, sort_keys=False, width=4096)


def typed(type_name: str, **fields: Any) -> dict[str, Any]:
    """A protobuf Any: the message's full type name and its fields."""
    return {"@type": f"type.googleapis.com/{type_name}", **fields}


def extension(name: str, type_name: str, **fields: Any) -> dict[str, Any]:
    """A configured Envoy extension."""
    return {"name": name, "typed_config": typed(type_name, **fields)}
