"""The bed's own process: `python -m testbed.daemon DIRECTORY`, reading `settings.json` there.

Order matters only where something is needed next: the outside listener before the namespaces (a socket keeps the
namespace it was made in), the API server before its clients, the nodes before the word that all is ready. What is
ready is written to `ready.json`; commands about nodes come over `control.sock`.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from testbed import dns, kernel, netns, pki, prometheus, services, tools
from testbed.agent import Agent, NodeSpec
from testbed.api import Api, ApiError
from testbed.controlplane import API_PORT, ControlPlane, Timing
from testbed.pod import Kubelet
from testbed.processes import Component
from testbed.sandbox import Surroundings

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Settings:
    """How a bed is made.

    Attributes:
        nodes: Nodes to register.
        timing: How fast the control plane notices.
        image_env: Extra environment by image name without tag.
        scrape_interval_s: Prometheus' scrape interval; 0 leaves Prometheus out.
        refresh_s: Slow beat of ConfigMap renewal.
        backoff_s: Wait before the second restart of a failing container.
        attached: Whether the bed dies with the process that started it.
    """

    nodes: tuple[NodeSpec, ...]
    timing: Timing = field(default_factory=Timing)
    image_env: dict[str, dict[str, str]] = field(default_factory=dict)
    scrape_interval_s: float = 5.0
    refresh_s: float = 45.0
    backoff_s: float = 1.0
    attached: bool = True


def load_settings(text: str) -> Settings:
    """Read what `json.dumps(dataclasses.asdict(settings))` wrote."""
    raw: dict[str, Any] = json.loads(text)
    nodes = tuple(NodeSpec(**node) for node in raw.pop("nodes"))
    return Settings(nodes=nodes, timing=Timing(**raw.pop("timing")), **raw)


class Daemon:
    """Everything of a bed, started and stopped in order."""

    def __init__(self, directory: Path, settings: Settings, outside: socket.socket) -> None:
        self._dir = directory
        self._settings = settings
        self._outside = outside
        self._tools = tools.find()
        self._plane = ControlPlane(directory, self._tools, settings.timing)
        self._parts: list[Component] = []
        self._stack = contextlib.AsyncExitStack()
        self._outside_port: int = outside.getsockname()[1]

    async def run(self, stop: asyncio.Event) -> None:
        """Start everything, say so, and hold it until `stop`.

        Raises:
            ComponentError: A part failed to start.
        """
        async with self._stack:
            agent = await self._start()
            running = asyncio.create_task(agent.run())
            self._stack.push_async_callback(_cancel, running)
            self._announce()
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if running.done():
                running.result()

    async def _start(self) -> Agent:
        pair = self._plane.authority.issue("testbed-agent", groups=("system:masters",))
        api = Api(self._plane.server, self._plane.authority.certificate, pair, self._dir / "pki" / "agent")
        await self._stack.enter_async_context(api)
        self._stack.push_async_callback(self._plane.stop)
        await self._plane.start(api)
        (self._dir / "pki" / "agent.crt").write_bytes(pair.certificate)
        (self._dir / "pki" / "agent.key").write_bytes(pair.key)
        kubeconfig = self._plane.kubeconfig("agent", pair)
        self._write_user_files()
        await self._start_parts(kubeconfig)
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
        await self._stack.enter_async_context(session)
        agent = Agent(list(self._settings.nodes), self._kubelet(api, session))
        logs = await agent.serve_logs(self._dir / "pki" / "kubelet.crt", self._dir / "pki" / "kubelet.key")
        self._stack.push_async_callback(logs.cleanup)
        await self._forward_outside()
        await self._serve_control(agent)
        await asyncio.gather(agent.register(), self._publish(api), self._await_accounts(api), self._await_dns())
        return agent

    def _kubelet(self, api: Api, session: aiohttp.ClientSession) -> Kubelet:
        around = Surroundings(
            dns_server=dns.ADDRESS,
            api_address=(netns.GATEWAY, API_PORT),
            can_switch_user=Path("/proc/self/uid_map").read_text().split()[2] != "1",
        )
        return Kubelet(
            api=api,
            tools=self._tools,
            session=session,
            surroundings=around,
            volatile=self._dir / "volatile",
            logs=self._dir / "logs",
            image_env=self._settings.image_env,
            backoff_s=self._settings.backoff_s,
            refresh_s=self._settings.refresh_s,
        )

    async def _start_parts(self, kubeconfig: Path) -> None:
        proxy = [sys.executable, "-m", "testbed.services", self._plane.server, str(self._dir / "pki")]
        self._parts = [
            await dns.component(self._dir, self._tools, kubeconfig),
            Component("services", proxy, self._dir / "logs"),
        ]
        if self._settings.scrape_interval_s:
            interval_s = self._settings.scrape_interval_s
            self._parts.append(prometheus.component(self._dir, self._tools, kubeconfig, interval_s))
        for part in self._parts:
            self._stack.push_async_callback(part.stop)
            await part.start()

    async def _publish(self, api: Api) -> None:
        await prometheus.publish_endpoint(api, "default", "kubernetes", "https", (netns.GATEWAY, API_PORT))
        if self._settings.scrape_interval_s:
            await prometheus.publish(api)

    async def _await_accounts(self, api: Api) -> None:
        """Wait for the default ServiceAccount and the root certificate: without them the first pod is refused."""
        for path in ("serviceaccounts/default", "configmaps/kube-root-ca.crt"):
            while True:
                if await _exists(api, f"/api/v1/namespaces/default/{path}"):
                    break
                await asyncio.sleep(_POLL_S)

    async def _await_dns(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://{dns.READY_ADDRESS}/ready") as answer:
                        if answer.ok:
                            return
                for part in self._parts:
                    part.raise_if_ended()
                await asyncio.sleep(_POLL_S)

    def _write_user_files(self) -> None:
        """The administrator's kubeconfigs: one for inside the namespace, one through the outside listener."""
        admin, authority = self._plane.admin, self._plane.authority.certificate
        pki.write_kubeconfig(self._dir / "kubeconfig", f"https://127.0.0.1:{self._outside_port}", authority, admin)
        pki.write_kubeconfig(self._dir / "kubeconfig.inside", self._plane.server, authority, admin)

    async def _forward_outside(self) -> None:
        """Join the outside listener to the API server, so that a shell outside the namespace can use kubectl."""
        port = services.Port()
        port.backends = ((netns.GATEWAY, API_PORT),)
        await port.serve(self._outside)
        self._stack.callback(port.close)

    async def _serve_control(self, agent: Agent) -> None:
        commands: dict[str, Callable[[str], Any]] = {"kill": agent.kill_node, "revive": agent.revive_node}

        async def command(request: web.Request) -> web.Response:
            try:
                await commands[request.match_info["verb"]](request.match_info["node"])
            except KeyError as error:
                raise web.HTTPNotFound(text=f"unknown: {error}") from error
            return web.Response(text="done")

        app = web.Application()
        app.router.add_post("/nodes/{node}/{verb}", command)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, str(self._dir / "control.sock")).start()

    def _announce(self) -> None:
        ready = {"pid": os.getpid(), "server": self._plane.server, "outside_port": self._outside_port}
        partial = self._dir / "ready.json.tmp"
        partial.write_text(json.dumps(ready))
        partial.rename(self._dir / "ready.json")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _exists(api: Api, path: str) -> bool:
    try:
        await api.get(path)
    except ApiError:
        return False
    return True


