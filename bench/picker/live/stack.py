"""A router as its pod runs it: Envoy with the configuration that the operator renders, and a picker at a Unix socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import envoy

from live import layout
from live.pod import PodSpec
from live.process import HERE, Child, Usage, usage, wait_until
from servingplan.api.routing_table import RoutingTable
from servingplan.render.envoy import BootstrapPaths, bootstrap, dump, files

ENVOY = Path(next(path for path in envoy.__path__ if (Path(path) / "_bin" / "envoy").exists())) / "_bin" / "envoy"
WEIGHTS, RANDOM, OURS, PREDICTING = "weights", "random", "ours", "ours+predictor"
ARMS = (WEIGHTS, RANDOM, OURS, PREDICTING)

PICKER = {"perDollar": 1500.0, "perSecond": 0.02, "guardS": 1.0, "shed": False}
"""The balanced preset, without shedding: a refused request would make the others fast."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Arm:
    """What stands beside Envoy.

    Attributes:
        name: One of `ARMS`.
        estimator: File of the trained estimator, for `PREDICTING`.
        pickers: Routers that share the load, each with a picker of its own.
        workers: Envoy's threads.
        flags: Further flags for the picker.
        settings: What the table says to the picker beyond `PICKER`.
    """

    name: str
    estimator: Path | None = None
    pickers: int = 1
    workers: int = 2
    flags: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def table(self, generation: int = 1) -> RoutingTable:
        """The routing table for it."""
        if self.name == WEIGHTS:
            return layout.table(generation)
        told = {**PICKER, "replicas": self.pickers, **self.settings}
        return layout.table(generation, picker=told)


class Pods:
    """The process of all pods."""

    def __init__(self, folder: Path, count: int, *, engines: bool) -> None:
        self.specs: list[PodSpec] = layout.fleet(count, engines=engines)
        self.dns_port = free_port()
        self._child = Child([sys.executable, HERE / "live" / "replicas.py"], folder / "pods.log", talks=True)
        self._child.ask(layout.setup(self.specs, self.dns_port))

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._child.pid

    def order(self, verb: str, pods: Sequence[str] | None = None, **further: Any) -> dict[str, Any]:
        """Give an order, to all pods unless some are named."""
        return self._child.ask({"do": verb, **({} if pods is None else {"pods": list(pods)}), **further})

    def stop(self) -> None:
        """End all pods."""
        self._child.stop()


