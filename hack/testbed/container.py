"""One container of a pod through its starts, probes, hooks and ends."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from testbed import probes
from testbed.api import Object
from testbed.launch import START_ERROR

_HACK = str(Path(__file__).resolve().parents[1])
_FIRST_POLL_S = 0.05
_SLOWEST_FIRST_POLL_S = 0.5
_MIN_GRACE_AFTER_HOOK_S = 2.0
_BACKOFF_CAP_S = 60.0
_STABLE_S = 600.0


def timestamp() -> str:
    """Now, as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Pod:
    """What a container needs of its pod.

    Attributes:
        address: The pod's IP.
        netns_fd: Its network namespace.
        session: HTTP session for probes.
        restart_policy: Always, OnFailure or Never.
        grace_s: Termination grace of the pod.
        backoff_s: Wait before the second restart; doubles from there.
        changed: Called whenever the container's status has changed.
        specify: Makes the launch specification of a container in a folder, or raises what explains why it cannot.
    """

    address: str
    netns_fd: int
    session: aiohttp.ClientSession
    restart_policy: str
    grace_s: float
    backoff_s: float
    changed: Callable[[], None]
    specify: Callable[[Object, Path], Any]


@dataclass(slots=True)
class Container:
    """A container and its status.

    Attributes:
        spec: The container as the pod lists it.
        pod: What it needs of its pod.
        directory: Private folder for its root and launcher files.
        logs: Folder of `<restart>.log`.
        once: Whether it runs to completion (an init container).
        state: Current state as the API writes it; `last_state` the one before the last restart.
        ready: Readiness as the API shows it.
        started: Whether the startup probe has passed.
        restarts: Restart count.
    """

    spec: Object
    pod: Pod
    directory: Path
    logs: Path
    once: bool = False
    state: Object = field(default_factory=lambda: {"waiting": {"reason": "PodInitializing"}})
    last_state: Object = field(default_factory=dict)
    ready: bool = False
    started: bool = False
    restarts: int = 0
    _process: asyncio.subprocess.Process | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def exit_code(self) -> int | None:
        """Exit code of an ended container, else None."""
        ended = self.state.get("terminated")
        return None if ended is None else ended["exitCode"]

    def status(self) -> Object:
        """The container's status as the API writes it."""
        name, image = self.spec["name"], self.spec["image"]
        return {
            "name": name,
            "image": image,
            "imageID": f"testbed://{image}" if "waiting" not in self.state or self.restarts else "",
            "containerID": f"testbed://{self.directory.parent.name}/{name}/{self.restarts}",
            "state": self.state,
            "lastState": self.last_state,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
        }

    def wait_for(self, reason: str, message: str = "") -> None:
        """Show the container as waiting."""
        self._show({"waiting": {"reason": reason} | ({"message": message} if message else {})})

    async def run(self) -> None:
        """Run it, and again for as long as the restart policy and `stop` allow."""
        backoff_s = 0.0
        while not self._stopping.is_set():
            began = asyncio.get_running_loop().time()
            if not await self._run_once():
                await self._pause(1.0)
                continue
            if self._stopping.is_set() or self._is_final():
                return
            lasted_s = asyncio.get_running_loop().time() - began
            backoff_s = 0.0 if lasted_s > _STABLE_S else backoff_s
            if backoff_s:
                self.last_state = self.state
                self.wait_for("CrashLoopBackOff", f"back-off {backoff_s:g}s restarting failed container={self.spec['name']}")
                await self._pause(backoff_s)
            else:
                self.last_state = self.state
            backoff_s = min(max(self.pod.backoff_s, backoff_s * 2), _BACKOFF_CAP_S)
            if not self._stopping.is_set():
                self.restarts += 1

    def _is_final(self) -> bool:
        policy = "OnFailure" if self.once and self.pod.restart_policy == "Always" else self.pod.restart_policy
        return policy == "Never" or (policy == "OnFailure" and self.exit_code == 0)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _run_once(self) -> bool:
        """Start it and wait for its end; False when it could not even be specified."""
        try:
            spec = await self.pod.specify(self.spec, self.directory)
        except WaitingError as error:
            self.wait_for(error.reason, str(error))
            return False
        process = await self._launch(spec)
        self.started = "startupProbe" not in self.spec
        self.ready = self.started and "readinessProbe" not in self.spec and not self.once
        began = timestamp()
        self._show({"running": {"startedAt": began}})
        watch = asyncio.create_task(self._watch(process))
        try:
            code = await process.wait()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        self._process = None
        self.ready = self.started = False
        self._show({"terminated": self._ended(code, began)})
        return True

    async def _launch(self, spec: dict[str, Any]) -> asyncio.subprocess.Process:
        spec["netns_fd"] = self.pod.netns_fd
        (self.directory / "spec.json").write_text(json.dumps(spec))
        (self.directory / "error").unlink(missing_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{self.restarts}.log").open("ab") as log:
            self._process = await self._start("run", log, pass_fds=(self.pod.netns_fd,))
        return self._process

    async def _start(self, verb: str, output: Any, *argv: str, **options: Any) -> asyncio.subprocess.Process:
        # -S: the launcher needs the standard library only, and site would read every .pth of the environment.
        command = [sys.executable, "-S", "-s", "-m", "testbed.launch", verb, str(self.directory / "spec.json"), *argv]
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PYTHONPATH": _HACK, "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
            **options,
        )

    def _ended(self, code: int, began: str) -> Object:
        error_file = self.directory / "error"
        message = error_file.read_text() if error_file.exists() else ""
        exit_code = code if code >= 0 else 128 - code
        reason = "Completed" if exit_code == 0 else "Error"
        if exit_code == START_ERROR and message:
            reason = "StartError"
        ended = {"exitCode": exit_code, "reason": reason, "startedAt": began, "finishedAt": timestamp()}
        if exit_code > START_ERROR:
            ended["signal"] = exit_code - START_ERROR
        return ended | ({"message": message} if message else {})

    async def execute(self, argv: list[str], timeout_s: float) -> int:
        """Run a command inside the running container; its exit code, or 124 when it took longer than `timeout_s`."""
        process = await self._start("exec", asyncio.subprocess.DEVNULL, "--", *argv)
        try:
            return await asyncio.wait_for(process.wait(), timeout_s)
        except TimeoutError:
            return 124
        finally:
            if process.returncode is None:
                process.kill()

    def _target(self) -> probes.Target:
        ports = {port["name"]: port["containerPort"] for port in self.spec.get("ports", []) if "name" in port}
        return probes.Target(self.pod.address, ports, self.pod.session, self.execute)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Run the probes of one life of the container."""
        target = self._target()
        startup = self.spec.get("startupProbe")
        if startup is not None:
            if not await self._await_first_success(startup, target, budgeted=True):
                await self._end(process, self.pod.grace_s)
                return
            self.started = True
            self.ready = "readinessProbe" not in self.spec
            self.pod.changed()
        async with asyncio.TaskGroup() as group:
            if "readinessProbe" in self.spec:
                group.create_task(self._follow_readiness(self.spec["readinessProbe"], target))
            if "livenessProbe" in self.spec:
                group.create_task(self._follow_liveness(self.spec["livenessProbe"], target, process))

    async def _await_first_success(self, probe: Object, target: probes.Target, *, budgeted: bool) -> bool:
        """Poll faster than asked until the first success, within a startup probe's budget of time."""
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        pause_s = _FIRST_POLL_S
        while not await probes.check(probe, target):
            if budgeted and loop.time() > deadline:
                return False
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.3, _SLOWEST_FIRST_POLL_S)
        return True

    async def _follow_readiness(self, probe: Object, target: probes.Target) -> None:
        await self._await_first_success(probe, target, budgeted=False)
        self._set_ready(ready=True)
        failures = successes = 0
        while True:
            await asyncio.sleep(probe.get("periodSeconds", 10))
            if await probes.check(probe, target):
                failures, successes = 0, successes + 1
            else:
                failures, successes = failures + 1, 0
            if failures >= probe.get("failureThreshold", 3):
                self._set_ready(ready=False)
            elif successes >= probe.get("successThreshold", 1):
                self._set_ready(ready=True)

    async def _follow_liveness(self, probe: Object, target: probes.Target, process: asyncio.subprocess.Process) -> None:
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        failures = 0
        while failures < probe.get("failureThreshold", 3):
            await asyncio.sleep(probe.get("periodSeconds", 10))
            failures = 0 if await probes.check(probe, target) else failures + 1
        await self._end(process, probe.get("terminationGracePeriodSeconds", self.pod.grace_s))

    def _set_ready(self, *, ready: bool) -> None:
        if self.ready != ready:
            self.ready = ready
            self.pod.changed()

    def _show(self, state: Object) -> None:
        if self.state != state:
            self.state = state
            self.pod.changed()

    async def stop(self, grace_s: float) -> None:
        """End it for good: hook, SIGTERM, and SIGKILL when `grace_s` has passed."""
        self._stopping.set()
        if self._process is not None:
            await self._end(self._process, grace_s)

    def kill(self) -> None:
        """End it for good by SIGKILL, as when its node loses power."""
        self._stopping.set()
        if self._process is not None:
            _signal(self._process, signal.SIGKILL)

    async def _end(self, process: asyncio.subprocess.Process, grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        hook = self.spec.get("lifecycle", {}).get("preStop")
        if hook is not None and grace_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._run_hook(hook, grace_s)
            deadline = max(deadline, loop.time() + _MIN_GRACE_AFTER_HOOK_S)
        _signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout_at(deadline):
                await process.wait()
        except TimeoutError:
            _signal(process, signal.SIGKILL)
            await process.wait()

    async def _run_hook(self, hook: Object, grace_s: float) -> None:
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
        else:
            await probes.check({**hook, "timeoutSeconds": grace_s}, self._target())


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


class WaitingError(Exception):
    """A container cannot start for now.

    Attributes:
        reason: The API's word for it, such as ErrImagePull.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
