"""What is written, and what is left alone."""

from __future__ import annotations

import copy

import pytest

from servingplan.controller.apply import Change, change, stamped

WANTED = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "a", "namespace": "n", "labels": {"x": "1"}},
    "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "i", "env": []}], "volumes": []}}},
}


def live(alter=None):
    """The object as the API server has it: with defaults, without empty lists."""
    body = copy.deepcopy(stamped(WANTED))
    body["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    container = body["spec"]["template"]["spec"]["containers"][0]
    container.pop("env")
    container["terminationMessagePath"] = "/dev/termination-log"
    body["spec"]["template"]["spec"].pop("volumes")
    body["spec"]["strategy"] = {"type": "RollingUpdate"}
    if alter:
        alter(body)
    return body


def test_defaults_of_the_api_server_are_no_difference():
    assert change(WANTED, live()) is Change.NONE


@pytest.mark.parametrize(
    "alter",
    [
        lambda body: body["spec"].update(replicas=5),
        lambda body: body["metadata"]["labels"].clear(),
        lambda body: body["spec"]["template"]["spec"]["containers"][0].update(image="other"),
        lambda body: body["spec"]["template"]["spec"]["containers"].append({"name": "sidecar"}),
    ],
    ids=["scaled by hand", "label removed", "image changed", "container added"],
)
def test_what_others_change_is_noticed(alter):
    assert change(WANTED, live(alter)) is Change.MEND


def test_an_object_that_does_not_say_how_it_was_written_is_written():
    assert change(WANTED, live(lambda body: body["metadata"]["annotations"].clear())) is Change.UPDATE


def test_a_field_that_is_no_longer_wanted_is_noticed():
    fewer = copy.deepcopy(WANTED)
    fewer["metadata"]["labels"] = {}
    assert change(fewer, live()) is Change.UPDATE


def test_what_is_not_there_is_created():
    assert change(WANTED, None) is Change.CREATE
