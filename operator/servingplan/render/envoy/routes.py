"""Routes: which request goes where.

In this order, the first that matches:

1. ``/-/table`` tells which table this router serves; ``/v1/models`` lists the names that clients may send.
2. Only POST to the generating endpoints of the OpenAI API goes further: vLLM's metrics and administration stay inside.
3. A request whose body names a model of the plan goes to that model's pools, whatever its class.
4. A request that names anything but the plan itself or ``auto`` is refused with 404. No model, like ``auto``, leaves
   the choice.
5. The rest belongs to a class: the first whose headers all match, then the class without headers. Where every class
   asks for headers the last class takes what none matched, because a request without a label is better served as the
   least particular class than refused. The class's shed share is refused with 429, what remains is split by its
   weights. A class without weights is refused with 503.

Where a picker stands beside the router it is asked about every request that gets as far as 3 or 5, and what it has picked
a pod for goes there, before any weight or shed share: those hold for what it has not. Both ways of a class or of a model are
counted under one name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from servingplan.api.routing_table import ClassEntry, ModelEntry, RoutingTable
from servingplan.render.envoy.clusters import route_cluster
from servingplan.render.envoy.document import METADATA, REQUEST_METADATA, extension
from servingplan.render.envoy.picker import (
    DESTINATION,
    RECEIPT_HEADER,
    RECEIPT_METADATA,
    has_pick,
    picked_cluster,
    telling,
    unasked,
)

AUTO = "auto"
"""The model name by which clients leave the choice to the plan, besides the plan's own name."""

TABLE_PATH = "/-/table"
RETRY_AFTER_S = 2
GENERATING_PATHS = ("chat/completions", "completions", "responses", "messages", "embeddings")

_MILLION = 1_000_000

_RETRY_POLICY = {
    # Only before the first byte of an answer. "reset" covers a pod that dies with the request in hand: generating it
    # anew has no side effect. The cost is that a request that kills its engine meets at most num_retries further ones.
    "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
    "retriable_status_codes": [503],
    "num_retries": 3,
    "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.5s"},
    "retry_host_predicate": [
        extension(
            "envoy.retry_host_predicates.previous_hosts",
            "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        )
    ],
    "host_selection_retry_max_attempts": 5,
    # The first retry stays in the pool, which may have a healthy pod; the next two look for another pool.
    "retry_priority": extension(
        "envoy.retry_priorities.previous_priorities",
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
        update_frequency=2,
    ),
}

_HEDGE_POLICY = {"hedge_on_per_try_timeout": True}
"""A pod that is late is not given up for the one that is asked after it. The listener says who may be late."""


def route_configuration(table: RoutingTable, revision: int) -> dict[str, Any]:
    """The route configuration of a table, which names its revision at ``/-/table``."""
    aside = {"typed_per_filter_config": unasked()} if table.picker else {}
    told = telling(name for entry in table.classes for name in entry.headers) if table.picker else {}
    nothing = _refusal({"prefix": "/"}, 404, _error(404, "NotFoundError", "There is nothing at this path.", None))
    routes = [
        *(route | aside for route in _own_routes(table, revision)),
        *(route for model in table.models for route in _model_routes(table, model)),
        _unknown_model(table) | aside,
        *(route for entry in _in_matching_order(table.classes) for route in _class_routes(table, entry)),
        nothing | aside,
    ]
    # One policy for all routes: a pick has no other pool to go to, but by then it names the next pod itself.
    host = {"name": "plan", "domains": ["*"], "retry_policy": _RETRY_POLICY, "hedge_policy": _HEDGE_POLICY, "routes": routes}
    return {
        "name": "plan",
        # A route to a cluster that is not there would lose its share; refused, the routes in place go on.
        "validate_clusters": True,
        "max_direct_response_body_size_bytes": 64 * 1024,
        "virtual_hosts": [host | ({"typed_per_filter_config": told} if told else {})],
    }


def class_stat(name: str) -> str:
    """Under which name Envoy counts the requests of a class when it sends them to a pod.

    The counters of the access log follow when a request has ended, which is minutes later for a long stream.
    """
    return name


def model_stat(name: str) -> str:
    """The same of the requests that name a model.

    No class name has a colon. A dot would end the name: Envoy takes it for the next level of the statistic.
    """
    return "model:" + name.replace(".", ":")


def _own_routes(table: RoutingTable, revision: int) -> list[dict[str, Any]]:
    served = {"plan": table.plan, "generation": table.generation, "digest": table.digest, "revision": revision}
    listed = {"object": "list", "data": [_listed(table, name) for name in _names(table)]}
    return [
        _direct({"path": TABLE_PATH}, 200, served),
        _direct({"path": "/v1/models", "headers": [_header(":method", "GET")]}, 200, listed),
    ]


def _names(table: RoutingTable) -> list[str]:
    return list(dict.fromkeys((table.plan, *(model.name for model in table.models))))


