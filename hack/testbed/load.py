"""Open-loop load for a plan's router, and what came back.

Requests leave at the moments of a seeded Poisson process whatever became of the ones before: a slow answer must not thin
the load that shows it to be slow. Lengths are drawn around each class's means, log-normally as prompts and answers are
in practice, and every prompt is its own, so that no prefix cache helps. The time to first token ends with the first text
of the answer, not with its headers; a stream that breaks off, or that its engine gave up, has failed although it began
with 200.

The generator runs against clusters of one's own only, and ends: counts, durations and waiting have bounds.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

MAX_REQUESTS = 100_000
MAX_DURATION_S = 3600.0
CHARACTERS_PER_TOKEN = 4
_TOO_MANY_REQUESTS = 429
_LONGEST_PROMPT_TOKENS = 8192
_LONGEST_OUTPUT_TOKENS = 2048
_FILLER = "lorem ipsum dolor sit amet " * 2000
_DONE = b"data: [DONE]"


@dataclass(frozen=True, slots=True)
class LoadClass:
    """One kind of request.

    Attributes:
        share: Part of all requests, relative to the other classes'.
        prompt_tokens, output_tokens: Mean lengths.
        prompt_cv, output_cv: Their coefficients of variation; 0 for lengths that are all the same.
        model: What the requests ask for.
    """

    name: str
    share: float = 1.0
    prompt_tokens: float = 512.0
    output_tokens: float = 128.0
    prompt_cv: float = 0.0
    output_cv: float = 0.0
    model: str = "auto"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request to come, `at_s` seconds after the first."""

    at_s: float
    kind: LoadClass
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one request.

    Attributes:
        start_s: When it was sent, in seconds since the epoch.
        lag_s: How much later that was than planned; large values mean that the generator was short of CPU.
        status: HTTP status; 0 where there was no answer.
        model, pod: Who answered.
        ttft_s: Time to the first text; None where none came. For plain answers, the time to the whole.
        e2e_s: Time to the end of the answer, or to its failure.
        error: Why it failed; empty where it did not.
    """

    request_class: str
    asked: str
    start_s: float
    lag_s: float
    status: int = 0
    model: str = ""
    pod: str = ""
    ttft_s: float | None = None
    e2e_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""

    @property
    def answered(self) -> bool:
        """Whether the whole answer came."""
        return not self.error

    @property
    def refused(self) -> bool:
        """Whether the router shed it, as it may."""
        return self.status == _TOO_MANY_REQUESTS

    @property
    def failed(self) -> bool:
        """Whether it ended in any other way."""
        return not self.answered and not self.refused


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of some requests; latencies are those of the answered ones, in seconds, NaN where there is none.

    Attributes:
        shares: Part of the answered requests by answering model.
        inter_token_mean_s: Mean over all tokens after the first.
        lag_p99_s: 99th percentile of the generator's own delay.
    """

    sent: int
    answered: int
    refused: int
    failed: int
    shares: dict[str, float]
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    inter_token_mean_s: float
    e2e_p95_s: float
    lag_p99_s: float


def arrivals(
    classes: Sequence[LoadClass],
    rate_rps: float,
    *,
    duration_s: float | None = None,
    count: int | None = None,
    seed: int = 0,
) -> list[Arrival]:
    """The requests of one run, in order; equal arguments give equal requests.

    Raises:
        ValueError: Neither a duration nor a count is given, or the run would be longer than the bounds allow.
    """
    if duration_s is None and count is None:
        message = "give duration_s or count: a load has an end"
        raise ValueError(message)
    horizon_s = MAX_DURATION_S if duration_s is None else duration_s
    expected = rate_rps * horizon_s
    limit = int(expected + 8 * expected**0.5 + 8) if count is None else count
    if horizon_s > MAX_DURATION_S or limit > MAX_REQUESTS:
        message = f"at most {MAX_REQUESTS} requests in {MAX_DURATION_S:g} s, not {limit} in {horizon_s:g} s"
        raise ValueError(message)
    random = np.random.default_rng(seed)
    times_s = np.cumsum(random.exponential(1 / rate_rps, limit))
    shares = np.array([each.share for each in classes])
    kinds = random.choice(len(classes), size=limit, p=shares / shares.sum())
    normals = random.standard_normal((limit, 2))
    return [
        Arrival(
            float(at_s),
            classes[kind],
            _length(classes[kind].prompt_tokens, classes[kind].prompt_cv, prompt, _LONGEST_PROMPT_TOKENS),
            _length(classes[kind].output_tokens, classes[kind].output_cv, output, _LONGEST_OUTPUT_TOKENS),
        )
        for at_s, kind, (prompt, output) in zip(times_s, kinds, normals, strict=True)
        if at_s <= horizon_s
    ]


