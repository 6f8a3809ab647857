"""What a fit takes: measurements of one replica."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from servingplan.latency.profile import TokenMix


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """One level of a closed loop: clients that each send their next request when the last has ended.

    Attributes:
        concurrency: Clients.
        prompt_tokens: Of every request, or its mean.
        output_tokens: Of every request, or its mean; at least 2.
        ttft_s: Mean (or median) time to first token.
        tpot_s: Mean time per output token after the first.
        requests: Requests measured, for the weight; 0 where unknown.
        simultaneous: Whether the clients' first requests, sent together, are among the measured ones; None if unknown.
    """

    concurrency: int
    prompt_tokens: float
    output_tokens: float
    ttft_s: float
    tpot_s: float
    requests: int = 0
    simultaneous: bool | None = None


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Poisson arrivals at a rate below saturation; the attributes of a closed loop, with a mix of lengths."""

    rate_rps: float
    mix: TokenMix
    ttft_s: float
    tpot_s: float
    requests: int = 0


@dataclass(frozen=True, slots=True)
class RequestLog:
    """Every request of one run, in seconds on one clock and in tokens.

    Attributes:
        arrival_s, prompt_tokens, output_tokens, first_token_s, last_token_s: One element a request.
        judged: First and last plus one of the requests whose times are fitted; the others are load. None: all.
    """

    arrival_s: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    first_token_s: tuple[float, ...]
    last_token_s: tuple[float, ...]
    judged: tuple[int, int] | None = None


Measurement = ClosedLoop | OpenLoop | RequestLog


def check(measurements: Sequence[Measurement], *, enough: bool = False) -> None:
    """Refuse what no fit can use.

    Args:
        measurements: What is to be fitted.
        enough: Whether even one measurement is enough.

    Raises:
        ValueError: With one sentence naming the measurement and the reason.
    """
    if not measurements:
        raise ValueError("nothing to fit: there is no measurement")
    for number, measurement in enumerate(measurements, 1):
        match measurement:
            case RequestLog():
                _check_log(measurement, f"measurement {number}")
            case ClosedLoop():
                _check_point(measurement, f"measurement {number}")
                if measurement.concurrency < 1:
                    raise ValueError(f"measurement {number}: concurrency is {measurement.concurrency}, it must be 1 or more")
                _check_lengths(measurement.prompt_tokens, measurement.output_tokens, f"measurement {number}")
            case OpenLoop():
                _check_point(measurement, f"measurement {number}")
                if measurement.rate_rps <= 0:
                    raise ValueError(f"measurement {number}: the rate is {measurement.rate_rps} requests/s, it must be above 0")
                _check_lengths(measurement.mix.prompt_tokens, measurement.mix.output_tokens, f"measurement {number}")
    if not enough and not any(isinstance(measurement, RequestLog) for measurement in measurements):
        _check_spread(measurements)


def _check_point(point: ClosedLoop | OpenLoop, name: str) -> None:
    for field in fields(point):
        value = getattr(point, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: {field.name} is {value}, it must be a finite number")
    if point.ttft_s <= 0 or point.tpot_s <= 0:
        raise ValueError(f"{name}: a latency of {min(point.ttft_s, point.tpot_s)} s was measured, it must be above 0")


def _check_lengths(prompt_tokens: float, output_tokens: float, name: str) -> None:
    if not (math.isfinite(prompt_tokens) and math.isfinite(output_tokens)) or prompt_tokens < 1 or output_tokens < 2:
        raise ValueError(
            f"{name}: {prompt_tokens} prompt and {output_tokens} output tokens, but time per token needs at least 1 and 2"
        )


def _check_spread(points: Sequence[Measurement]) -> None:
    loops = [point for point in points if isinstance(point, ClosedLoop)]
    rates = [point for point in points if isinstance(point, OpenLoop)]
    loads = {("closed", float(loop.concurrency)) for loop in loops} | {("open", point.rate_rps) for point in rates}
    kinds = (
        loads | {("prompt", loop.prompt_tokens) for loop in loops} | {("prompt", point.mix.prompt_tokens) for point in rates}
    )
    if len(points) < 2:
        raise ValueError("one point only: alpha and beta need measurements at two loads or more")
    if len(loads) < 2:
        load = loops[0].concurrency if loops else rates[0].rate_rps
        raise ValueError(f"all points have the same load ({load:g}): alpha and beta need two loads or more")
    if len(kinds) < 3:
        raise ValueError("the points differ in nothing that tells the coefficients apart")


def _check_log(log: RequestLog, name: str) -> None:
    columns = (log.arrival_s, log.prompt_tokens, log.output_tokens, log.first_token_s, log.last_token_s)
    if len({len(column) for column in columns}) != 1:
        raise ValueError(f"{name}: the columns of the request log have unequal lengths")
    if len(log.arrival_s) < 10:
        raise ValueError(f"{name}: a request log of {len(log.arrival_s)} requests is too short, it takes 10 or more")
    if not all(math.isfinite(value) for column in columns for value in column):
        raise ValueError(f"{name}: the request log holds a number that is not finite")
    if any(first < arrival for arrival, first in zip(log.arrival_s, log.first_token_s, strict=True)):
        raise ValueError(f"{name}: a request's first token comes before its arrival")
    if any(last < first for first, last in zip(log.first_token_s, log.last_token_s, strict=True)):
        raise ValueError(f"{name}: a request's last token comes before its first")
    if min(log.prompt_tokens) < 1 or min(log.output_tokens) < 1:
        raise ValueError(f"{name}: a request of the log has no prompt or no output tokens")
