"""The plugin as a user runs it: on an API server of the test's own making, or on the bed's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
import yaml

from servingplan.plugin.cli import main
from testbed.cluster import Cluster, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def bodies() -> ModuleType:
    """Plans as the API server gives them."""
    spec = spec_from_file_location("plugin_bodies", Path(__file__).with_name("_bodies.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the plugin in this process."""

    def ran(*arguments: str) -> Ended:
        capsys.readouterr()
        try:
            status = main(list(arguments))
        except SystemExit as error:
            assert isinstance(error.code, int)
            status = error.code
        said = capsys.readouterr()
        return Ended(status, said.out, said.err)

    return ran


def kubeconfig(folder: Path, server: str, user: dict[str, Any] | None = None, cluster: dict[str, Any] | None = None) -> str:
    """A kubeconfig for a server; returns its path."""
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "it", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "me", "user": user or {}}],
        "contexts": [{"name": "here", "context": {"cluster": "it", "user": "me", "namespace": "llm"}}],
        "current-context": "here",
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(body))
    return str(path)


@pytest.fixture
def kubeconfig_for(tmp_path: Path) -> Callable[..., str]:
    """Writes a kubeconfig for a server; returns its path."""
    return lambda server, **more: kubeconfig(tmp_path, server, **more)


@dataclass
class Asked:
    """What was asked of a server that answers everything alike."""

    kubeconfig: str
    paths: list[str]


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[..., Asked]]:
    """Starts a server on loopback that gives every request one answer."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: Any) -> Asked:
        text = body if isinstance(body, str) else json.dumps(body)
        paths: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                paths.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PATCH = _answer  # noqa: N815 - so the standard library calls them

            def log_message(self, *_: Any) -> None:
                """Nothing: the test says what went wrong."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return Asked(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}"), paths)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@dataclass(frozen=True)
class Desk:
    """The plugin on the bed, in a namespace of the test's own."""

    cluster: Cluster
    namespace: str
    run: Run
    bodies: ModuleType

    def __call__(self, *arguments: str) -> Ended:
        """Runs the plugin there."""
        return self.run(*arguments, "-n", self.namespace, "--kubeconfig", str(self.cluster.kubeconfig))

    def plan(self, name: str = "chat", **parts: Any) -> dict[str, Any]:
        """Creates a plan with a status; returns it as it stands.

        The generations in the status follow the one that the API server gives.
        """
        status = parts.pop("status", None)
        body = self.bodies.plan(name, self.namespace, **parts)
        wanted = body.pop("status") if status is None else status
        body["metadata"].pop("generation", None)
        self.cluster.apply(body, namespace=self.namespace)
        return self.report(name, **wanted)

    def report(self, name: str = "chat", **status: Any) -> dict[str, Any]:
        """Merges fields into the status of a plan, as the operator would write them."""
        stands = self.get(name)
        if "observedGeneration" in status:
            status["observedGeneration"] = stands["metadata"]["generation"]
        if status.get("proposal"):
            status["proposal"] = status["proposal"] | {"generation": stands["metadata"]["generation"]}
        self.patch(name, {"status": status}, "--subresource=status")
        return self.get(name)

    def patch(self, name: str, patch: dict[str, Any], *arguments: str) -> None:
        """Merge patch."""
        where = ("msp", name, "-n", self.namespace)
        self.cluster.kubectl("patch", *where, "--type=merge", "-p", json.dumps(patch), *arguments)

    def get(self, name: str = "chat") -> dict[str, Any]:
        """The plan as it stands."""
        found: dict[str, Any] = self.cluster.get("msp", name, "-n", self.namespace)
        return found


@pytest.fixture(scope="session")
def definition(bed: Cluster) -> Iterator[Cluster]:
    """The cluster, which knows plans."""
    bed.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    wait_until(lambda: bed.kubectl("get", "msp", "-A", check=False).returncode == 0, 30, "plans can be listed")
    # These tests write statuses themselves; an operator that other tests have left would write its own.
    operators = bed.get("deployments", "-A", "-l", "app.kubernetes.io/name=servingplan,app.kubernetes.io/component=controller")
    for each in operators["items"]:
        bed.kubectl("scale", f"deployment/{each['metadata']['name']}", "-n", each["metadata"]["namespace"], "--replicas=0")
    pods = ("pods", "-A", "-l", "app.kubernetes.io/name=servingplan,app.kubernetes.io/component=controller")
    wait_until(lambda: not bed.get(*pods)["items"], 60, "no operator runs")
    yield bed
    for each in operators["items"]:
        count = f"--replicas={each['spec']['replicas']}"
        bed.kubectl("scale", f"deployment/{each['metadata']['name']}", "-n", each["metadata"]["namespace"], count)


@pytest.fixture
def desk(definition: Cluster, namespace: str, run: Run, bodies: ModuleType) -> Desk:
    """The plugin on the bed."""
    return Desk(definition, namespace, run, bodies)
