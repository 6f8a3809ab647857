"""The files of a plan's routing ConfigMap."""

from __future__ import annotations

from servingplan.api.routing_table import ModelEntry, RoutingTable
from servingplan.render.envoy.clusters import clusters
from servingplan.render.envoy.document import dump, typed
from servingplan.render.envoy.routes import route_configuration


def files(table: RoutingTable, revision: int = 0, previous: RoutingTable | None = None) -> dict[str, str]:
    """The routing table for people and pickers (``table.json``), and the Envoy resources made from it.

    Args:
        table: What the controller decided.
        revision: Number of the publication. Envoy reads a file again only when it is published anew, so a table that a
            router has refused is offered again by publishing it with the next revision; nothing else in the files
            changes.
        previous: The table that routers may still serve. Its pools stay until the next publication, because Envoy may
            drop a cluster some milliseconds before the routes that lead to it.

    Returns:
        Text by file name.
    """
    version = f"{table.generation}-{table.digest}-{revision}"
    cluster_type = "envoy.config.cluster.v3.Cluster"
    route_type = "envoy.config.route.v3.RouteConfiguration"
    models = _with_pools_of(previous, table) if previous else table.models
    # As with pools: a cluster that routes of the previous table lead to stays for one publication.
    picked = table.picker is not None or (previous is not None and previous.picker is not None)
    every = clusters(models, picked=picked)
    return {
        "table.json": table.model_dump_json(by_alias=True, indent=2) + "\n",
        "cds.yaml": dump({"version_info": version, "resources": [typed(cluster_type, **each) for each in every]}),
        "rds.yaml": dump({"version_info": version, "resources": [typed(route_type, **route_configuration(table, revision))]}),
    }


def _with_pools_of(previous: RoutingTable, table: RoutingTable) -> list[ModelEntry]:
    known = {pool.name for model in table.models for pool in model.pools}
    leaving = [
        model.model_copy(update={"pools": tuple(pool for pool in model.pools if pool.name not in known)})
        for model in previous.models
    ]
    return [*table.models, *(model for model in leaving if model.pools)]
