"""What is written, and what is left alone."""

from __future__ import annotations

import copy

import pytest

from servingplan.controller.apply import differs, stamped

WANTED = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "a", "namespace": "n", "labels": {"x": "1"}},
    "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "i", "env": []}], "volumes": []}}},
}


def live(change=None):
    """The object as the API server has it: with defaults, without empty lists."""
    body = copy.deepcopy(stamped(WANTED))
    body["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    container = body["spec"]["template"]["spec"]["containers"][0]
    container.pop("env")
    container["terminationMessagePath"] = "/dev/termination-log"
    body["spec"]["template"]["spec"].pop("volumes")
    body["spec"]["strategy"] = {"type": "RollingUpdate"}
    if change:
        change(body)
    return body


def test_defaults_of_the_api_server_are_no_difference():
    assert not differs(WANTED, live())


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["spec"].update(replicas=5),
        lambda body: body["metadata"]["labels"].clear(),
        lambda body: body["spec"]["template"]["spec"]["containers"][0].update(image="other"),
        lambda body: body["spec"]["template"]["spec"]["containers"].append({"name": "sidecar"}),
        lambda body: body["metadata"]["annotations"].clear(),
    ],
    ids=["scaled by hand", "label removed", "image changed", "container added", "annotation removed"],
)
def test_what_others_change_is_noticed(change):
    assert differs(WANTED, live(change))


def test_a_field_that_is_no_longer_wanted_is_noticed():
    fewer = copy.deepcopy(WANTED)
    fewer["metadata"]["labels"] = {}
    assert differs(fewer, live())
