"""Ways to break a bed that run while it runs, each undone at the end of its context.

Nothing is pretended: processes get signals, servers are replaced by proxies that misbehave (``testbed.proxy``), Prometheus is
reconfigured, objects are changed as a colleague or a second controller would change them.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from testbed import kernel, prometheus, tools
from testbed.bed import Bed
from testbed.cluster import Object, wait_until
from testbed.controlplane import API_PORT
from testbed.netns import GATEWAY
from testbed.proxy import Fault, Proxy, Series

AWAY = Fault("refuse")
RESETTING = Fault("reset")
HANGING = Fault("hang")
NOT_JSON = Fault("answer", status=200, body=b"<html><body>Please log in</body></html>")
EXPIRED_WATCHES = Fault("expire")

_CRASH_PERIOD_S = 0.2
_FIRST_TIME_S = 1e9

NEVER_READY: Object = {"spec": {"containers": [{"name": "vllm", "env": [{"name": "SIM_COLD_START_S", "value": "3600"}]}]}}
UNKNOWN_IMAGE: Object = {"spec": {"containers": [{"name": "vllm", "image": "no/such:image"}]}}
CRASHING: Object = {"spec": {"containers": [{"name": "vllm", "env": [{"name": "SIM_COLD_START_S", "value": "never"}]}]}}
"""Pod templates of a model whose pods never serve."""

OLD_NAMES = {
    "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
    "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
}
"""vLLM's series by the names that they had in earlier versions."""


def answering(status: int, *, methods: Sequence[str] = (), path: str = "") -> Fault:
    """Refuse requests with an HTTP status, in the words of an API server."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "message": f"injected {status}"}
    return Fault("answer", status, json.dumps(body).encode(), frozenset(methods), path)


def _spoilt(entry: dict[str, Any], text: str) -> dict[str, Any]:
    if "values" in entry:
        return entry | {"values": [[at, text] for at, _ in entry["values"]]}
    at_s, value = entry["value"]
    # The time of a sample is known whatever its value is.
    return entry if float(value) > _FIRST_TIME_S else entry | {"value": [at_s, text]}


def values_of(text: str) -> Fault:
    """Let Prometheus answer this value, such as NaN, for every sample that is not a time."""
    return Fault("change", change=lambda series: [_spoilt(entry, text) for entry in series])


def without(label: str, pattern: str) -> Fault:
    """Let Prometheus know no series whose label matches."""

    def change(series: Series) -> Series:
        return [entry for entry in series if not re.search(pattern, entry["metric"].get(label, ""))]

    return Fault("change", change=change)


def without_label(label: str) -> Fault:
    """Let Prometheus answer series that lack a label."""

    def change(series: Series) -> Series:
        return [entry | {"metric": {k: v for k, v in entry["metric"].items() if k != label}} for entry in series]

    return Fault("change", change=change)


def prometheus_proxy() -> Proxy:
    """A proxy for the bed's Prometheus; this process has to stand inside the bed."""
    return Proxy(f"http://{GATEWAY}:{prometheus.PORT}")


def api_proxy(bed: Bed) -> Proxy:
    """A proxy for the bed's API server, with its own certificate; this process has to stand inside the bed."""
    pki = bed.dir / "pki"
    serving = (pki / "apiserver.crt", pki / "apiserver.key")
    return Proxy(f"https://{GATEWAY}:{API_PORT}", serving=serving, authority=pki / "ca.crt")


def api_environment(proxy: Proxy) -> list[dict[str, str]]:
    """Environment of a container that reaches the API server through a proxy."""
    return [
        {"name": "KUBERNETES_SERVICE_HOST", "value": GATEWAY},
        {"name": "KUBERNETES_SERVICE_PORT", "value": str(proxy.port)},
    ]


