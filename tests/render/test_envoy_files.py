"""The routing ConfigMap as pure text: what each part of a table becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from servingplan.api.routing_table import ClassEntry, Engine, ModelEntry, Picker, Pool, RoutingTable
from servingplan.render.envoy import BootstrapPaths, bootstrap, dump, files
from servingplan.render.envoy.bootstrap import BODY_LIMIT_BYTES

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


def test_a_large_plan_fits_in_a_config_map() -> None:
    engine = Engine(alpha_s=0.0137, beta_s=5.71e-05, gamma_s=6.12e-08, max_num_seqs=256, max_num_batched_tokens=8192)
    models = tuple(
        ModelEntry(
            name=f"model-{m}-of-some-vendor",
            pools=tuple(
                pool(f"plan-model-{m}-setup-{s}-a1b2c3").model_copy(
                    update={"engine": engine, "input_price": 1.23e-07, "output_price": 4.56e-07, "price": 0.123456}
                )
                for s in range(4)
            ),
        )
        for m in range(32)
    )
    per_model = {model.name: 0.8 for model in models}
    classes = tuple(
        ClassEntry(
            name=f"class-{c}",
            headers={"x-class": str(c)},
            weights={each.pools[0].name: ALL // 32 for each in models},
            shares=dict.fromkeys(per_model, 0.03125),
            prices=dict.fromkeys(per_model, 0.123456),
            quality=per_model,
        )
        for c in range(16)
    )
    texts = files(table(models=models, classes=classes, picker=PICKER))
    assert sum(len(text) for text in texts.values()) < 1024 * 1024


PICKER = Picker(per_dollar=1500, per_second=0.02)
DESTINATION = "x-gateway-destination-endpoint"


def test_with_a_picker_there_is_a_cluster_of_every_pod_and_one_for_each_model() -> None:
    every, plain = clusters(table(picker=PICKER)), clusters(table())
    assert every.keys() - plain.keys() == {"picked", "picked/big", "picked/mid", "picked/tiny"}

    def pools_of(name: str) -> list[str]:
        found = every[name]["load_assignment"]["endpoints"]
        return [one["metadata"]["filter_metadata"]["servingplan"]["pool"] for each in found for one in each["lb_endpoints"]]

    assert pools_of("picked") == ["b1", "b2", "m1", "t1"]
    assert pools_of("picked/big") == ["b1", "b2"]


def test_a_pick_is_routed_before_the_weights_of_its_class_or_model_and_under_the_same_name() -> None:
    found = routes(table(picker=PICKER))
    names = [(route["stat_prefix"], route["route"].get("cluster")) for route in found if "stat_prefix" in route]
    assert names == [
        ("model:big", "picked/big"),
        ("model:big", None),
        ("model:mid", "picked/mid"),
        ("model:mid", None),
        ("model:tiny", "picked/tiny"),
        ("code", "picked"),
        ("code", None),
        ("chat", "picked"),
        ("chat", None),
    ]
    picks = [route for route in found if "cluster" in route.get("route", {})]
    picked = {"filter": "envoy.lb", "path": [{"key": DESTINATION}], "value": {"present_match": True}}
    for route in picks:
        assert picked in route["match"]["dynamic_metadata"]
        assert route["request_headers_to_remove"] == [DESTINATION]
    others = [route for route in found if route not in picks]
    assert DESTINATION not in json.dumps(others)


def test_no_header_of_a_client_leads_to_a_route_of_picks() -> None:
    for route in routes(table(picker=PICKER)):
        assert DESTINATION not in [header["name"] for header in route["match"].get("headers", ())]


def test_what_tells_the_classes_is_told_to_the_picker_and_nothing_where_there_is_none() -> None:
    def told(*labels: dict[str, str], picker: Picker | None = PICKER) -> list[str] | None:
        classes = tuple(ClassEntry(name=f"c{number}", headers=headers) for number, headers in enumerate(labels))
        (resource,) = yaml.safe_load(files(table(classes=classes, picker=picker))["rds.yaml"])["resources"]
        (host,) = resource["virtual_hosts"]
        if "typed_per_filter_config" not in host:
            return None
        rules = host["typed_per_filter_config"]["envoy.filters.http.header_to_metadata"]["request_rules"]
        assert all(rule["on_header_present"]["key"] == rule["header"] for rule in rules)
        return [rule["header"] for rule in rules]

    assert told({"x-b": "1", "x-a": "1"}, {"x-a": "2"}, {}) == ["x-a", "x-b"]
    assert told({}) is None
    assert told({"x-a": "1"}, picker=None) is None


def test_a_pick_is_tried_again_and_waited_for_as_the_weights_are() -> None:
    (resource,) = yaml.safe_load(files(table(picker=PICKER, timeout_s=900))["rds.yaml"])["resources"]
    (host,) = resource["virtual_hosts"]
    forwarding = [route["route"] for route in host["routes"] if "route" in route]
    assert {route["timeout"] for route in forwarding} == {"900s"}
    assert not [route for route in forwarding if "retry_policy" in route]
    assert host["retry_policy"]["num_retries"] >= 2, "two candidates beside the first"
    assert "reset" in host["retry_policy"]["retry_on"]


def test_what_no_pod_may_answer_is_kept_from_the_picker() -> None:
    found = routes(table(picker=PICKER))
    unasked = [route for route in found if "typed_per_filter_config" in route]
    assert [route["direct_response"]["status"] for route in unasked] == [200, 200, 404, 404]
    assert not [route for route in routes(table()) if "typed_per_filter_config" in route]


def test_a_receipt_is_put_into_answers_only_where_the_plan_explains() -> None:
    def headers(picker: Picker) -> list[str]:
        found = routes(table(picker=picker))
        return [
            each["header"]["key"] for route in found if "route" in route for each in route.get("response_headers_to_add", ())
        ]

    assert headers(PICKER) == []
    assert set(headers(PICKER.model_copy(update={"explain": True}))) == {"x-servingplan-decision"}


def test_the_clusters_of_picks_stay_for_one_publication_when_the_picker_goes() -> None:
    before = table(picker=PICKER)
    assert clusters(table(), before).keys() == clusters(before).keys()


def test_the_picker_is_never_waited_for_long_nor_asked_in_vain() -> None:
    def resources(online: bool) -> dict[str, Any]:
        return bootstrap("llm", "p", BootstrapPaths(picker_socket="/run/p.sock"), online=online)["static_resources"]

    alone, beside = resources(online=False), resources(online=True)
    assert {each["name"] for each in beside["clusters"]} - {each["name"] for each in alone["clusters"]} == {"router/picker"}
    (cluster,) = [each for each in beside["clusters"] if each["name"] == "router/picker"]
    (check,) = cluster["health_checks"]
    assert check["no_traffic_interval"] == check["interval"], "Envoy's default of a minute would leave a hanging picker in use"
    assert cluster["common_lb_config"]["healthy_panic_threshold"] == {"value": 0}
    (limits,) = cluster["circuit_breakers"]["thresholds"]
    assert min(limits["max_requests"], limits["max_pending_requests"], limits["max_connections"]) >= 100_000
    filters = beside["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    names = [each["name"].rpartition(".")[2] for each in filters]
    assert names == ["json_to_metadata", "match_delegate", "header_to_metadata", "ext_proc", "buffer", "router"]
    asking, holding = (each["typed_config"] for each in filters[3:5])
    assert asking["failure_mode_allow"]
    assert asking["grpc_service"]["envoy_grpc"]["cluster_name"] == "router/picker"
    assert asking["processing_mode"]["request_header_mode"] == "SKIP", "it would be a message that decides nothing"
    assert asking["processing_mode"]["request_body_mode"] == "BUFFERED"
    assert holding["max_request_bytes"] == BODY_LIMIT_BYTES


def test_the_bootstrap_shares_no_value_by_reference_and_keeps_the_administration_on_loopback():
    text = dump(bootstrap("llm", "p", BootstrapPaths(address="10.0.0.1"), online=True))
    assert "&id" not in text
    assert "*id" not in text
    loaded = yaml.safe_load(text)
    assert loaded["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    listening = {each["address"]["socket_address"]["address"] for each in loaded["static_resources"]["listeners"]}
    assert listening == {"10.0.0.1"}
