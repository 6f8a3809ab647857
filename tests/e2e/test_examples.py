"""Every example is one that a user can apply as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"


@pytest.fixture(scope="module")
def elsewhere(operator):
    """The namespaces that examples bring along are taken away again."""
    yield
    for path in MANIFESTS.glob("*.yaml"):
        for body in yaml.safe_load_all(path.read_text()):
            if body["kind"] == "Namespace":
                operator.kubectl("delete", "namespace", body["metadata"]["name"], "--wait=false", "--ignore-not-found")


def test_every_example_is_applied_and_applied_again_unchanged(operator, namespace, elsewhere, without_operator):
    for path in sorted(MANIFESTS.glob("*.yaml")):
        placed = any("namespace" in body["metadata"] for body in yaml.safe_load_all(path.read_text()))
        where = () if placed else ("-n", namespace)
        arguments = ("apply", *where, "--validate=strict", "-f", str(path))
        for _ in range(2):
            operator.kubectl(*arguments)
        stored = json.loads(operator.kubectl("get", *where, "-f", str(path), "-o", "json").stdout)
        for plan in stored.get("items", [stored]):
            # What the API server fills in is what the file says: Argo CD and a second apply find nothing to do.
            assert plan["metadata"].get("generation", 1) == 1, path.name
        operator.kubectl("delete", *where, "-f", str(path), "--wait=false")