def component_pid(bed: Bed, name: str) -> int:
    """Process of a part of the bed: ``etcd``, ``kube-apiserver``, ``prometheus`` and so on; LookupError where there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = [Path(word.decode()).name for word in (entry / "cmdline").read_bytes().split(b"\0")[:2]]
            if parent == bed.pid and any(word == name or word.startswith(f"{name}-") for word in words):
                return int(entry.name)
    raise LookupError(f"the bed has no process {name}")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process by SIGSTOP for as long as it is entered."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def container_pid(bed: Bed, pod: Object, container: str) -> int:
    """Process of a running container, as this machine numbers it; LookupError while it does not run."""
    folder = bed.dir / "volatile" / "pods" / pod["metadata"]["uid"] / "containers" / container
    try:
        pid = int((folder / "pid").read_text())
    except (FileNotFoundError, ValueError) as error:
        raise LookupError(f"{pod['metadata']['name']}/{container} does not run") from error
    if not Path(f"/proc/{pid}").exists():
        raise LookupError(f"{pod['metadata']['name']}/{container} has ended")
    return pid


def kill_container(bed: Bed, pod: Object, container: str) -> int:
    """``kill -9`` of a running container; the process that was killed."""
    pid = container_pid(bed, pod, container)
    os.kill(pid, signal.SIGKILL)
    return pid


@contextmanager
def lost_node(bed: Bed, name: str) -> Iterator[None]:
    """Let a node lose power, and come back at the end."""
    bed.kill_node(name)
    try:
        yield
    finally:
        bed.revive_node(name)


@contextmanager
def cordoned(bed: Bed, *names: str) -> Iterator[None]:
    """Let nodes take no new pod."""
    bed.kubectl("cordon", *names)
    try:
        yield
    finally:
        bed.kubectl("uncordon", *names)


@contextmanager
def tainted(bed: Bed, *names: str) -> Iterator[None]:
    """Let nodes take no new pod although they are schedulable: a taint that nobody tolerates."""
    bed.kubectl("taint", "node", *names, "fault=injected:NoSchedule")
    try:
        yield
    finally:
        bed.kubectl("taint", "node", *names, "fault:NoSchedule-")


@contextmanager
def other_prometheus(
    bed: Bed,
    proxy: Proxy,
    folder: Path,
    rules: Sequence[Object] = (),
    *,
    interval_s: float = 1.0,
    scrapes: bool = True,
    remembers: bool = False,
) -> Iterator[None]:
    """Put another Prometheus behind a proxy.

    Args:
        bed: Whose pods it scrapes; this process has to stand inside.
        proxy: A ``prometheus_proxy``, which leads to the bed's own again at the end.
        folder: Where its files go; made for it.
        rules: Rules of ``metric_relabel_configs``, such as ``renamed`` and ``dropped`` make.
        interval_s: Its scrape interval.
        scrapes: Whether it scrapes at all; one that does not receives nothing new.
        remembers: Whether it begins with everything that the bed's own has stored by now; else with nothing.
    """
    folder.mkdir()
    if remembers:
        shutil.copytree(bed.dir / "volatile" / "prometheus", folder / "data", ignore=shutil.ignore_patterns("lock"))
    content = prometheus.configuration(bed.dir / "pki" / "agent.kubeconfig", interval_s, rules)
    content["scrape_configs"] = content["scrape_configs"] if scrapes else []
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(content))
    address = f"{GATEWAY}:{_free_port()}"
    flags = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    argv = [str(tools.find().prometheus), *flags]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, preexec_fn=kernel.die_with_parent)  # noqa: PLW1509 - one call, no lock
    try:
        wait_until(lambda: _knows(address, "up" if scrapes else "vector(1)"), 30, "another Prometheus")
        proxy.forward(f"http://{address}")
        yield
    finally:
        proxy.forward(f"http://{GATEWAY}:{prometheus.PORT}")
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.create_server((GATEWAY, 0)) as probe:
        return int(probe.getsockname()[1])


def _knows(address: str, query: str) -> bool:
    url = f"http://{address}/api/v1/query?query={query}"
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(json.load(answer)["data"]["result"])
    return False


def renamed(names: dict[str, str]) -> list[Object]:
    """Rules that store series under other names, with their suffixes."""
    return [
        {"source_labels": ["__name__"], "regex": f"{old}(.*)", "target_label": "__name__", "replacement": f"{new}$1"}
        for old, new in names.items()
    ]


def dropped(label: str, pattern: str) -> Object:
    """A rule that stores no series whose label matches as a whole."""
    return {"action": "drop", "source_labels": [label], "regex": pattern}


def steal_lease(bed: Bed, namespace: str, name: str, holder: str, duration_s: int = 12) -> str:
    """Take a Lease as a foreign controller would that disregards its holder; the former holder."""
    lease = bed.get("lease", name, "-n", namespace)
    before = str(lease["spec"].get("holderIdentity", ""))
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": holder, "leaseDurationSeconds": duration_s, "acquireTime": now, "renewTime": now}
    bed.kubectl("patch", "lease", name, "-n", namespace, "--type=merge", "-p", json.dumps({"spec": spec}))
    return before


@contextmanager
def crash_looping(bed: Bed, namespace: str, pod: str, container: str) -> Iterator[None]:
    """``kill -9`` of a container whenever it has been started again, for as long as it is entered."""
    done = threading.Event()
    body = bed.get("pod", pod, "-n", namespace)

    def kill() -> None:
        while not done.wait(_CRASH_PERIOD_S):
            with contextlib.suppress(LookupError, ProcessLookupError):
                kill_container(bed, body, container)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        yield
    finally:
        done.set()
        killer.join()
