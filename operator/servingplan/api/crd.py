"""The CustomResourceDefinition, made from the models.

Kubernetes takes a dialect of JSON Schema that it calls structural: no references, no unions with null, one type per node.
pydantic writes the schema of the models; what the dialect lacks is left out where pydantic writes it, references are put in
place, and the models' rules become CEL. A plan has no scale subresource: it has no one number of replicas, and whoever set
one would fight the planner.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from servingplan.api import plan_status, v1alpha1
from servingplan.api.document import PlainDumper

SINGULAR = "modelservingplan"
SHORT_NAMES = ["msp"]


def _column(name: str, path: str, description: str, *, wide: bool = False, kind: str = "string") -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | {"priority": 1} if wide else column


def _condition(condition: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{condition}")].{field}'


def _summary(key: str) -> str:
    return f".status.summary.{key}"


PRINTER_COLUMNS = [
    _column("Ready", _condition("Ready", "status"), "Whether what the plan decided is in place."),
    _column("Reason", _condition("Ready", "reason"), "Why it is ready, or is not."),
    _column("Quality", _summary(plan_status.SUMMARY_QUALITY), "Mean quality of the answers, weighted by class."),
    _column("SLO", _summary(plan_status.SUMMARY_SLO), "The latency that requests may expect."),
    _column("GPUs", _summary(plan_status.SUMMARY_GPUS), "Accelerator units in use."),
    _column("Age", ".metadata.creationTimestamp", "Time since the plan was made.", kind="date"),
    _column("SLO met", _condition("SLOMet", "status"), "Whether the measured latency keeps the SLO.", wide=True),
    _column("Accelerators", _summary(plan_status.SUMMARY_ACCELERATORS), "Units in use by accelerator.", wide=True),
    _column("Cost/h", _summary(plan_status.SUMMARY_COST_PER_HOUR), "Cost of the units in use for an hour.", wide=True),
    _column("Mode", ".spec.mode", "Auto, or Paused.", wide=True),
    _column("Address", ".status.router.address", "Where clients reach the plan inside the cluster.", wide=True),
    _column("Message", _condition("Ready", "message"), "What is the matter, in a sentence.", wide=True),
]


def plain(value: Any) -> Any:
    """A default as YAML writes it: models as objects of what was set, decimals as numbers."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(by_alias=True, exclude_unset=True))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value


class _StructuralSchema(GenerateJsonSchema):
    """pydantic's schema without what the structural dialect has no word for."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return {"type": "string", "enum": list(schema["expected"])}

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        factory: Any = schema.get("default_factory")
        default = factory() if factory else schema.get("default")
        return inner if default is None else inner | {"default": plain(default)}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        result = super().model_schema(schema)
        rules = [rule.schema() for rule in getattr(schema["cls"], "RULES", ()) if rule.cel]
        return result | {"x-kubernetes-validations": rules} if rules else result


def _structural(node: Any, definitions: dict[str, Any]) -> Any:
    """Puts references in place; what stands beside a reference overrides what it refers to."""
    if isinstance(node, list):
        return [_structural(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return _structural(target | {key: value for key, value in node.items() if key != "$ref"}, definitions)
    kept = {key: value for key, value in node.items() if key not in {"title", "$defs"}}
    if kept.get("additionalProperties") is False:
        # The API server prunes and, under strict validation, refuses unknown fields by itself.
        del kept["additionalProperties"]
    if "pattern" in kept and "description" in kept:
        # Without a type, kubectl explain takes a decimal for an object.
        kept["description"] += " A decimal, written as a number or as a string."
    return {
        key: {name: _structural(item, definitions) for name, item in value.items()}
        if key == "properties"
        else value
        if key == "default"
        else _structural(value, definitions)
        for key, value in kept.items()
    }


def document() -> dict[str, Any]:
    """The schema of a ModelServingPlan with its objects by name under ``$defs``, as the field reference needs it."""
    return v1alpha1.ModelServingPlan.model_json_schema(schema_generator=_StructuralSchema)


def schema() -> dict[str, Any]:
    """The structural schema of a ModelServingPlan."""
    unresolved = document()
    root: dict[str, Any] = _structural(unresolved, unresolved["$defs"])
    identity = {
        "apiVersion": {"type": "string", "description": "Version of this representation of the object."},
        "kind": {"type": "string", "description": "Kind of the object."},
        # The name is declared for the rule that blames it.
        "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
    }
    return root | {"properties": identity | {key: root["properties"][key] for key in ("spec", "status")}, "required": ["spec"]}


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as the API server takes it."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{v1alpha1.PLURAL}.{v1alpha1.GROUP}"},
        "spec": {
            "group": v1alpha1.GROUP,
            "names": {
                "kind": v1alpha1.KIND,
                "listKind": f"{v1alpha1.KIND}List",
                "plural": v1alpha1.PLURAL,
                "singular": SINGULAR,
                "shortNames": SHORT_NAMES,
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": v1alpha1.VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": PRINTER_COLUMNS,
                    "schema": {"openAPIV3Schema": schema()},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


def to_yaml() -> str:
    """The CustomResourceDefinition as the text of ``crds/``, byte for byte the same for the same models."""
    return yaml.dump(definition(), Dumper=PlainDumper, sort_keys=False, width=120)
