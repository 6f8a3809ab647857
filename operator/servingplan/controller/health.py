"""``/healthz``, ``/readyz`` and ``/metrics``.

Ready means, of an operator that leads, that one pass over the world was completed: kopf calls itself ready before it has listed
anything, and an operator that may not list nodes would look well for ever. One that stands by is ready when its watches have
listed everything, for then it can take over at once. Alive means that the loop still turns, or, of one that stands by, that it
still looks at the Lease.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

_PAGE_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Pulse:
    """What the loop tells of itself.

    Attributes:
        stale_after_s: Silence after which it counts as stuck.
        standby: Whether somebody else leads.
        warm: Whether every watch has listed its kind.
    """

    stale_after_s: float
    passes: int = 0
    last_turn: float = field(default_factory=time.monotonic)
    last_error: str = "no pass over the world was completed yet"
    standby: bool = False
    warm: bool = False

    def turn(self) -> None:
        """The loop turns, whether its passes succeed or not."""
        self.last_turn = time.monotonic()

    def stands_by(self) -> None:
        """Somebody else leads, which was just looked at."""
        self.standby = True
        self.turn()

    def leads(self) -> None:
        """Passes are due from here on."""
        self.standby = False
        self.turn()

    def listed(self) -> None:
        """Every watch has listed its kind."""
        self.warm = True

    def completed(self) -> None:
        """A pass succeeded."""
        self.passes += 1
        self.last_error = ""

    def failed(self, error: str) -> None:
        """A pass failed; what was completed before still counts."""
        self.last_error = error

    def stuck(self) -> str:
        """Why the process has to be started anew; empty where it has not."""
        idle_s = time.monotonic() - self.last_turn
        return f"the loop has not turned for {idle_s:.0f} s" if idle_s > self.stale_after_s else ""

    def readiness(self) -> tuple[bool, str]:
        """Whether it is ready, and a sentence."""
        if self.standby:
            return self.warm, "stands by, another operator leads" if self.warm else "the watches have not listed everything yet"
        return (True, "ok") if self.passes else (False, self.last_error)


@asynccontextmanager
async def serving(pulse: Pulse, port: int, page: Callable[[], bytes] = lambda: b"") -> AsyncIterator[None]:
    """Answers probes and Prometheus for as long as it is entered.

    Args:
        pulse: What the loop tells of itself.
        port: Where to listen, on every address.
        page: The metrics in Prometheus' text format.
    """

    async def healthz(_: web.Request) -> web.Response:
        stuck = pulse.stuck()
        return web.Response(status=500 if stuck else 200, text=f"{stuck or 'ok'}\n")

    async def readyz(_: web.Request) -> web.Response:
        ready, sentence = pulse.readiness()
        return web.Response(status=200 if ready else 503, text=f"{sentence}\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=page(), headers={"Content-Type": _PAGE_TYPE})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    try:
        yield
    finally:
        await runner.cleanup()
