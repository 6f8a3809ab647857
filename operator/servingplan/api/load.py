"""A plan from plain data, or one sentence that says what to change.

The sentence names the field as the user wrote it, as the API server does: ``spec.models[0].setups[1].count: must be ...``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from servingplan.api import crd
from servingplan.api.v1alpha1 import API_VERSION, KIND, ModelServingPlan


@dataclass(frozen=True, slots=True)
class Rejected:
    """A plan that cannot be read.

    Attributes:
        message: One sentence that names the field and what to change.
    """

    message: str


def parse(obj: object) -> ModelServingPlan | Rejected:
    """Reads a ModelServingPlan as the API server or a YAML file gives it.

    Args:
        obj: The whole object. Its status is not looked at: an older operator may have written it otherwise.
    """
    if not isinstance(obj, dict):
        return Rejected(f"must be an object of kind {KIND}, not {_kind_of(obj)}")
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if obj.get(key, wanted) != wanted:
            return Rejected(f"{key}: must be {wanted}, not {obj[key]}")
    try:
        return ModelServingPlan.model_validate(obj | {"status": None}, by_alias=True, by_name=False)
    except ValidationError as error:
        return Rejected(sentence(error, _plan_schema()))


@cache
def _plan_schema() -> dict[str, Any]:
    return crd.schema()


def sentence(error: ValidationError, schema: dict[str, Any] | None = None) -> str:
    """The first error in one sentence, with the number of the others.

    Args:
        error: What pydantic found.
        schema: Structural schema of what was read, by which a misspelt field can be told from its neighbours.
    """
    first, *others = error.errors(include_url=False)
    path = (_path(first["loc"]) + first.get("ctx", {}).get("field_path", "")).removeprefix(".")
    text = f"{path}: {_wish(first, schema or {})}" if path else _wish(first, {})
    return f"{text} (and {len(others)} more)" if others else text


def _path(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if part != "[key]")


_WISHES = {
    "missing": "is required",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "int_type": "must be a whole number",
}


def _wish(error: ErrorDetails, schema: dict[str, Any]) -> str:
    """What the field must be."""
    kind = error["type"]
    if kind in _WISHES:
        return _WISHES[kind]
    if kind == "extra_forbidden":
        return f"is no field here{_suggestion(error['loc'], schema)}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    # pydantic says "Input should be ...", "String should have ...", "List should have ... after validation, not 0".
    return re.sub(r"^\w+ should ", "must ", error["msg"]).replace(" after validation", "")


def _suggestion(location: tuple[int | str, ...], schema: dict[str, Any]) -> str:
    """The field that was probably meant, from the neighbours of the unknown one."""
    node = schema
    for part in location[:-1]:
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    close = get_close_matches(str(location[-1]), node.get("properties", ()), n=1)
    return f", did you mean {close[0]}?" if close else ""


def _kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "nothing" if value is None else f"a {type(value).__name__}")
