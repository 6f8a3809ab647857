"""Pod template overlays merge as Kubernetes merges them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from servingplan.render.overlay import OverlayError, merge


class Case(NamedTuple):
    name: str
    base: dict[str, Any]
    overlay: dict[str, Any]
    want: dict[str, Any]


CASES = [
    Case("nothing changes nothing", {"a": {"b": 1}}, {}, {"a": {"b": 1}}),
    Case("objects merge key by key", {"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
    Case("null takes a key away", {"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
    Case("lists without a key are replaced", {"args": ["a"]}, {"args": ["b"]}, {"args": ["b"]}),
    Case("tolerations are replaced", {"tolerations": [{"key": "a"}]}, {"tolerations": []}, {"tolerations": []}),
    Case(
        "containers merge by name and new ones follow",
        {"containers": [{"name": "envoy", "image": "a", "args": ["x"]}]},
        {"containers": [{"name": "log", "image": "l"}, {"name": "envoy", "image": "b"}]},
        {"containers": [{"name": "envoy", "image": "b", "args": ["x"]}, {"name": "log", "image": "l"}]},
    ),
    Case(
        "mounts merge by path and ports by number",
        {"volumeMounts": [{"mountPath": "/a", "name": "x"}], "ports": [{"containerPort": 1, "name": "p"}]},
        {"volumeMounts": [{"mountPath": "/a", "readOnly": True}], "ports": [{"containerPort": 2}]},
        {
            "volumeMounts": [{"mountPath": "/a", "name": "x", "readOnly": True}],
            "ports": [{"containerPort": 1, "name": "p"}, {"containerPort": 2}],
        },
    ),
    Case(
        "a volume keeps what the overlay only completes",
        {"volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}]},
        {"volumes": [{"name": "shm", "emptyDir": {"sizeLimit": "8Gi"}}]},
        {"volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}]},
    ),
    Case(
        "a volume and a variable have one source",
        {"volumes": [{"name": "v", "emptyDir": {}}], "env": [{"name": "E", "valueFrom": {"fieldRef": {}}}]},
        {"volumes": [{"name": "v", "hostPath": {"path": "/v"}}], "env": [{"name": "E", "value": "x"}]},
        {"volumes": [{"name": "v", "hostPath": {"path": "/v"}}], "env": [{"name": "E", "value": "x"}]},
    ),
    Case(
        "an entry can be taken away or replaced",
        {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2", "args": ["x"]}]},
        {"containers": [{"name": "a", "$patch": "delete"}, {"name": "b", "$patch": "replace", "image": "3"}]},
        {"containers": [{"name": "b", "image": "3"}]},
    ),
    Case("an object can be replaced", {"s": {"a": 1}}, {"s": {"$patch": "replace", "b": 2}}, {"s": {"b": 2}}),
    Case("nulls and directives of new objects vanish", {}, {"s": {"a": None, "b": 1}}, {"s": {"b": 1}}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_overlay_merges(case):
    before = repr(case.base)
    assert merge(case.base, case.overlay) == case.want
    assert repr(case.base) == before


@pytest.mark.parametrize("entry", [{"image": "x"}, "envoy", None])
def test_an_entry_without_its_key_is_refused_with_its_place(entry):
    with pytest.raises(OverlayError, match=r"template\.spec\.containers: every entry needs name"):
        merge({}, {"spec": {"containers": [entry]}})


@pytest.mark.parametrize("value", ["vllm", {"name": "vllm"}, 3], ids=str)
def test_a_keyed_list_that_is_no_list_is_refused(value):
    overlay = {"spec": {"containers": value}}
    if isinstance(value, dict):
        overlay = {"spec": {"containers": [value, "vllm"]}}
    with pytest.raises(OverlayError, match=r"template\.spec\.containers"):
        merge({"spec": {"containers": [{"name": "vllm"}]}}, overlay)
