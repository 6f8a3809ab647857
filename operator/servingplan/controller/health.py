"""``/healthz`` and ``/readyz``.

Ready means that one pass over the world was completed: kopf calls itself ready before it has listed anything, and an operator
that may not list nodes would look well for ever. Alive means that the loop still turns.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass(slots=True)
class Pulse:
    """What the loop tells of itself."""

    stale_after_s: float
    passes: int = 0
    last_turn: float = field(default_factory=time.monotonic)
    last_error: str = "no pass over the world was completed yet"

    def turn(self) -> None:
        """The loop turns, whether its passes succeed or not."""
        self.last_turn = time.monotonic()

    def completed(self) -> None:
        """A pass succeeded."""
        self.passes += 1
        self.last_error = ""

    def failed(self, error: str) -> None:
        """A pass failed; what was completed before still counts."""
        self.last_error = error


@asynccontextmanager
async def serving(pulse: Pulse, port: int) -> AsyncIterator[None]:
    """Answers probes for as long as it is entered."""

    async def healthz(_: web.Request) -> web.Response:
        idle_s = time.monotonic() - pulse.last_turn
        if idle_s > pulse.stale_after_s:
            return web.Response(status=500, text=f"the loop has not turned for {idle_s:.0f} s\n")
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if pulse.passes == 0:
            return web.Response(status=503, text=f"{pulse.last_error}\n")
        return web.Response(text="ok\n")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    try:
        yield
    finally:
        await runner.cleanup()
