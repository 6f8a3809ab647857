"""A process that campaigns for a Lease and, while it may, writes a counter into a ConfigMap: one to be frozen or killed.

Arguments: the namespace, the Lease's name, its duration in seconds. What happens is said on standard output, one word a line.
"""

from __future__ import annotations

import asyncio
import sys

from servingplan.controller.kube import Kube, KubeError, NotLeader
from servingplan.controller.lease import Elector, Leadership, Timing, candidate


async def main(namespace: str, lease: str, duration_s: int) -> None:
    leadership = Leadership(Timing(duration_s, deadline_s=0.6 * duration_s, retry_s=0.1 * duration_s))
    kube = await Kube.connect()
    led = kube.guarded(leadership.guard)
    campaign = asyncio.create_task(Elector(kube, namespace, lease, candidate("subprocess"), leadership).run())
    await leadership.acquired()
    print("leads", flush=True)
    meta = {"name": lease, "namespace": namespace}
    for count in range(10**9):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"writer": f"subprocess {count}"}}
        try:
            await led.apply(body)
        except NotLeader:
            print("refused", flush=True)
            break
        except KubeError:
            continue  # it was under way when the process was frozen, and has run out of its time
        if count == 0:
            print("wrote", flush=True)
    await campaign
    print("lost", flush=True)
    await kube.close()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
