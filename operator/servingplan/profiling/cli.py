"""``servingplan profile``: its flags, and what it says when it ends."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from servingplan.profiling.errors import ProfilingError
from servingplan.profiling.levels import (
    DEFAULT_CONCURRENCY,
    DEFAULT_LENGTHS,
    parse_clients,
    parse_lengths,
    parse_rates,
)

if TYPE_CHECKING:
    from servingplan.api.v1alpha1 import Profile
    from servingplan.profiling.exchange import Endpoint
    from servingplan.profiling.fitting import EngineLimits
    from servingplan.profiling.run import Run, Wish

_FAILED = 1
_INTERRUPTED = 130
T = TypeVar("T")


def add_profile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    """Adds the subcommand; returns what runs it."""
    parser = commands.add_parser(
        "profile",
        help="measure a model server and write the profile that a plan takes",
        description="Puts rising load on an OpenAI-compatible server (vLLM), and fits the coefficients of its step time. The"
        " server should serve nobody else meanwhile.",
    )
    add = parser.add_argument
    add("--endpoint", required=True, metavar="URL", help="root of the server, such as http://my-model:8000")
    add("--model", required=True, metavar="NAME", help="name the server gives the model")
    loads = parser.add_mutually_exclusive_group()
    loads.add_argument(
        "--concurrency", type=_typed(parse_clients), metavar="N,N,...",
        help=f"clients that each wait for their answer (default {','.join(map(str, DEFAULT_CONCURRENCY))})",
    )  # fmt: skip
    loads.add_argument("--rate", type=_typed(parse_rates), metavar="R,R,...", help="requests per second, sent independently")
    add(
        "--lengths", type=_typed(parse_lengths), metavar="PROMPT:OUTPUT,...",
        help=f"tokens of prompts and outputs (default {','.join(map(str, DEFAULT_LENGTHS))}, as far as they fit)",
    )  # fmt: skip
    add("--max-duration", type=_seconds, default=160.0, metavar="SECONDS", help="longest time of all levels (default 160)")
    add("--max-num-seqs", type=_count, metavar="N", help="the engine's, where it is not vLLM's default of 256")
    add("--max-num-batched-tokens", type=_count, metavar="N", help="the engine's, where it does not show by itself")
    add("--kv-tokens", type=_count, metavar="N", help="tokens in the KV cache, where /metrics does not tell")
    add("--api-key-env", default="", metavar="VARIABLE", help="environment variable that holds the API key")
    add("--silence", type=_seconds, default=120.0, metavar="SECONDS", help="longest silence of the server (default 120)")
    add("--believed", metavar="FILE", help="a profile to compare with")
    add("--seed", type=int, default=0, help="of arrivals and output lengths (default 0)")
    add("-o", "--output", default="-", metavar="FILE", help="where the profile goes (default standard output)")
    add("--plot", metavar="FILE", help="where the plot goes (default beside the profile, as PNG)")
    return run


def run(arguments: argparse.Namespace) -> int:
    """Measures, fits and writes; returns the exit status."""
    try:
        return _run(arguments)
    except ProfilingError as error:
        print(f"servingplan profile: {error}", file=sys.stderr)
        return _FAILED


def _run(arguments: argparse.Namespace) -> int:
    from servingplan.profiling import output, plot  # noqa: PLC0415 - --help and other subcommands do without

    output.check_writable(arguments.output)
    if arguments.plot:
        output.check_writable(arguments.plot)
        if not plot.available():
            raise ProfilingError("plots need matplotlib: install it, or leave out --plot")
    believed = _believed(arguments.believed) if arguments.believed else None
    endpoint = _endpoint(arguments)
    prefix = "# " if arguments.output == output.STDOUT else ""
    measurement = asyncio.run(_measure(endpoint, _wish(arguments), prefix))
    if measurement.failure:
        print(f"servingplan profile: {measurement.failure}", file=sys.stderr)
    if not measurement.levels:
        if measurement.stopped:
            print("servingplan profile: interrupted before anything was measured", file=sys.stderr)
            return _INTERRUPTED
        raise ProfilingError("no level could be measured: allow more time by --max-duration, or give shorter --lengths")
    _conclude(arguments, endpoint, measurement, believed, prefix)
    if measurement.failure:
        return _FAILED
    return _INTERRUPTED if measurement.stopped else 0


def _conclude(
    arguments: argparse.Namespace, endpoint: Endpoint, measurement: Run, believed: Profile | None, prefix: str
) -> None:
    """Fits, writes the profile and the plot, and says what was found."""
    from servingplan.profiling import document, fitting, output, plot  # noqa: PLC0415

    try:
        found = fitting.fitted(measurement.levels, _limits(arguments, measurement))
    except ValueError as error:
        raise ProfilingError(f"what was measured does not tell the coefficients ({error}): measure more levels") from None
    notes = list(measurement.notes)
    if measurement.stopped or measurement.failure:
        notes.append("The measurement was cut short; the levels below are those it had come to.")
    if believed is not None:
        notes.append(fitting.compared(measurement.levels, believed, found))
        print(f"{prefix}{notes[-1]}", file=sys.stderr)
    source = document.Source(
        endpoint.shown, endpoint.model, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), measurement.seconds
    )
    try:
        text = document.to_yaml(found, source, measurement.levels, notes)
    except ValueError as error:
        raise ProfilingError(f"the fit gives no profile that a plan would take ({error}): measure more levels") from None
    output.write(arguments.output, text)
    print(f"{prefix}{document.summary(found)}", file=sys.stderr)
    target = arguments.plot or _beside(arguments.output)
    if target and plot.available():
        plot.plot(found, measurement.levels, f"{endpoint.model}: measured and fitted", target)
    elif target:
        print("No plot: matplotlib is not installed.", file=sys.stderr)


async def _measure(endpoint: Endpoint, wish: Wish, prefix: str) -> Run:
    from servingplan.profiling.client import Client  # noqa: PLC0415
    from servingplan.profiling.progress import progress  # noqa: PLC0415
    from servingplan.profiling.run import Run, measure  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    work = asyncio.current_task()

    def end() -> None:
        # The first signal ends the level under way; a second one, or one that comes before any level, ends everything.
        if stop.is_set() or not found.levels:
            assert work is not None
            work.cancel()
        stop.set()

    found = Run()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        with progress(prefix) as shown:
            async with Client(endpoint) as client:
                await measure(client, wish, found, shown, stop)
    except asyncio.CancelledError:
        found.stopped = True
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return found


def _endpoint(arguments: argparse.Namespace) -> Endpoint:
    from servingplan.profiling.exchange import Endpoint  # noqa: PLC0415

    key = ""
    if arguments.api_key_env:
        key = os.environ.get(arguments.api_key_env, "").strip()
        if not key:
            raise ProfilingError(f"the environment variable {arguments.api_key_env} is empty or not set: put the API key in it")
    return Endpoint(arguments.endpoint, arguments.model, key, arguments.api_key_env, arguments.silence)


def _wish(arguments: argparse.Namespace) -> Wish:
    from servingplan.profiling.run import Wish  # noqa: PLC0415

    rates: tuple[float, ...] = arguments.rate or ()
    clients: tuple[int, ...] = arguments.concurrency or (() if rates else DEFAULT_CONCURRENCY)
    return Wish(clients, rates, arguments.lengths or (), arguments.max_duration, arguments.seed)


def _limits(arguments: argparse.Namespace, measurement: Run) -> list[EngineLimits]:
    """The engine's limits, one entry for each token budget that is possible."""
    from servingplan.profiling import fitting  # noqa: PLC0415

    seqs, seqs_source = fitting.DEFAULT_MAX_NUM_SEQS, "vLLM's default; no level came near it, and /metrics does not tell"
    if measurement.max_num_seqs:
        seqs, seqs_source = measurement.max_num_seqs, "seen: with more, requests waited"
    if arguments.max_num_seqs:
        seqs, seqs_source = arguments.max_num_seqs, "as given by --max-num-seqs"
    budgets: tuple[int, ...] = fitting.DEFAULT_BUDGETS
    budget_source = "vLLM's default that explains the levels best; /metrics does not tell"
    if measurement.max_num_batched_tokens:
        budgets, budget_source = (measurement.max_num_batched_tokens,), "seen in how a long prompt was cut"
    if arguments.max_num_batched_tokens:
        budgets, budget_source = (arguments.max_num_batched_tokens,), "as given by --max-num-batched-tokens"
    kv_tokens, kv_source = measurement.kv_tokens, "from /metrics" if measurement.kv_tokens else "not on /metrics; left out"
    if arguments.kv_tokens:
        kv_tokens, kv_source = arguments.kv_tokens, "as given by --kv-tokens"
    return [
        fitting.EngineLimits(min(seqs, budget), budget, kv_tokens, seqs_source, budget_source, kv_source) for budget in budgets
    ]


def _believed(path: str) -> Profile:
    import yaml  # noqa: PLC0415
    from pydantic import ValidationError  # noqa: PLC0415

    from servingplan.api.load import sentence  # noqa: PLC0415
    from servingplan.api.v1alpha1 import Profile  # noqa: PLC0415

    try:
        return Profile.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")), by_alias=True, by_name=False)
    except OSError as error:
        raise ProfilingError(
            f"cannot read {path} ({error.strerror}): --believed takes a profile as this command writes it"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ProfilingError(f"{path} is not YAML: --believed takes a profile as this command writes it") from None
    except ValidationError as error:
        raise ProfilingError(f"{path} is no profile ({sentence(error)})") from None


def _beside(target: str) -> str:
    return "" if target == "-" else str(Path(target).with_suffix(".png"))


def _typed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` with its sentence in argparse's error."""

    def typed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) <= 86_400:
            return float(text)
    raise argparse.ArgumentTypeError(f"'{text}' must be seconds above 0 and at most a day")


def _count(text: str) -> int:
    with suppress(ValueError):
        if 1 <= int(text) <= 10**9:
            return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' must be a whole number of at least 1")
