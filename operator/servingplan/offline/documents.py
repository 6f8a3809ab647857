"""Kubernetes objects from YAML or JSON files, as people write them and as ``kubectl get -o yaml`` prints them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from servingplan.offline.errors import InputError

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Found:
    """One object.

    Attributes:
        source: Where it stands, to begin a sentence with.
        body: The object as plain data.
    """

    source: str
    body: dict[str, Any]

    @property
    def kind(self) -> str:
        """The kind that it says it is; empty where it says none."""
        return str(self.body.get("kind", ""))

    @property
    def metadata(self) -> dict[str, Any]:
        """Its metadata; empty where it has none that can be read."""
        metadata = self.body.get("metadata")
        return metadata if isinstance(metadata, dict) else {}


def read_objects(paths: Iterable[str]) -> list[Found]:
    """All objects of the files in their order, lists taken apart.

    Args:
        paths: Files; ``-`` is the standard input.

    Raises:
        InputError: A file cannot be read, or holds anything but objects.
    """
    return [found for path in paths for found in _read(path)]


def parse_yaml(text: str) -> Any:
    """One YAML document.

    Raises:
        InputError: It is none, with the line at which that shows.
    """
    return _documents(text, "")[0] if text.strip() else None


def _read(path: str) -> list[Found]:
    name = "standard input" if path == STDIN else path
    documents = [body for body in _documents(_text(path, name), f"{name}: ") if body is not None]
    if not documents:
        raise InputError(f"{name}: is empty")
    found = []
    for number, body in enumerate(documents, 1):
        source = name if len(documents) == 1 else f"{name}, document {number}"
        if not isinstance(body, dict):
            raise InputError(f"{source}: must be an object with apiVersion and kind, not {_kind_of(body)}")
        found += _taken_apart(Found(source, body))
    return found


def _text(path: str, name: str) -> str:
    try:
        return sys.stdin.read() if path == STDIN else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: cannot be read: it is not text in UTF-8") from error


def _taken_apart(found: Found) -> list[Found]:
    if not found.kind.endswith("List") or not isinstance(found.body.get("items"), list):
        return [found]
    items = found.body["items"]
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise InputError(f"{found.source}, items[{index}]: must be an object, not {_kind_of(item)}")
    return [Found(f"{found.source}, items[{index}]", item) for index, item in enumerate(items)]


# libyaml where PyYAML was built with it: the nodes of a large cluster are some hundred thousand lines.
_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_FastLoader):  # type: ignore[misc]  # which of the two it is, only the machine knows
    """Refuses a key given twice, of which YAML's own rule would drop the first without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """The mapping, if no key stands twice."""
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str):
                if key.value in seen:
                    problem = f"the key {key.value} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _documents(text: str, begin: str) -> list[Any]:
    try:
        # The loader is a safe one.
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "it holds characters that are not allowed"
        raise InputError(f"{begin}is not YAML: {where}{problem}") from error
    except RecursionError as error:
        raise InputError(f"{begin}is nested too deeply to be read") from error
    except ValueError as error:
        raise InputError(f"{begin}is not YAML that can be read: {error}") from error


def _kind_of(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
