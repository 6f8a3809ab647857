"""Strategic merge of a user's pod template over a generated one.

Objects merge key by key and a null takes a key away. A list replaces the generated one, unless Kubernetes gives its
entries a key: then entries of the same key merge in place and new ones follow. ``$patch: delete`` takes an entry away,
``$patch: replace`` puts an entry or an object in place of the generated one. Of a volume and of an environment variable
only what the overlay's entry names is kept, because two sources in one entry are invalid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""Lists of a pod template whose entries have a key, by the lists' names (patchMergeKey in the Kubernetes API)."""

_ONE_SOURCE = {"env", "volumes"}
_PATCH = "$patch"


class OverlayError(ValueError):
    """An overlay that cannot be merged; the message says where and why."""


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the overlay merged over it; neither is changed.

    Raises:
        OverlayError: A keyed list is no list, or an entry of it lacks its key or is no object.
    """
    return _merge_object(base, overlay, "template")


def _merge_object(base: Mapping[str, Any], overlay: Mapping[str, Any], path: str) -> dict[str, Any]:
    changes = {key: value for key, value in overlay.items() if key != _PATCH}
    result = {} if overlay.get(_PATCH) == "replace" else dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge_value(key, result.get(key), value, f"{path}.{key}")
    return result


def _merge_value(key: str, base: Any, value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return _merge_object(base if isinstance(base, Mapping) else {}, value, path)
    if key not in MERGE_KEYS:
        return value
    if isinstance(value, str) or not isinstance(value, Sequence):
        message = f"{path}: give a list"
        raise OverlayError(message)
    return _merge_list(key, base or [], value, path)


def _merge_list(name: str, base: Sequence[Mapping[str, Any]], overlay: Sequence[Any], path: str) -> list[dict[str, Any]]:
    key = MERGE_KEYS[name]
    merged = {entry[key]: dict(entry) for entry in base}
    for entry in overlay:
        if not isinstance(entry, Mapping) or key not in entry:
            message = f"{path}: every entry needs {key}"
            raise OverlayError(message)
        if entry.get(_PATCH) == "delete":
            merged.pop(entry[key], None)
            continue
        before = merged.get(entry[key], {})
        if name in _ONE_SOURCE:
            before = {field: value for field, value in before.items() if field in entry}
        merged[entry[key]] = _merge_object(before, entry, f"{path}[{entry[key]}]")
    return list(merged.values())
