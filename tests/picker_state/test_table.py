"""From a routing table and EndpointSlices to what the decision is configured with."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from servingplan.api.routing_table import RoutingTable
from servingplan.picker import table as tables
from servingplan.picker.table import Refused, Share
from servingplan.routing.ask import ClassRule
from servingplan.routing.fleet import Endpoint, Engine
from servingplan.routing.preset import Preset, Prices

from .conftest import table_json

PORTS = {"small": 8000, "large": 8001}


def read(text: str) -> RoutingTable:
    found = tables.read(text, "ns", "plan")
    assert isinstance(found, RoutingTable), found
    return found


def a_slice(pool: str, *endpoints: dict[str, Any], family: str = "IPv4", name: str = "a") -> dict[str, Any]:
    labels = {tables.SERVICE_LABEL: pool}
    return {"metadata": {"name": f"{pool}-{name}", "labels": labels}, "addressType": family, "endpoints": list(endpoints)}


def endpoint(address: str, **conditions: bool | None) -> dict[str, Any]:
    return {"addresses": [address], "conditions": conditions}


def test_the_endpoints_and_classes_of_a_table() -> None:
    table = read(table_json())
    small = Engine("small", "s", 0.01, 1e-5, 1e-8, 0.002, 64, 2048, 10_000, 1e-7, 2e-7, capacity_price=0.03)
    assert tables.endpoints(
        table, {"small": {"10.0.0.2:8000": False, "10.0.0.1:8000": True}, "other": {"10.0.0.9:1": True}}
    ) == (
        Endpoint("10.0.0.1:8000", small, serves=True),
        Endpoint("10.0.0.2:8000", small, serves=False),
    )
    assert tables.class_rules(table) == {
        "chat": ClassRule("chat", weight=2.0, ttft_s=0.5, models=frozenset({"s"})),
        "rest": ClassRule("rest", weight=1.0, ttft_s=None, models=None),
    }


def test_equal_worlds_give_equal_endpoints() -> None:
    table, source = read(table_json()), random.Random(1)
    known = {pool: {f"10.0.{pool == 'large':d}.{each}:8000": each % 3 > 0 for each in range(9)} for pool in PORTS}
    shuffled = {pool: dict(source.sample(sorted(of.items()), len(of))) for pool, of in reversed(known.items())}
    assert tables.endpoints(table, known) == tables.endpoints(table, shuffled)


def test_a_pool_of_which_nothing_is_known_is_left_to_the_weights() -> None:
    table = json.loads(table_json())
    table["models"][0]["pools"][0]["engine"] = None
    known = {"small": {"10.0.0.1:8000": True}, "large": {"10.0.0.2:8000": True}}
    assert [each.address for each in tables.endpoints(read(json.dumps(table)), known)] == ["10.0.0.2:8000"]


def test_what_the_decision_weighs() -> None:
    picker = {"perDollar": 100.0, "perSecond": 0.5, "guardS": None, "shed": False, "replicas": 3}
    given = tables.weighing(read(table_json(picker=picker)))
    assert given == tables.Weighing(Prices(100.0, 0.5), guard_s=None, shed=False, peers=3, time_limit_s=3600.0)
    assert tables.weighing(read(table_json(picker=None))).prices == Preset.BALANCED.prices


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "cannot be read: must be an object"),
        ('{"namespace": "ns"}', "plan: is required"),
        (table_json(plan="other"), "is of ns/other, not of ns/plan"),
        (table_json(namespace="elsewhere"), "is of elsewhere/plan, not of ns/plan"),
        (table_json(models=[], classes=[]), "of no pool how fast it is"),
        (table_json(picker={"perDollar": -1.0, "perSecond": 0.5}), "picker cannot be used: prices are not negative"),
        (table_json(picker={"perDollar": 1.0}), "picker.perSecond: is required"),
        (table_json(unheard=1), "unheard: is no field here"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_sentence(text: str, says: str) -> None:
    found = tables.read(text, "ns", "plan")
    assert isinstance(found, Refused)
    assert says in found.message
    assert "\n" not in found.message


def test_the_pods_behind_services() -> None:
    slices = [
        a_slice("small", endpoint("10.0.0.1", ready=True), endpoint("10.0.0.2", ready=False), endpoint("10.0.0.3")),
        a_slice("small", endpoint("10.0.0.4", ready=True, serving=True, terminating=True), name="b"),
        a_slice("large", endpoint("10.0.1.1", ready=None, terminating=None)),
        a_slice("other", endpoint("10.0.2.1", ready=True)),
        a_slice("small", {"addresses": []}, {"addresses": ["10.0.0.5"]}, name="c"),
        {"metadata": {"name": "bare"}, "addressType": "IPv4", "endpoints": None},
    ]
    assert tables.members(slices, PORTS) == {
        "small": {
            "10.0.0.1:8000": True,
            "10.0.0.2:8000": False,
            "10.0.0.3:8000": True,
            "10.0.0.4:8000": False,
            "10.0.0.5:8000": True,
        },
        "large": {"10.0.1.1:8001": True},
    }


def test_a_pod_in_two_slices_serves_only_if_both_say_so() -> None:
    ready, leaving = endpoint("10.0.0.1", ready=True), endpoint("10.0.0.1", ready=False, terminating=True)
    for pair in ((ready, leaving), (leaving, ready)):
        slices = [a_slice("small", each, name=str(place)) for place, each in enumerate(pair)]
        assert tables.members(slices, PORTS) == {"small": {"10.0.0.1:8000": False}}


def test_of_two_families_one_is_taken() -> None:
    both = [
        a_slice("small", endpoint("fd00::1", ready=True), family="IPv6"),
        a_slice("small", endpoint("10.0.0.1", ready=True)),
        a_slice("large", endpoint("fd00::2", ready=True), family="IPv6"),
        a_slice("large", endpoint("example.com", ready=True), family="FQDN"),
    ]
    assert tables.members(both, PORTS) == {"small": {"10.0.0.1:8000": True}, "large": {"[fd00::2]:8001": True}}


def test_the_realised_shares_beside_those_of_the_plan() -> None:
    table = read(table_json())
    found = tables.shares(table, {"chat": {"small": 30, "large": 10}, "unknown": {"small": 1}})
    assert found == [
        Share("chat", "large", planned=0.75, realised=0.25),
        Share("chat", "small", planned=0.25, realised=0.75),
        Share("rest", "large", planned=1.0, realised=None),
    ]
    assert tables.distance(found) == {"chat": 0.5}


def test_addresses_from_a_file_are_checked() -> None:
    assert tables.checked("127.0.0.1:8000") == "127.0.0.1:8000"
    assert tables.checked("[fd00::1]:8000") == "[fd00::1]:8000"
    for wrong in ("", "127.0.0.1", "localhost:8000", "127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:80x", "fd00::1:8000"):
        with pytest.raises(ValueError):
            tables.checked(wrong)