def _prepare_namespaces(directory: Path) -> None:
    netns.isolate()
    volatile = directory / "volatile"
    volatile.mkdir(exist_ok=True)
    kernel.mount("tmpfs", str(volatile), "tmpfs", kernel.MS_NOSUID, "mode=0755")
    resolv = directory / "resolv.conf"
    resolv.write_text(dns.resolv_conf())
    # A process that joins the bed resolves the cluster's names like a pod of `default`.
    kernel.bind(str(resolv), str(Path("/etc/resolv.conf").resolve()), read_only=False)


async def _serve(directory: Path, settings: Settings, outside: socket.socket) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Daemon(directory, settings, outside).run(stop)


def main() -> None:
    """Run a bed until SIGTERM."""
    directory = Path(sys.argv[1])
    settings_file = (directory / "settings.json").open()
    fcntl.flock(settings_file, fcntl.LOCK_SH)  # held for as long as the bed lives: its folder is in use
    settings = load_settings(settings_file.read())
    if settings.attached:
        kernel.die_with_parent()
    (directory / "logs").mkdir(exist_ok=True)
    outside = socket.create_server(("127.0.0.1", 0))
    _prepare_namespaces(directory)
    asyncio.run(_serve(directory, settings, outside))


if __name__ == "__main__":
    main()