def _length(mean: float, cv: float, normal: float, longest: int) -> int:
    """A log-normal length of this mean and coefficient of variation, from a standard normal draw."""
    variance = np.log1p(cv**2)
    drawn = mean * np.exp(normal * variance**0.5 - variance / 2)
    return int(min(longest, max(1, round(drawn))))


async def send(
    url: str,
    classes: Sequence[LoadClass],
    rate_rps: float,
    *,
    duration_s: float | None = None,
    count: int | None = None,
    seed: int = 0,
    stream: bool = True,
    patience_s: float = 60.0,
    stop: asyncio.Event | None = None,
    on_record: Callable[[Record], None] = lambda _: None,
) -> list[Record]:
    """Send chat completions that are drawn by ``arrivals``, and wait for every answer.

    Args:
        url: The router, such as ``http://chat-router.llm.svc``; no host outside the cluster is accepted.
        classes: What to send, each in its share.
        rate_rps: Mean rate over all classes.
        duration_s: The load ends after it, or after ``count`` if that comes first.
        count: Requests at most.
        seed: Of the moments, classes and lengths.
        stream: Ask for streams, as interactive clients do.
        patience_s: How long one answer may take before it counts as failed.
        stop: Ends the load early when set; what was sent is still waited for.
        on_record: Called as each request ends.

    Returns:
        One record per request sent, in the order of sending.

    Raises:
        ValueError: The host is not a cluster's own, or the load has no end within the bounds.
    """
    planned = arrivals(classes, rate_rps, duration_s=duration_s, count=count, seed=seed)
    return await send_arrivals(url, planned, seed=seed, stream=stream, patience_s=patience_s, stop=stop, on_record=on_record)


async def send_arrivals(
    url: str,
    planned: Sequence[Arrival],
    *,
    seed: int = 0,
    stream: bool = True,
    patience_s: float = 60.0,
    stop: asyncio.Event | None = None,
    on_record: Callable[[Record], None] = lambda _: None,
) -> list[Record]:
    """Send given requests, such as those of a trace, at their moments; the other arguments are those of ``send``.

    Raises:
        ValueError: The host is not a cluster's own, the load is beyond the bounds, or not in order.
    """
    _refuse_foreign(url)
    _refuse_endless(planned)
    stop = stop or asyncio.Event()
    timeout = aiohttp.ClientTimeout(total=patience_s)
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=1)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=2**20) as session:
        start_s = time.monotonic()
        tasks: list[asyncio.Task[Record]] = []
        for index, arrival in enumerate(planned):
            await _until(start_s + arrival.at_s, stop)
            if stop.is_set():
                break
            call = _Call(session, f"{url.rstrip('/')}/v1/chat/completions", arrival, f"{seed}-{index}", stream)
            tasks.append(asyncio.create_task(call.run(time.monotonic() - start_s - arrival.at_s)))
            tasks[-1].add_done_callback(lambda task: None if task.cancelled() else on_record(task.result()))
        return list(await asyncio.gather(*tasks))


def _refuse_endless(planned: Sequence[Arrival]) -> None:
    if any(later.at_s < earlier.at_s for earlier, later in itertools.pairwise(planned)):
        message = "requests are sent in the order of their times"
        raise ValueError(message)
    last_s = planned[-1].at_s if planned else 0.0
    if last_s > MAX_DURATION_S or len(planned) > MAX_REQUESTS:
        message = f"at most {MAX_REQUESTS} requests in {MAX_DURATION_S:g} s, not {len(planned)} in {last_s:g} s"
        raise ValueError(message)


def _refuse_foreign(url: str) -> None:
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
        own = address.is_loopback or address.is_private
    except ValueError:
        own = host == "localhost" or host.rstrip(".").endswith((".svc", ".svc.cluster.local"))
    if not own:
        message = f"{host or url} is no address of a cluster of one's own"
        raise ValueError(message)


async def _until(moment_s: float, stop: asyncio.Event) -> None:
    delay_s = moment_s - time.monotonic()
    if delay_s > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), delay_s)


