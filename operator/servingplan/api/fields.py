"""Scalars, lists and rules that the API server and pydantic enforce alike.

A rule is written twice side by side, once in CEL for the API server and once in Python for plans that are read without one,
and worded once. Decimals are numbers or strings, as users write them. Their schema has no type, because a structural schema
knows no union of number and string; the bounds hold for numbers and the pattern for strings, and ``not`` shuts out what
neither of them looks at. The price is that CEL sees no decimal and no map of decimals: a rule that needs one is checked in
Python alone and becomes a condition of the plan.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import PydanticCustomError, core_schema

DECIMAL_PATTERN = r"^[0-9]+([.][0-9]+)?$"
POSITIVE_PATTERN = r"^(0[.][0-9]*[1-9][0-9]*|[1-9][0-9]*([.][0-9]+)?)$"
FRACTION_PATTERN = r"^(0([.][0-9]+)?|1([.]0+)?)$"
LABEL_KEY_PATTERN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
HEADER_PATTERN = r"^[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
PLAN_NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"

LARGEST_DECIMAL = 10**9


@dataclass(frozen=True, slots=True)
class Rule:
    """What one object's fields must fulfil together.

    Attributes:
        message: One sentence that tells the user what to do.
        holds: The rule over the parsed object; None where ``culprits`` tells.
        cel: The rule as the API server evaluates it, over ``self``; empty where CEL cannot see what it needs.
        field_path: The field to blame, relative to the object; empty for the object itself.
        culprit_cel: CEL for a text that names what breaks the rule, put behind the message.
        culprits: All such texts from the parsed object; none of them if the rule holds.
    """

    message: str
    holds: Callable[[Any], bool] | None = None
    cel: str = ""
    field_path: str = ""
    culprit_cel: str = ""
    culprits: Callable[[Any], list[str]] | None = None

    def schema(self) -> dict[str, str]:
        """An entry of ``x-kubernetes-validations``."""
        entry = {"rule": self.cel, "message": self.message}
        if self.culprit_cel:
            entry["messageExpression"] = f'"{self.message}: " + {self.culprit_cel}'
        if self.field_path:
            entry["fieldPath"] = self.field_path
        return entry

    def check(self, value: Any) -> None:
        """Raises what pydantic collects, with the field to blame, if ``value`` breaks the rule."""
        sentence = self._violation(value)
        if sentence:
            raise PydanticCustomError("rule", "{sentence}", {"sentence": sentence, "field_path": self.field_path})

    def _violation(self, value: Any) -> str | None:
        if self.holds is not None:
            return None if self.holds(value) else self.message
        culprits = self.culprits(value) if self.culprits is not None else []
        return f"{self.message}: {culprits[0]}" if culprits else None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a string must look like, in words: of a schema's ``pattern`` the API server would show the expression alone."""

    pattern: str
    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        rule = Rule(message=self.message, cel=f"self.matches({json.dumps(self.pattern)})")
        return handler(schema) | {"x-kubernetes-validations": [rule.schema()]}

    def _check(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise ValueError(self.message)
        return value


def _decimal(value: object) -> Decimal:
    """Reads a decimal as the schema admits it: no exponent in strings, no infinity, and true is not 1."""
    if isinstance(value, Decimal):
        return value
    if isinstance(value, str) and re.fullmatch(DECIMAL_PATTERN, value):
        return Decimal(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return Decimal(repr(value))
    message = "must be a decimal number such as 0.8"
    raise ValueError(message)


def _decimal_schema(pattern: str, **bounds: Any) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "x-kubernetes-preserve-unknown-fields": True,
            "pattern": pattern,
            "maxLength": 20,
            "minimum": 0,
            "maximum": LARGEST_DECIMAL,
            **bounds,
            "maxItems": 0,
            "maxProperties": 0,
            "not": {"enum": [True, False, [], {}]},
        }
    )


