"""A picker from its flags: the state, the server, and how they start and end."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging

from servingplan.picker.decide import Decider
from servingplan.picker.health import Health
from servingplan.picker.metrics import Metrics
from servingplan.picker.protocol import BodyMode
from servingplan.picker.receipts import ReceiptLog
from servingplan.picker.scrape import Pace
from servingplan.picker.server import Listening, Server
from servingplan.picker.state import Options, State
from servingplan.picker.watch import SourceError
from servingplan.render.envoy.bootstrap import BODY_LIMIT_BYTES

_GARBAGE = 20_000
"""Objects after which the youngest are looked through: a decision makes hundreds, and no cycles."""

log = logging.getLogger(__name__)


async def serve(arguments: argparse.Namespace, stop: asyncio.Event) -> int:
    """Serves until ``stop`` is set, then lets what is under way end; returns the exit status."""
    state = State(_options(arguments))
    metrics = Metrics()
    metrics.watch(state)
    decider = Decider(
        state,
        metrics,
        receipts=ReceiptLog() if arguments.receipts else None,
        body_limit_bytes=arguments.body_limit or BODY_LIMIT_BYTES,
    )
    server = Server(decider, Health(state.ready), metrics, _listening(arguments))
    try:
        await state.start()
        await server.start()
    except (OSError, SourceError) as error:
        log.error("%s", error)
        await server.stop()
        await state.stop()
        return 1
    # What there is by now stays for good; looking it through again and again would hold up decisions for milliseconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    log.info("serves on %s, HTTP on port %d", arguments.listen, server.http_port)
    await stop.wait()
    log.info("drains")
    await server.stop()
    await state.stop()
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    interval_s = arguments.scrape_interval
    return Options(
        namespace=arguments.namespace,
        plan=arguments.plan,
        table_file=arguments.table_file,
        endpoints_file=arguments.endpoints_file,
        predictor_file=arguments.predictor,
        pace=Pace(interval_s=interval_s, idle_interval_s=max(Pace().idle_interval_s, interval_s)),
    )


def _listening(arguments: argparse.Namespace) -> Listening:
    return Listening(
        address=arguments.listen,
        http_port=arguments.http_port,
        unannounced=BodyMode[arguments.body_mode.upper().replace("-", "_")],
        drain_s=arguments.drain_seconds,
    )