def _listed(table: RoutingTable, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": table.plan}


def _generation(**further: Any) -> dict[str, Any]:
    paths = "|".join(re.escape(path) for path in GENERATING_PATHS)
    headers = [_header(":method", "POST"), *further.pop("headers", [])]
    return {"safe_regex": {"regex": f"/v1/({paths})"}, "headers": headers, **further}


def _header(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "string_match": {"exact": value}}


def _model_is(value: Mapping[str, Any], *, invert: bool = False) -> dict[str, Any]:
    return {"filter": REQUEST_METADATA, "path": [{"key": "model"}], "value": dict(value), "invert": invert}


def _model_routes(table: RoutingTable, model: ModelEntry) -> list[dict[str, Any]]:
    if model.name in {table.plan, AUTO}:
        return []
    match = _generation(dynamic_metadata=[_model_is({"string_match": {"exact": model.name}})])
    counted = {"stat_prefix": model_stat(model.name)}
    routes = [route | counted for route in _picked(table, match, model.name, requested=model.name)]
    if not model.weights:
        message = f"Model {model.name} of plan {table.plan} has no ready replica."
        return [*routes, _refusal(match, 503, _error(503, "ServiceUnavailableError", message, "model"), requested=model.name)]
    return [*routes, _forward(table, model, match, requested=model.name) | counted]


def _unknown_model(table: RoutingTable) -> dict[str, Any]:
    free = [{"string_match": {"exact": name}} for name in (table.plan, AUTO, "")]
    match = _generation(
        dynamic_metadata=[
            _model_is({"present_match": True}),
            _model_is({"or_match": {"value_matchers": [*free, {"null_match": {}}]}}, invert=True),
        ]
    )
    message = f"The model does not exist. Models of plan {table.plan}: {', '.join(_names(table))}."
    return _refusal(match, 404, _error(404, "NotFoundError", message, "model"))


def _in_matching_order(classes: Iterable[ClassEntry]) -> list[ClassEntry]:
    """Classes in the order of the table, with the one that takes the rest at the end and without headers."""
    entries = list(classes)
    if not entries:
        return []
    rest = next((entry for entry in entries if not entry.headers), entries[-1])
    labelled = [entry for entry in entries if entry.headers]
    return [*labelled, rest.model_copy(update={"headers": {}})]


def _class_routes(table: RoutingTable, entry: ClassEntry) -> list[dict[str, Any]]:
    headers = [_header(name, value) for name, value in entry.headers.items()]
    of_class = {"class": entry.name}
    match, counted = _generation(headers=headers), {"stat_prefix": class_stat(entry.name)}
    routes = [route | counted for route in _picked(table, match, None, **of_class)]
    if shed := round(entry.shed * _MILLION):
        fraction = {"default_value": {"numerator": shed, "denominator": "MILLION"}}
        message = f"Plan {table.plan} has no capacity for this request of class {entry.name} within its latency target."
        error = _error(429, "RateLimitError", message, None)
        routes.append(_refusal(_generation(headers=headers, runtime_fraction=fraction), 429, error, **of_class))
    if not entry.weights:
        message = f"Class {entry.name} of plan {table.plan} has no ready replica."
        return [*routes, _refusal(match, 503, _error(503, "ServiceUnavailableError", message, None), **of_class)]
    return [*routes, _forward(table, entry, match, **of_class) | counted]


def _picked(table: RoutingTable, match: Mapping[str, Any], model: str | None, **tags: str) -> list[dict[str, Any]]:
    """The route of what the picker has chosen pods for; none without a picker."""
    if table.picker is None:
        return []
    route: dict[str, Any] = {
        "match": {**match, "dynamic_metadata": [*match.get("dynamic_metadata", ()), has_pick()]},
        "metadata": {"filter_metadata": {METADATA: tags}},
        "request_headers_to_remove": [DESTINATION],
        "route": {"cluster": picked_cluster(model), "timeout": f"{table.timeout_s}s"},
    }
    if table.picker.explain:
        receipt = _set_header(RECEIPT_HEADER, f"%DYNAMIC_METADATA({RECEIPT_METADATA}:receipt)%")
        route["response_headers_to_add"] = [receipt]
    return [route]


def _forward(table: RoutingTable, entry: ClassEntry | ModelEntry, match: Mapping[str, Any], **tags: str) -> dict[str, Any]:
    return {
        "match": dict(match),
        "metadata": {"filter_metadata": {METADATA: tags}},
        "route": {
            "weighted_clusters": {"clusters": _weighted(entry)},
            "timeout": f"{table.timeout_s}s",
        },
    }


def _weighted(entry: ClassEntry | ModelEntry) -> list[dict[str, Any]]:
    weights = dict(entry.weights)
    if isinstance(entry, ClassEntry) and entry.shed:
        # Envoy draws one number per request and takes it modulo a million for the shed share and modulo the total of
        # the weights for the cluster. A total that shares no factor with a million makes the two independent; otherwise
        # the first pool would pay for all that is shed.
        weights[max(weights, key=lambda pool: (weights[pool], pool))] += 1
    return [{"name": route_cluster(entry, pool), "weight": weight} for pool, weight in weights.items()]


def _error(code: int, kind: str, message: str, param: str | None) -> dict[str, Any]:
    """An error as the OpenAI API and vLLM write it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _refusal(match: Mapping[str, Any], status: int, error: Mapping[str, Any], **tags: str) -> dict[str, Any]:
    route = _direct(match, status, error)
    if tags:
        route["metadata"] = {"filter_metadata": {METADATA: dict(tags)}}
    if status in {429, 503}:
        route["response_headers_to_add"].append(_set_header("retry-after", str(RETRY_AFTER_S)))
    return route


def _direct(match: Mapping[str, Any], status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "match": dict(match),
        "direct_response": {"status": status, "body": {"inline_string": json.dumps(body)}},
        "response_headers_to_add": [_set_header("content-type", "application/json")],
    }


def _set_header(name: str, value: str) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