def _unique_names(items: list[NamedT]) -> list[NamedT]:
    names = [item.name for item in items]
    for index, name in enumerate(names):
        if name in names[:index]:
            message = f"{name} is listed twice: names must be unique"
            raise ValueError(message)
    return items


def _pod_overlay(template: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(template.keys() - {"metadata", "spec"})
    if unknown:
        message = f"{unknown[0]} is no part of a pod template, which has metadata and spec"
        raise ValueError(message)
    for part, value in template.items():
        if not isinstance(value, dict):
            message = f"{part} must be an object"
            raise ValueError(message)
    if "replicas" in template.get("spec", {}):
        raise ValueError(_REPLICAS_MISPLACED)
    return template


_REPLICAS_MISPLACED = "a pod template has no replicas: set minReplicas and maxReplicas of a setup, or router.replicas"

_STRING_MAP: dict[str, Any] = {"type": "object", "maxProperties": 64, "additionalProperties": {"type": "string"}}

_POD_OVERLAY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "metadata": {
            "type": "object",
            "description": "Labels and annotations that pods get besides the operator's own.",
            "properties": {
                "labels": _STRING_MAP | {"description": "Labels by name."},
                "annotations": _STRING_MAP | {"description": "Annotations by name."},
            },
        },
        "spec": {
            "type": "object",
            "description": "A part of a PodSpec.",
            "x-kubernetes-preserve-unknown-fields": True,
            # Declared so that the rule can see it: taking the template for a Deployment's spec is an easy slip.
            "properties": {"replicas": {"type": "integer", "description": "Not a pod's field, and refused."}},
            "x-kubernetes-validations": [{"rule": "!has(self.replicas)", "message": _REPLICAS_MISPLACED}],
        },
    },
}


class Named(Protocol):
    """An item of a list that is keyed by name."""

    @property
    def name(self) -> str:
        """The key."""


NamedT = TypeVar("NamedT", bound=Named)

NonNegative = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=LARGEST_DECIMAL), _decimal_schema(DECIMAL_PATTERN)]
Positive = Annotated[
    Decimal,
    BeforeValidator(_decimal),
    Field(gt=0, le=LARGEST_DECIMAL),
    _decimal_schema(POSITIVE_PATTERN, exclusiveMinimum=True),
]
Fraction = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=1), _decimal_schema(FRACTION_PATTERN, maximum=1)]
Label = Annotated[
    str,
    Field(max_length=63),
    Shape(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "must be lower case letters, digits and dashes, with a letter or digit at either end",
    ),
]
LabelValue = Annotated[
    str,
    Field(max_length=63),
    Shape(
        r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
        "must be the value of a label: letters, digits, dashes, dots and underscores, no space",
    ),
]
ModelName = Annotated[
    str,
    Field(max_length=63),
    Shape(
        r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$",
        "must be letters, digits, dashes, dots and underscores, with a letter or digit at either end",
    ),
]
ModelSource = Annotated[
    str,
    Field(max_length=512),
    Shape(r"^[^-\s][^\s]*$", "must be a repository id or a path, without spaces and without a dash at its start"),
]
ResourceName = Annotated[
    str,
    Field(max_length=128),
    Shape(
        r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        "must be an extended resource, a domain and a name such as nvidia.com/gpu",
    ),
]
HeaderValue = Annotated[
    str,
    Field(max_length=256),
    Shape(r"^[!-~]([ -~]*[!-~])?$", "must be printable ASCII characters, with no space at either end"),
]
HttpUrl = Annotated[
    str,
    Field(max_length=512),
    Shape(r"^https?://[^\s/@?#]+(/[^\s?#]*)?$", "must be an http or https URL without credentials, query or fragment"),
]
PodOverlay = Annotated[dict[str, Any], AfterValidator(_pod_overlay), WithJsonSchema(_POD_OVERLAY_SCHEMA)]

ATOMIC_LIST: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
ATOMIC_MAP: dict[str, Any] = {"x-kubernetes-map-type": "atomic"}
LIST_BY_NAME: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
NamedList = Annotated[list[NamedT], AfterValidator(_unique_names)]
