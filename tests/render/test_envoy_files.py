"""The routing ConfigMap as pure text: what each part of a table becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from servingplan.api.routing_table import ClassEntry, ModelEntry, Pool, RoutingTable
from servingplan.render.envoy import BootstrapPaths, bootstrap, dump, files

ALL = 1_000_000


def pool(name: str) -> Pool:
    return Pool(name=name, setup="s", address=f"{name}.llm.svc.cluster.local.")


def table(**fields: Any) -> RoutingTable:
    models = (
        ModelEntry(name="big", pools=(pool("b1"), pool("b2")), weights={"b1": ALL}),
        ModelEntry(name="mid", pools=(pool("m1"),), weights={"m1": ALL}),
        ModelEntry(name="tiny", pools=(pool("t1"),)),
    )
    classes = (
        ClassEntry(name="code", headers={"x-request-class": "code"}, weights={"b1": 700_000, "m1": 300_000}),
        ClassEntry(name="chat", weights={"m1": ALL}),
    )
    return RoutingTable(**({"namespace": "llm", "plan": "p", "generation": 7, "models": models, "classes": classes} | fields))


def clusters(of: RoutingTable, previous: RoutingTable | None = None) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in yaml.safe_load(files(of, 0, previous)["cds.yaml"])["resources"]}


def routes(of: RoutingTable) -> list[dict[str, Any]]:
    (resource,) = yaml.safe_load(files(of)["rds.yaml"])["resources"]
    return resource["virtual_hosts"][0]["routes"]


def members(cluster: dict[str, Any]) -> list[str]:
    return cluster["cluster_type"]["typed_config"]["clusters"]


def test_the_table_can_be_read_back():
    assert RoutingTable.model_validate_json(files(table())["table.json"]) == table()


def test_every_pool_has_a_cluster_and_two_ways_into_it_even_without_weight():
    names = {f"{way}{name}" for name in ("b1", "b2", "m1", "t1") for way in ("", "any/", "model/")}
    assert clusters(table()).keys() == names


def test_a_way_into_a_pool_goes_on_with_the_models_other_pools_and_only_then_with_other_models():
    every = clusters(table())
    assert members(every["any/b1"]) == ["b1", "b2", "m1", "t1"]
    assert members(every["any/b2"]) == ["b2", "b1", "m1", "t1"]
    assert members(every["any/m1"]) == ["m1", "t1", "b1", "b2"]


def test_a_way_into_a_named_model_never_leaves_it():
    every = clusters(table())
    assert members(every["model/b2"]) == ["b2", "b1"]
    assert members(every["model/t1"]) == ["t1"]


def test_weights_move_without_any_change_of_the_clusters():
    moved = table(classes=(ClassEntry(name="code", weights={"t1": ALL}),))
    assert clusters(moved) == clusters(table())


def test_a_revision_changes_nothing_but_its_own_number():
    first, second = files(table(), 1), files(table(), 2)
    assert first["table.json"] == second["table.json"]
    for name in ("cds.yaml", "rds.yaml"):
        version = f"7-{table().digest}-"
        swapped = first[name].replace(f"{version}1", f"{version}2").replace('"revision": 1', '"revision": 2')
        assert swapped == second[name]


def test_the_pools_of_the_previous_table_stay_for_one_publication():
    shrunk = table(models=table().models[1:], classes=table().classes[1:])
    assert "any/b1" not in clusters(shrunk)
    assert clusters(shrunk, table()).keys() == clusters(table()).keys()
    assert clusters(table(), table()) == clusters(table())


def test_every_cluster_that_a_route_names_exists():
    used = {
        each["name"]
        for route in routes(table())
        for each in route.get("route", {}).get("weighted_clusters", {}).get("clusters", [])
    }
    assert used == {"any/b1", "any/m1", "model/b1", "model/m1"}
    assert used <= clusters(table()).keys()


@pytest.mark.parametrize("shed", [0.0, 0.25])
def test_the_weights_of_a_class_sum_to_a_total_that_is_independent_of_the_draw_for_shedding(shed):
    code = table().classes[0].model_copy(update={"shed": shed})
    forwarding = [route for route in routes(table(classes=(code,))) if route.get("stat_prefix") == "code"]
    total = sum(each["weight"] for each in forwarding[0]["route"]["weighted_clusters"]["clusters"])
    assert total == (ALL + 1 if shed else ALL)


def _class_matches(of: RoutingTable) -> list[tuple[str, set[str]]]:
    return [
        (route["stat_prefix"], {header["name"] for header in route["match"]["headers"]} - {":method"})
        for route in routes(of)
        if not route.get("stat_prefix", "model:").startswith("model:")
    ]


def test_requests_that_name_a_model_are_counted_apart_from_the_classes_and_without_a_dot():
    dotted = ModelEntry(name="mid-3.1", pools=(pool("m1"),), weights={"m1": ALL})
    classes = (ClassEntry(name="mid", weights={"m1": ALL}),)
    counted = [route["stat_prefix"] for route in routes(table(models=(dotted,), classes=classes)) if "stat_prefix" in route]
    assert counted == ["model:mid-3:1", "mid"]


def test_the_class_without_headers_is_tried_last_wherever_it_stands():
    rest, code = ClassEntry(name="rest", weights={"m1": ALL}), table().classes[0]
    assert _class_matches(table(classes=(rest, code))) == [("code", {"x-request-class"}), ("rest", set())]


def test_where_every_class_asks_for_headers_the_last_takes_what_is_left():
    first, last = table().classes[0], ClassEntry(name="last", headers={"x-tier": "free"}, weights={"m1": ALL})
    expected = [("code", {"x-request-class"}), ("last", {"x-tier"}), ("last", set())]
    assert _class_matches(table(classes=(first, last))) == expected


def test_a_plan_without_any_replica_is_still_a_table_that_refuses_by_name():
    empty = table(
        models=tuple(model.model_copy(update={"weights": {}}) for model in table().models),
        classes=tuple(entry.model_copy(update={"weights": {}}) for entry in table().classes),
    )
    statuses = [route["direct_response"]["status"] for route in routes(empty)]
    assert statuses == [200, 200, 503, 503, 503, 404, 503, 503, 404]


def test_the_router_names_the_table_that_it_serves():
    (own, *_) = routes(table())
    served = json.loads(own["direct_response"]["body"]["inline_string"])
    assert own["match"] == {"path": "/-/table"}
    assert served == {"plan": "p", "generation": 7, "digest": table().digest, "revision": 0}


def test_a_large_plan_fits_in_a_config_map():
    models = tuple(
        ModelEntry(name=f"model-{m}", pools=tuple(pool(f"plan-model-{m}-setup-{s}-a1b2c3") for s in range(2)))
        for m in range(64)
    )
    heaviest = {each.pools[0].name: ALL // 64 for each in models}
    classes = tuple(ClassEntry(name=f"class-{c}", headers={"x-class": str(c)}, weights=heaviest) for c in range(16))
    texts = files(table(models=models, classes=classes))
    assert sum(len(text) for text in texts.values()) < 1024 * 1024


def test_the_bootstrap_shares_no_value_by_reference_and_keeps_the_administration_on_loopback():
    text = dump(bootstrap("llm", "p", BootstrapPaths(address="10.0.0.1")))
    assert "&id" not in text
    assert "*id" not in text
    loaded = yaml.safe_load(text)
    assert loaded["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    listening = {each["address"]["socket_address"]["address"] for each in loaded["static_resources"]["listeners"]}
    assert listening == {"10.0.0.1"}
