"""``servingplan picker``: the endpoint picker of one plan."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from servingplan.options import seconds

BODY_MODES = ("none", "streamed", "buffered", "full-duplex-streamed")


def add_picker(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    """Declares the subcommand; returns what runs it."""
    parser = commands.add_parser("picker", help="answer Envoy which model and pod each request goes to")
    add = parser.add_argument
    add("--namespace", default=os.environ.get("POD_NAMESPACE", ""), help="namespace of the plan ($POD_NAMESPACE)")
    add("--plan", required=True, help="name of the plan")
    add("--listen", type=_address, default="0.0.0.0:9002", help="unix:/path or host:port where Envoy asks (0.0.0.0:9002)")
    add("--http-port", type=_port, default=9090, help="port of /healthz, /readyz and /metrics (9090)")
    add("--table-file", type=Path, help="mounted routing table, instead of the API server's")
    add("--endpoints-file", type=Path, help="JSON object with lists of ip:port by pool, beside --table-file")
    add("--predictor", type=Path, help="trained estimator, instead of the one that the table names")
    add("--scrape-interval", type=seconds(0.01, 60), default=0.25, help="seconds between two scrapes of a busy pod (0.25)")
    add("--body-limit", type=_bytes, help="longest request body in bytes (what the routers take)")
    add("--body-mode", choices=BODY_MODES, default="buffered", help="how an Envoy sends bodies that does not announce it")
    add("--receipts", action="store_true", help="write a line per decision, with every term of its score, to standard output")
    add("--drain-seconds", type=seconds(0, 86400), default=30.0, help="longest wait for requests under way at a stop (30)")
    add("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    parser.set_defaults(refuse=parser.error)
    return _run


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.namespace:
        arguments.refuse("--namespace is needed where POD_NAMESPACE is not set")
    if arguments.endpoints_file and not arguments.table_file:
        arguments.refuse("--endpoints-file needs --table-file")
    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_operate(arguments))


async def _operate(arguments: argparse.Namespace) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        # gRPC and the rest of the server take a moment to load, which other subcommands do without.
        from servingplan.picker.serve import serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        sys.stderr.write(f"pip install 'servingplan[picker]' brings what the picker needs: {error.name} is missing.\n")
        return 1
    return await serve(arguments, stop)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _address(text: str) -> str:
    if text.startswith("unix:") and len(text) > len("unix:"):
        return text
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is neither unix:/path nor host:port")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port")
    return int(text)


def _bytes(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1 << 30:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes up to 1 GiB")
    return int(text)