class Router:
    """One Envoy and what stands beside it."""

    def __init__(self, folder: Path, arm: Arm, pods: Pods) -> None:
        self.arm, self._folder, self._pods = arm, folder, pods
        self._publications, self._served = 0, arm.table()
        (folder / "xds").mkdir(parents=True)
        self.endpoints = folder / "endpoints"
        self.endpoints.write_text(layout.endpoints(pods.specs))
        self.paths = BootstrapPaths(
            "127.0.0.1", free_port(), free_port(), free_port(), str(folder / "xds"), str(folder / "picker.sock")
        )
        self.url = f"http://127.0.0.1:{self.paths.http_port}"
        self.metrics_port = free_port()
        self.publish(self._served)
        configuration = bootstrap(layout.NAMESPACE, layout.PLAN, self.paths, online=arm.name != WEIGHTS)
        configuration["typed_dns_resolver_config"] = _resolver(pods.dns_port)
        (folder / "bootstrap.yaml").write_text(dump(configuration))
        self.picker: Child | None = None
        self.start_picker()
        self.access_log = folder / "envoy.log"
        # The access log goes where the process's standard output goes.
        flags = [
            "--disable-hot-restart",
            "--concurrency",
            str(arm.workers),
            "--log-level",
            "error",
            "--file-flush-interval-msec",
            "200",
        ]
        self.envoy = Child([ENVOY, "-c", folder / "bootstrap.yaml", *flags], self.access_log)

    def start_picker(self) -> None:
        """Start the picker, or one anew after it was killed."""
        argv: list[str | Path] = [sys.executable]
        socket_path = self.paths.picker_socket
        if self.arm.name == WEIGHTS:
            return
        if self.arm.name == RANDOM:
            argv += [HERE / "live" / "random_picker.py", socket_path, self.endpoints]
        else:
            argv += ["-m", "servingplan", "picker", "--namespace", layout.NAMESPACE, "--plan", layout.PLAN]
            argv += ["--listen", f"unix:{socket_path}", "--http-port", str(self.metrics_port), "--log-level", "warning"]
            argv += ["--table-file", self._folder / "xds" / "table.json", "--endpoints-file", self.endpoints]
            argv += [*(["--predictor", self.arm.estimator] if self.arm.estimator else []), *self.arm.flags]
        self.picker = Child(argv, self._folder / "picker.log")

    def wait_ready(self) -> None:
        """Wait until Envoy serves the table, every pod is a member and the picker picks."""
        wait_until(lambda: self._alive() and self.get("/-/table")[0] == 200, "Envoy serves its table")
        expected = len(self._pods.specs)
        wait_until(lambda: self._members() >= expected, "Envoy knows every pod")
        if self.picker:
            wait_until(self._picks, "requests go where the picker says")

    def _alive(self) -> bool:
        for child in (self.envoy, self.picker):
            if child and not child.alive():
                message = f"ended: {child.log.read_text()[-3000:]}"
                raise RuntimeError(message)
        return True

    def _members(self) -> int:
        text = self.get("/stats?filter=^cluster.chat-[^/]*.membership_healthy$", self.paths.admin_port)[1]
        return sum(int(line.rsplit(" ", 1)[1]) for line in text.splitlines())

    def _picks(self) -> bool:
        """Whether Envoy finds the picker healthy, and the picker has a table and endpoints."""
        lines = self.get("/clusters", self.paths.admin_port)[1].splitlines()
        healthy = any(line.startswith("router/picker::") and line.endswith("health_flags::healthy") for line in lines)
        ready = self.arm.name == RANDOM or self.get("/readyz", self.metrics_port)[0] == 200
        return self._alive() and healthy and ready

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        """Status and text of a GET."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.paths.http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """Sum of a series of the picker's own metrics page, over its labels; NaN where there is none."""
        lines = self.get("/metrics", self.metrics_port)[1].splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(values) if values else float("nan")

    def publish(self, table: RoutingTable, text: str | None = None) -> None:
        """Swap all files at once, as kubelet does.

        Args:
            table: What Envoy gets.
            text: What the picker gets instead, if it is to get something else.
        """
        self._publications += 1
        xds = self._folder / "xds"
        new = xds / f"..{self._publications}"
        new.mkdir()
        texts = files(table, self._publications, self._served) | ({"table.json": text} if text is not None else {})
        for name, content in texts.items():
            (new / name).write_text(content)
            if not (xds / name).is_symlink():
                (xds / name).symlink_to(Path("..data") / name)
        (xds / "..data_tmp").symlink_to(new.name)
        (xds / "..data_tmp").rename(xds / "..data")
        shutil.rmtree(xds / f"..{self._publications - 1}", ignore_errors=True)
        self._served = table

    def log_lines(self) -> list[dict[str, Any]]:
        """The access log so far; a line is written when its request has ended."""
        lines = self.access_log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def usage(self) -> dict[str, Usage]:
        """What its processes have used."""
        found = {"envoy": usage(self.envoy.pid)}
        if self.picker:
            found["picker"] = usage(self.picker.pid)
        return found

    def unasked(self) -> int:
        """Requests that Envoy has sent on by the weights because the picker failed to answer."""
        text = self.get("/stats?filter=ext_proc.failure_mode_allowed$", self.paths.admin_port)[1]
        return sum(int(line.rsplit(" ", 1)[1]) for line in text.splitlines())

    def signal_picker(self, number: signal.Signals) -> None:
        """Send the picker a signal."""
        assert self.picker
        self.picker.signal(number)

    def stop(self) -> None:
        """End both."""
        for child in (self.envoy, self.picker):
            if child:
                child.signal(signal.SIGCONT)
                child.stop()


def _resolver(port: int) -> dict[str, Any]:
    return {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": port}}],
        },
    }


@contextmanager
def pods(folder: Path, count: int, *, engines: bool) -> Iterator[Pods]:
    """The pods, ended afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    started = Pods(folder, count, engines=engines)
    try:
        yield started
    finally:
        started.stop()


@contextmanager
def routers(folder: Path, arm: Arm, fleet: Pods) -> Iterator[list[Router]]:
    """As many routers as the arm has pickers, ready to serve, ended afterwards."""
    started: list[Router] = []
    shutil.rmtree(folder, ignore_errors=True)
    try:
        # One by one, so that those that have started are ended if another cannot.
        started.extend(Router(folder / str(number), arm, fleet) for number in range(arm.pickers))
        for router in started:
            router.wait_ready()
        yield started
    finally:
        for router in started:
            router.stop()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