class _Call:
    """One request on its way."""

    def __init__(self, session: aiohttp.ClientSession, url: str, arrival: Arrival, mark: str, stream: bool) -> None:
        self._session = session
        self._url = url
        self._arrival = arrival
        self._stream = stream
        content = f"{mark} {_FILLER}"[: arrival.prompt_tokens * CHARACTERS_PER_TOKEN]
        self._body = {
            "model": arrival.kind.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": arrival.output_tokens,
            "ignore_eos": True,
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        }
        self._found: dict[str, Any] = {}

    async def run(self, lag_s: float) -> Record:
        """Send it, read the answer, say what became of it."""
        kind = self._arrival.kind
        wall_s, start_s = time.time(), time.monotonic()
        try:
            async with self._session.post(self._url, json=self._body, headers=kind.headers) as answer:
                self._found["status"] = answer.status
                if answer.status != 200:
                    self._found["error"] = f"HTTP {answer.status}: {(await answer.text())[:200]}"
                elif self._stream:
                    await self._read_stream(answer.content, start_s)
                else:
                    self._read_whole(await answer.json())
                    self._found["ttft_s"] = time.monotonic() - start_s
        except TimeoutError:
            self._found["error"] = "no whole answer in time"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._found["error"] = f"{type(error).__name__}: {error}"[:200]
        return Record(
            request_class=kind.name,
            asked=kind.model,
            start_s=wall_s,
            lag_s=lag_s,
            e2e_s=time.monotonic() - start_s,
            **self._found,
        )

    async def _read_stream(self, content: aiohttp.StreamReader, start_s: float) -> None:
        """Only the first text and the end are looked into: parsing every token would cost more than all the rest."""
        head = b""
        tail = b""
        async for piece in content.iter_any():
            if "ttft_s" not in self._found:
                head += piece
                self._look_for_text(head, start_s)
            tail = (tail + piece)[-4096:]
        self._read_end(tail)

    def _look_for_text(self, head: bytes, start_s: float) -> None:
        for event in _events(head):
            if any(choice["delta"].get("content") for choice in event["choices"]):
                self._found |= {"ttft_s": time.monotonic() - start_s} | _answerer(event)
                return

    def _read_end(self, tail: bytes) -> None:
        # The first event of the tail may be cut: what counts stands in the last two.
        events = _events(tail[tail.find(b"data: ") :])
        reasons = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
        usage = next((event["usage"] for event in events if event.get("usage")), None)
        if _DONE not in tail or usage is None:
            self._found["error"] = "the stream broke off"
        elif reasons[-1:] != ["length"]:
            self._found["error"] = f"the engine ended the answer with {reasons[-1:] or 'no reason'}"
        else:
            self._found |= _lengths(usage)

    def _read_whole(self, body: Mapping[str, Any]) -> None:
        self._found |= _answerer(body) | _lengths(body["usage"])
        reason = body["choices"][0]["finish_reason"]
        if reason != "length":
            self._found["error"] = f"the engine ended the answer with {reason}"


def _events(text: bytes) -> list[dict[str, Any]]:
    """The whole events in a piece of a stream."""
    lines = text.split(b"\n\n")[:-1]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: {")]


def _answerer(event: Mapping[str, Any]) -> dict[str, str]:
    return {"model": event["model"], "pod": event.get("system_fingerprint") or ""}


def _lengths(usage: Mapping[str, int]) -> dict[str, int]:
    return {"prompt_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}


def by_class(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by class, in the order of the names."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.request_class, []).append(record)
    return dict(sorted(found.items()))


def summarise(records: Iterable[Record]) -> Summary:
    """What some requests amount to."""
    every = list(records)
    good = [record for record in every if record.answered]
    ttfts_s = np.array([record.ttft_s for record in good if record.ttft_s is not None])
    further = [(record.e2e_s - record.ttft_s, record.output_tokens - 1) for record in good if record.ttft_s is not None]
    tokens = sum(count for _, count in further)
    models = sorted({record.model for record in good})
    return Summary(
        sent=len(every),
        answered=len(good),
        refused=sum(record.refused for record in every),
        failed=sum(record.failed for record in every),
        shares={model: sum(record.model == model for record in good) / len(good) for model in models},
        ttft_mean_s=float(ttfts_s.mean()) if len(ttfts_s) else float("nan"),
        ttft_p50_s=_percentile(ttfts_s, 50),
        ttft_p95_s=_percentile(ttfts_s, 95),
        inter_token_mean_s=sum(seconds for seconds, _ in further) / tokens if tokens else float("nan"),
        e2e_p95_s=_percentile(np.array([record.e2e_s for record in good]), 95),
        lag_p99_s=_percentile(np.array([record.lag_s for record in every]), 99),
    )


def _percentile(values_s: np.ndarray, percentile: float) -> float:
    return float(np.percentile(values_s, percentile)) if len(values_s) else float("nan")
