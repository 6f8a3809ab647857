"""An operator with many plans of which nothing changes: what it writes, and what it takes.

Each plan has its own namespace-wide name, one router pod and no model server: nobody asks for anything, and a hundred simulated
engines would measure this machine and not the operator.
"""

import copy
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import scene

from testbed import faults
from testbed.bed import Bed
from testbed.cluster import wait_until
from testbed.stage import Operator
from testbed.witness import Witness

_TICKS_PER_S = 100.0
_SETTLED_LOOKS = 3
_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_INSTANCES = 4096


def idle(bed: Bed, plans: int, minutes: float) -> None:
    """Applies the plans, waits until they are settled, and counts."""
    # Every Envoy watches its files: with the usual 128 instances the 65th aborts when it starts.
    _INOTIFY.write_text(str(max(_INOTIFY_INSTANCES, int(_INOTIFY.read_text()))))
    bed.kubectl("create", "namespace", "idle")
    with Witness(bed, "idle", bed.dir / "witness") as witness:
        bodies = [_plan(number) for number in range(plans)]
        began_s = time.time()
        bed.apply(*bodies, namespace="idle")
        wait_until(lambda: _settled(bed, plans), 600, f"{plans} plans settled")
        print(f"{plans} plans settled after {time.time() - began_s:.0f} s", flush=True)
        operator = Operator(bed)
        pid = faults.container_pid(bed, operator.leader(), "controller")
        operator.wait_passes(_SETTLED_LOOKS, timeout_s=120)
        from_s, cpu_s, rss = time.time(), _cpu_s(pid), [_rss_mib(pid)]
        passes = operator.value("servingplan_passes_total")
        while time.time() < from_s + 60 * minutes:
            time.sleep(10)  # the operator is left alone: that is what is measured
            rss.append(_rss_mib(pid))
        lasted_s = time.time() - from_s
        writes = Counter(version.name for version in witness.versions("plan", since_s=from_s))
        most = max(writes.values(), default=0)
        per_10_min = sum(writes.values()) / plans / lasted_s * 600
        cores = (_cpu_s(pid) - cpu_s) / lasted_s
        done = operator.value("servingplan_passes_total") - passes
        print(f"{lasted_s / 60:.1f} minutes, {done:.0f} passes, tick 10 s, scrape 15 s")
        print(f"status writes per plan in 10 minutes: mean {per_10_min:.2f}; most of one plan in all: {most}")
        print(f"CPU: {cores:.3f} cores; RSS {rss[0]:.0f} MiB at first, {rss[-1]:.0f} MiB at last, most {np.max(rss):.0f} MiB")


def _plan(number: int) -> dict[str, Any]:
    body = copy.deepcopy(scene.plan(0.0, 1.0))
    body["metadata"]["name"] = f"idle-{number:03}"
    body["spec"]["router"] = {"replicas": 1, "template": _small_router()}
    for kind in body["spec"]["accelerators"]:
        kind["limit"] = 4
    return body


def _small_router() -> dict[str, Any]:
    container = {"name": "envoy", "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}}
    return {"spec": {"containers": [container], "terminationGracePeriodSeconds": 1}}


def _settled(bed: Bed, plans: int) -> bool:
    items = bed.get("msp", "-n", "idle")["items"]
    ready = sum(
        any(c["type"] == "RoutingSynced" and c["status"] == "True" for c in item.get("status", {}).get("conditions", []))
        for item in items
    )
    assert ready == plans, f"{ready} of {plans} routers serve their table"
    return True


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
