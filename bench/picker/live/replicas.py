"""All pods of the harness in one process, at the pace of the wall clock.

Started with a JSON line on standard input that says which pods to be; every further line is an order (`kill`, `hang`,
`resume`, `revive`, `stale`, `records`, `look`) and is answered with a line. Every pod has an address of its own, so that
a killed one refuses connections and a hung one accepts them and says nothing, as the kernel does for real processes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from live import process
from live.pages import Page
from live.pod import EngineSpec, Pod, PodSpec
from testbed.names import NameServer

LOOK_S = 0.05


class Fleet:
    """All pods, and the orders for them."""

    def __init__(self, pods: Sequence[PodSpec]) -> None:
        pages = {spec.model: Page(spec.model) for spec in pods}
        self.pods = {spec.name: Pod.of(spec, pages[spec.model]) for spec in pods}
        self.names = NameServer({})

    async def obey(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out an order.

        Args:
            order: ``do`` with the verb; ``pods`` with names, all where it is missing.
        """
        verb = order["do"]
        if verb == "records":
            self.names.records.clear()
            self.names.records.update(order["records"])
        for name in order.get("pods", self.pods):
            pod = self.pods[name]
            match verb:
                case "kill":
                    pod.kill()
                case "revive":
                    await pod.listen()
                case "hang":
                    pod.hung = True
                case "resume":
                    pod.resume()
                case "stale":
                    pod.page_age_s = float(order["age_s"])
        if verb == "look":
            return {name: {"requests": pod.requests, "load": pod.load()} for name, pod in self.pods.items()}
        return {}


async def _look_on(fleet: Fleet) -> None:
    loop = asyncio.get_running_loop()
    while True:
        for pod in fleet.pods.values():
            pod.look(loop.time())
        await asyncio.sleep(LOOK_S)


async def serve() -> None:
    """Be the pods of the first line until standard input ends."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    setup = json.loads(await lines.readline())
    engines = [EngineSpec(**spec["engine"]) if spec.get("engine") else None for spec in setup["pods"]]
    fleet = Fleet([PodSpec(**(spec | {"engine": e})) for spec, e in zip(setup["pods"], engines, strict=True)])
    fleet.names.records.update(setup["records"])
    await loop.create_datagram_endpoint(lambda: fleet.names, local_addr=("127.0.0.1", setup["dns_port"]))
    for pod in fleet.pods.values():
        await pod.listen()
    looking = loop.create_task(_look_on(fleet))
    process.tell({"ready": True})
    while line := await lines.readline():
        process.tell(await fleet.obey(json.loads(line)))
    looking.cancel()


if __name__ == "__main__":
    process.run(serve())
