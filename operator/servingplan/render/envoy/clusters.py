"""Clusters: three per pool, and those of the pods that may be picked.

A pool's own cluster resolves the headless Service every second, so its members are the ready pods without any control
plane. Names lag: after the last pod of a pool has gone, or before the first is seen, Envoy and the plan disagree for
some seconds, and Envoy does not retry across weighted clusters. So no route leads to a pool directly. It leads to an
aggregate: the pool first, then a few others. While the pool has healthy members they take all of its share; when it has
none the next pool takes it until the controller publishes other weights. There are two aggregates: ``any/POOL`` goes on
with the model's other pools and then with other models, for requests that left the choice to the plan; ``model/POOL``
stays with the model, for requests that named it.

The clusters depend on the pools of the table alone, not on its weights. Envoy reads clusters and routes from two files
in no certain order and refuses routes to a cluster that it does not know, so weights must be able to move without any
new cluster.

Where a picker chooses the pod, requests need a cluster with every pod in it, because a retry goes to the next pod of the
pick and never to another cluster: ``picked`` has all the plan's pods, ``picked/MODEL`` those of one model, for requests
that named it.

A pod that answers nothing leaves its pool by passive checks alone. All of a pool may be ejected, because its aggregate
goes on with the next; when nothing healthy is left anywhere, Envoy's panic mode tries the ejected ones rather than
none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from servingplan.api.routing_table import ClassEntry, ModelEntry, Pool
from servingplan.render.envoy.document import METADATA, extension, typed
from servingplan.render.envoy.picker import by_pick, localities, picked_cluster

FALLBACK_POOLS = 4
"""Bounds the size of the table; five pools that fail together are the controller's business."""

UNBOUNDED = 1_000_000
"""Envoy's default of 1024 requests in flight would refuse streams that vLLM merely queues; admission is the plan's
decision."""


def _limits(**retries: Any) -> dict[str, Any]:
    unbounded = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), UNBOUNDED)
    return {"thresholds": [unbounded | retries]}


CIRCUIT_BREAKERS = _limits(retry_budget={"budget_percent": {"value": 20}, "min_retry_concurrency": 16})
"""Retries are a share of what is in flight, so that they cannot multiply the load of a pool that is failing."""

_PICKED_CIRCUIT_BREAKERS = _limits(max_retries=UNBOUNDED)
"""A retry goes to another pod than the one that failed, and all that waited there need one at the same moment, when nothing
of it is in flight any more. What a request may cost is bounded by its own number of retries."""

_OUTLIER_DETECTION = {
    "interval": "1s",
    "base_ejection_time": "5s",
    "max_ejection_time": "30s",
    "max_ejection_percent": 100,
    # Refused connections and resets are the pod's fault; a 500 may be the fault of one client's request, so it never
    # ejects.
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 3,
    "enforcing_consecutive_local_origin_failure": 100,
    "consecutive_gateway_failure": 5,
    "enforcing_consecutive_gateway_failure": 100,
    "enforcing_consecutive_5xx": 0,
    "enforcing_success_rate": 0,
    "enforcing_local_origin_success_rate": 0,
}


def route_cluster(entry: ClassEntry | ModelEntry, pool: str) -> str:
    """Name of the cluster by which a class or a model reaches a pool."""
    return f"any/{pool}" if isinstance(entry, ClassEntry) else f"model/{pool}"


def clusters(models: Sequence[ModelEntry], *, picked: bool = False) -> list[dict[str, Any]]:
    """Every cluster for the pools of these models: the pools, the routes into them, and what a picker may pick from.

    Args:
        models: With their pools.
        picked: Whether there is a picker.
    """
    own = [_pool(model, pool) for model in models for pool in model.pools]
    routes = []
    for index, model in enumerate(models):
        siblings = [pool.name for pool in model.pools]
        # Each model continues with its successor, so that several empty pools do not all fall on the first of the
        # table.
        others = [pool.name for other in (*models[index + 1 :], *models[:index]) for pool in other.pools]
        for position, name in enumerate(siblings):
            same = [*siblings[position:], *siblings[:position]]
            routes += [_route(f"any/{name}", [*same, *others]), _route(f"model/{name}", same)]
    picks = [_picked(None, models), *(_picked(model.name, [model]) for model in models)] if picked else []
    return own + routes + picks


def _route(name: str, pools: Sequence[str]) -> dict[str, Any]:
    return {
        "name": name,
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": CIRCUIT_BREAKERS,
        "cluster_type": extension(
            "envoy.clusters.aggregate",
            "envoy.extensions.clusters.aggregate.v3.ClusterConfig",
            clusters=list(pools[: 1 + FALLBACK_POOLS]),
        ),
    }


def _picked(model: str | None, models: Sequence[ModelEntry]) -> dict[str, Any]:
    pools = [(pool.name, _endpoint(entry, pool)) for entry in models for pool in entry.pools]
    ways = {"load_balancing_policy": by_pick(), "circuit_breakers": _PICKED_CIRCUIT_BREAKERS}
    return _resolved(picked_cluster(model), localities(pools)) | ways


def _pool(model: ModelEntry, pool: Pool) -> dict[str, Any]:
    return _resolved(pool.name, [{"lb_endpoints": [_endpoint(model, pool)]}]) | {"lb_policy": "LEAST_REQUEST"}


def _endpoint(model: ModelEntry, pool: Pool) -> dict[str, Any]:
    return {
        "endpoint": {"address": {"socket_address": {"address": pool.address, "port_value": pool.port}}},
        "metadata": {"filter_metadata": {METADATA: {"model": model.name, "pool": pool.name}}},
    }


def _resolved(name: str, endpoints: list[dict[str, Any]]) -> dict[str, Any]:
    """A cluster whose members are what the names of its endpoints resolve to."""
    return {
        "name": name,
        "connect_timeout": "1s",
        "cluster_type": extension(
            "envoy.cluster.dns",
            "envoy.extensions.clusters.dns.v3.DnsCluster",
            # The age of a record (5 s with CoreDNS) says nothing about the pods, asking again does.
            dns_refresh_rate="1s",
            dns_failure_refresh_rate={"base_interval": "0.5s", "max_interval": "1s"},
            dns_lookup_family="V4_PREFERRED",
        ),
        "circuit_breakers": CIRCUIT_BREAKERS,
        "outlier_detection": _OUTLIER_DETECTION,
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_time": 30, "keepalive_interval": 5, "keepalive_probes": 3}
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                explicit_http_config={"http_protocol_options": {}},
                # uvicorn closes a connection that was idle for 5 s: the router must be the first to let go of it.
                common_http_protocol_options={"idle_timeout": "4s"},
            )
        },
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }
