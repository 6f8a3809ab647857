"""A picker with the rights of its pod and no others follows its plan on a real API server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from servingplan.picker.scrape import Pace
from servingplan.picker.state import TABLE_KEY, Options, State
from servingplan.picker.table import SERVICE_LABEL
from servingplan.picker.watch import Server
from servingplan.render.names import LABEL_PLAN, table_name
from servingplan.routing.ask import Ask
from testbed.cluster import Cluster, wait_until

from .conftest import run, table_json, until

ACCOUNT = "router"
RULES = [
    {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [table_name("plan")], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
]
ASK = Ask("chat", 100.0, {"s": 0.9, "l": 0.5}, {"s": 100.0, "l": 100.0})


@pytest.fixture
def server(bed: Cluster, namespace: str, tmp_path: Path) -> Server:
    """The API server for a ServiceAccount that may follow one ConfigMap and the EndpointSlices beside it."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT}
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    api = "rbac.authorization.k8s.io/v1"
    bed.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}},
        {"apiVersion": api, "kind": "Role", "metadata": {"name": ACCOUNT}, "rules": RULES},
        {"apiVersion": api, "kind": "RoleBinding", "metadata": {"name": ACCOUNT}, "roleRef": role, "subjects": [subject]},
        namespace=namespace,
    )
    (tmp_path / "token").write_text(bed.kubectl("create", "token", ACCOUNT, "-n", namespace).stdout)
    cluster = yaml.safe_load(bed.kubeconfig.read_text())["clusters"][0]["cluster"]
    data = cluster.get("certificate-authority-data")
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(data) if data else Path(cluster["certificate-authority"]).read_bytes())
    return Server(cluster["server"], tmp_path / "token", tmp_path / "ca.crt")


@contextlib.asynccontextmanager
async def started(server: Server, namespace: str, table_file: Path | None = None) -> AsyncIterator[State]:
    # Nobody answers at the addresses below, and nobody should wait for them.
    state = State(Options(namespace, "plan", table_file, pace=Pace(timeout_s=0.1), server=server))
    await state.start()
    try:
        yield state
    finally:
        await state.stop()


def config_map(namespace: str, text: str | None = None, **changes: Any) -> dict[str, Any]:
    data = {TABLE_KEY: table_json(namespace=namespace, **changes) if text is None else text}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": table_name("plan")}, "data": data}


def endpoint_slice(pool: str, conditions: dict[str, dict[str, bool]], plan: str = "plan") -> dict[str, Any]:
    endpoints = [{"addresses": [address], "conditions": given} for address, given in conditions.items()]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{plan}-{pool}", "labels": {LABEL_PLAN: plan, SERVICE_LABEL: pool}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8000}],
    }


def serving(state: State) -> set[str]:
    choice = state.brain.choose(ASK, state._clock(), 0.5) if state.table else None
    return set() if choice is None else set(choice.candidates)


def test_the_table_and_the_endpoints_are_followed(bed: Cluster, namespace: str, server: Server) -> None:
    ready, leaving = {"ready": True}, {"ready": False, "serving": True, "terminating": True}

    async def apply(*objects: dict[str, Any]) -> None:
        await asyncio.to_thread(bed.apply, *objects, namespace=namespace)

    async def scenario() -> None:
        async with started(server, namespace) as state:
            await apply(config_map(namespace), endpoint_slice("small", {"10.9.0.9": ready}, plan="other"))
            await until(lambda: state.table is not None)
            assert not state.ready(), "the pods of another plan are none of ours"
            await apply(endpoint_slice("small", {"10.9.0.1": ready, "10.9.0.2": ready}))
            await until(lambda: serving(state) == {"10.9.0.1:8000", "10.9.0.2:8000"})
            await apply(endpoint_slice("small", {"10.9.0.1": ready, "10.9.0.2": leaving}))
            await until(lambda: serving(state) == {"10.9.0.1:8000"})

            await apply(config_map(namespace, "{"))
            await until(lambda: state.numbers()["table_refusals"][()] == 1)
            assert serving(state) == {"10.9.0.1:8000"}
            await apply(config_map(namespace, generation=7))
            await until(lambda: state.table is not None and state.table.generation == 7)

            await asyncio.to_thread(bed.kubectl, "delete", "endpointslice", "plan-small", "-n", namespace)
            await until(lambda: not state.ready())
            await asyncio.to_thread(bed.kubectl, "delete", "configmap", table_name("plan"), "-n", namespace)
            await apply(endpoint_slice("small", {"10.9.0.3": ready}))
            await until(lambda: serving(state) == {"10.9.0.3:8000"}, "the table stands although it is gone")
            assert max(state.numbers()["api_age_seconds"].values()) < 60

    run(scenario())


def test_a_mounted_table_goes_with_the_endpoints_of_the_api_server(
    bed: Cluster, namespace: str, server: Server, tmp_path: Path
) -> None:
    async def scenario() -> None:
        bed.apply(endpoint_slice("small", {"10.9.0.1": {"ready": True}}), namespace=namespace)
        table = tmp_path / "table.json"
        table.write_text(table_json(namespace=namespace))
        async with started(server, namespace, table) as state:
            await until(lambda: serving(state) == {"10.9.0.1:8000"})
            table.write_text(table_json(namespace=namespace, generation=2))
            await until(lambda: state.table is not None and state.table.generation == 2)

    run(scenario())


def test_the_slices_of_a_service_carry_its_labels(bed: Cluster, namespace: str) -> None:
    labels = {LABEL_PLAN: "plan"}
    spec = {"clusterIP": "None", "selector": {"app": "nobody"}, "ports": [{"name": "http", "port": 8000}]}
    bed.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "small", "labels": labels}, "spec": spec},
        namespace=namespace,
    )

    def found() -> list[str]:
        items = bed.get("endpointslices", "-n", namespace, "-l", f"{LABEL_PLAN}=plan")["items"]
        return [item["metadata"]["labels"][SERVICE_LABEL] for item in items]

    assert wait_until(found, 30, "the slice of the Service") == ["small"]


def test_without_rights_the_picker_waits_for_them(
    bed: Cluster, namespace: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        bed.kubectl("delete", "rolebinding", ACCOUNT, "-n", namespace)
        bed.apply(config_map(namespace), endpoint_slice("small", {"10.9.0.1": {"ready": True}}), namespace=namespace)
        async with started(server, namespace) as state:
            await until(lambda: caplog.text.count("cannot be followed, the last state stands: 403") == 2)
            assert (state.ready(), state.table) == (False, None)
            role = ["create", "rolebinding", ACCOUNT, f"--role={ACCOUNT}", f"--serviceaccount={namespace}:{ACCOUNT}"]
            await asyncio.to_thread(bed.kubectl, *role, "-n", namespace)
            await until(lambda: serving(state) == {"10.9.0.1:8000"})

    run(scenario())
