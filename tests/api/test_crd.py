"""The CustomResourceDefinition says what the models say, in the dialect that an API server takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from servingplan.api import crd, reference, v1alpha1
from servingplan.api.load import Rejected, parse
from servingplan.api.v1alpha1 import ModelServingPlan

ROOT = Path(__file__).parents[2]
Node = dict[str, Any]


def nodes(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every schema node with its path; items and values of maps are marked by []."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], f"{path}[]")


NODES = dict(nodes(crd.schema()))
SPEC = {path: node for path, node in NODES.items() if path.startswith(".spec")}


def test_every_node_is_structural() -> None:
    types = {"object", "array", "string", "integer", "boolean"}
    allowed_without_type = {"x-kubernetes-preserve-unknown-fields"}
    for path, node in NODES.items():
        assert node.get("type") in types or allowed_without_type <= node.keys(), path
        assert node.keys().isdisjoint({"$ref", "$defs", "title", "anyOf", "allOf", "oneOf", "const"}), path
        assert node.get("additionalProperties") is not False, path


def test_every_field_is_described() -> None:
    bare = [path for path, node in NODES.items() if "description" not in node and path and not path.endswith("[]")]
    assert bare == [".metadata", ".metadata.name"]


@pytest.mark.parametrize("path", [path for path, node in SPEC.items() if node.get("type") == "array"])
def test_every_list_of_the_spec_is_bounded_and_says_how_it_merges(path: str) -> None:
    assert "maxItems" in SPEC[path]
    assert SPEC[path]["x-kubernetes-list-type"] in {"map", "atomic"}


@pytest.mark.parametrize("path", [path for path, node in SPEC.items() if "additionalProperties" in node])
def test_every_map_of_the_spec_is_bounded(path: str) -> None:
    assert "maxProperties" in SPEC[path]


def test_every_rule_of_the_models_that_cel_can_check_is_in_the_schema() -> None:
    messages = {rule["message"] for node in NODES.values() for rule in node.get("x-kubernetes-validations", ())}
    rules = [rule for model in vars(v1alpha1).values() for rule in getattr(model, "RULES", ())]
    assert rules
    for rule in rules:
        assert (rule.message in messages) == bool(rule.cel), rule.message


def filled(node: Node, value: Any) -> Any:
    """What the API server stores: the value with the schema's defaults, and the defaults with theirs."""
    if isinstance(value, list):
        return [filled(node["items"], item) for item in value]
    if not isinstance(value, dict):
        return value
    stored = dict(value)
    for name, child in node.get("properties", {}).items():
        if name not in stored and "default" in child:
            stored[name] = child["default"]
        if name in stored:
            stored[name] = filled(child, stored[name])
    return stored


@pytest.mark.parametrize("text", [reference.MINIMAL_EXAMPLE, reference.FULL_EXAMPLE], ids=["minimal", "full"])
def test_the_schema_has_the_defaults_of_the_models(text: str) -> None:
    plan = yaml.safe_load(text)
    stored = filled(crd.schema(), plan)
    assert stored != plan
    assert parse(stored) == parse(plan)
    by_schema = ModelServingPlan.model_validate(stored).spec.model_dump(by_alias=True, exclude_unset=True)
    by_models = ModelServingPlan.model_validate(plan).spec.model_dump(by_alias=True, exclude_none=True)
    assert by_schema == by_models


def test_a_plan_survives_the_round_trip_through_json() -> None:
    plan = ModelServingPlan.model_validate(yaml.safe_load(reference.FULL_EXAMPLE))
    assert ModelServingPlan.model_validate(plan.model_dump(mode="json", by_alias=True)) == plan


def test_numbers_and_strings_mean_the_same() -> None:
    quoted = reference.MINIMAL_EXAMPLE.replace("0.8", '"0.8"').replace("6.4", "'6.4'").replace("0.000041", "'0.000041'")
    assert quoted != reference.MINIMAL_EXAMPLE
    assert parse(yaml.safe_load(quoted)) == parse(yaml.safe_load(reference.MINIMAL_EXAMPLE))


def test_the_full_example_uses_every_field() -> None:
    def used(node: Node, value: Any, path: str) -> Iterator[str]:
        yield path
        if isinstance(value, list):
            for item in value:
                yield from used(node["items"], item, f"{path}[]")
        elif isinstance(value, dict):
            for name, child in node.get("properties", {}).items():
                if name in value:
                    yield from used(child, value[name], f"{path}.{name}")

    found = set(used(NODES[".spec"], yaml.safe_load(reference.FULL_EXAMPLE)["spec"], ".spec"))
    # Targets and lengths have the same fields wherever they stand: once is enough. A preset stands in place of prices.
    wanted = {path for path in SPEC if not path.endswith("[]") and ".template." not in path and ".slo." not in path}
    wanted -= {".spec.router.preset"}
    assert wanted - found == set()
    assert {".spec.slo.ttft.percentile", ".spec.slo.interTokenLatency.statistic", ".spec.slo.e2e"} <= found


@pytest.mark.parametrize("text", [reference.MINIMAL_EXAMPLE, reference.FULL_EXAMPLE], ids=["minimal", "full"])
def test_the_examples_are_good_plans(text: str) -> None:
    assert not isinstance(parse(yaml.safe_load(text)), Rejected)


def test_the_reference_has_a_row_for_every_field_and_no_link_to_nowhere() -> None:
    text = reference.to_markdown()
    for path in NODES:
        if path.startswith((".spec.", ".status.")) and ".template." not in path and not path.endswith("[]"):
            assert f"| `{path.rpartition('.')[2]}` |" in text, path
    headings = {line[3:].lower() for line in text.splitlines() if line.startswith("## ")}
    links = {part.partition(")")[0] for part in text.split("](#")[1:]}
    assert links <= headings


def test_columns_point_at_fields_that_are() -> None:
    for column in crd.PRINTER_COLUMNS:
        path = column["jsonPath"]
        if path.startswith((".status.conditions[?", ".metadata.")):
            continue
        if path.startswith(".status.summary."):
            path = ".status.summary[]"
        assert path in NODES


@pytest.mark.parametrize(
    ("path", "generate"),
    [
        ("crds/servingplan.io_modelservingplans.yaml", crd.to_yaml),
        ("charts/servingplan/crds/servingplan.io_modelservingplans.yaml", crd.to_yaml),
        ("docs/plan.md", reference.to_markdown),
    ],
)
def test_the_generated_files_are_up_to_date(path: str, generate: Callable[[], str]) -> None:
    assert (ROOT / path).read_text() == generate(), f"{path} is out of date: run hack/generate"
