"""The load generator sends what it says, measures what came back, and ends."""

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
from aiohttp import web

from testbed import traces
from testbed.load import Arrival, LoadClass, Record, arrivals, by_class, send, send_arrivals, summarise

CODE = LoadClass("code", share=1, prompt_tokens=100, output_tokens=4, headers={"x-request-class": "code"})
CHAT = LoadClass("chat", share=3, prompt_tokens=50, output_tokens=8, model="chat")


def test_equal_seeds_give_equal_requests_and_others_do_not() -> None:
    first = arrivals([CODE, CHAT], 50, duration_s=10, seed=3)
    assert first == arrivals([CODE, CHAT], 50, duration_s=10, seed=3)
    assert first != arrivals([CODE, CHAT], 50, duration_s=10, seed=4)


def test_arrivals_are_poisson_at_the_rate_and_keep_the_shares_of_the_classes() -> None:
    found = arrivals([CODE, CHAT], 100, duration_s=200)
    gaps_s = np.diff([arrival.at_s for arrival in found])
    assert found[-1].at_s <= 200
    assert len(found) == pytest.approx(20_000, rel=0.03)
    # An exponential's deviation is its mean; a steady drip would have none.
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.03)
    assert Counter(arrival.kind.name for arrival in found)["chat"] / len(found) == pytest.approx(0.75, abs=0.01)


def test_lengths_keep_their_mean_and_variation_and_are_constant_without_variation() -> None:
    kind = LoadClass("varied", prompt_tokens=300, prompt_cv=0.5, output_tokens=200)
    found = arrivals([kind], 100, count=20_000)
    prompts = np.array([arrival.prompt_tokens for arrival in found])
    assert prompts.mean() == pytest.approx(300, rel=0.02)
    assert prompts.std() / prompts.mean() == pytest.approx(0.5, rel=0.05)
    assert {arrival.output_tokens for arrival in found} == {200}


def test_a_load_without_an_end_or_beyond_the_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="a load has an end"):
        arrivals([CHAT], 1)
    with pytest.raises(ValueError, match="at most 100000 requests"):
        arrivals([CHAT], 1, count=100_001)
    with pytest.raises(ValueError, match="at most 100000 requests"):
        arrivals([CHAT], 1000, duration_s=3600)


@pytest.mark.parametrize("host", ["example.com", "8.8.8.8", "svc.example.com"])
def test_only_a_cluster_of_ones_own_is_sent_to(host: str) -> None:
    with pytest.raises(ValueError, match="no address of a cluster"):
        asyncio.run(send(f"http://{host}", [CHAT], 1, count=1))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def load(handler: Handler, *classes: LoadClass, count: int = 1, **options: object) -> list[Record]:
    async def run() -> list[Record]:
        async with serving(handler) as url:
            return await send(url, classes or [CHAT], 200, count=count, **options)  # type: ignore[arg-type]

    return asyncio.run(run())


def event(content: str | None, reason: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    body = {
        "model": "small",
        "system_fingerprint": "chat-small-5d4f-x1",
        "choices": [{"delta": delta, "finish_reason": reason}],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def end(tokens: int) -> bytes:
    usage = {"prompt_tokens": 12, "completion_tokens": tokens}
    return b"data: " + json.dumps({"model": "small", "choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"


async def stream(request: web.Request, *pieces: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
    return response


async def answering(request: web.Request) -> web.StreamResponse:
    tokens = (await request.json())["max_tokens"]
    return await stream(request, event(""), *[event("word")] * (tokens - 1), event("word", "length"), end(tokens))


def test_requests_carry_their_class_their_lengths_and_prompts_of_their_own() -> None:
    seen = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers.get("x-request-class"), await request.json()))
        return await answering(request)

    records = load(handler, CODE, CHAT, count=60)
    assert [record.error for record in records] == [""] * 60
    assert Counter(header or "chat" for header, _ in seen) == Counter(record.request_class for record in records)
    assert {(header, body["model"], body["max_tokens"]) for header, body in seen} == {("code", "auto", 4), (None, "chat", 8)}
    prompts = [body["messages"][0]["content"] for _, body in seen]
    assert len(set(prompts)) == 60
    assert {len(prompt) for prompt in prompts} == {400, 200}


def test_a_stream_tells_who_answered_and_its_first_text_ends_the_time_to_first_token() -> None:
    headers_sent = asyncio.Event()

    async def run() -> list[Record]:
        text_may_come = asyncio.Event()

        async def handler(request: web.Request) -> web.StreamResponse:
            response = await stream(request, event(""))
            headers_sent.set()
            await text_may_come.wait()
            # The text comes in two packets: half an event must not be taken for one.
            first = event("word")
            await response.write(first[:20])
            await response.write(first[20:] + event("word", "length") + end(2))
            return response

        async with serving(handler) as url:
            sending = asyncio.create_task(send(url, [CHAT], 200, count=1))
            await asyncio.wait_for(headers_sent.wait(), 10)
            loop = asyncio.get_running_loop()
            loop.call_later(0.2, text_may_come.set)
            return await asyncio.wait_for(sending, 10)

    (record,) = asyncio.run(run())
    assert record.answered
    assert (record.model, record.pod, record.output_tokens, record.prompt_tokens) == ("small", "chat-small-5d4f-x1", 2, 12)
    assert record.ttft_s is not None
    assert 0.2 <= record.ttft_s <= record.e2e_s


def test_plain_answers_are_read_too() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert (await request.json())["stream"] is False
        choices = [{"message": {"content": "word"}, "finish_reason": "length"}]
        usage = {"prompt_tokens": 5, "completion_tokens": 8}
        return web.json_response({"model": "small", "system_fingerprint": "p", "choices": choices, "usage": usage})

    (record,) = load(handler, stream=False)
    assert record.answered
    assert (record.model, record.pod, record.output_tokens) == ("small", "p", 8)
    assert record.ttft_s is not None


async def _cut(request: web.Request) -> web.StreamResponse:
    response = await stream(request, event("word"))
    assert request.transport is not None
    request.transport.close()
    return response


async def _ends_early(request: web.Request) -> web.StreamResponse:
    return await stream(request, event("word"))


async def _aborted(request: web.Request) -> web.StreamResponse:
    return await stream(request, event("", "abort"), end(0))


async def _never(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    return await answering(request)


async def _unavailable(_: web.Request) -> web.StreamResponse:
    return web.Response(status=503, text="no replica")


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (_cut, "ClientPayloadError"),
        (_ends_early, "the stream broke off"),
        (_aborted, "the engine ended the answer with ['abort']"),
        (_never, "no whole answer in time"),
        (_unavailable, "HTTP 503: no replica"),
    ],
)
def test_an_answer_that_is_not_whole_has_failed(handler: Handler, error: str) -> None:
    (record,) = load(handler, patience_s=0.3)
    assert record.failed
    assert error in record.error


def test_no_server_is_a_failure_and_not_an_exception() -> None:
    (record,) = asyncio.run(send("http://127.0.0.1:9", [CHAT], 200, count=1))
    assert record.failed
    assert record.status == 0


def test_what_the_router_sheds_is_refused_and_not_failed() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=429)

    (record,) = load(handler)
    assert record.refused
    assert not record.failed
    assert not record.answered


def test_a_load_that_is_stopped_waits_for_what_it_has_sent() -> None:
    async def run() -> list[Record]:
        stop, may_end, numbers = asyncio.Event(), asyncio.Event(), itertools.count(1)

        async def handler(request: web.Request) -> web.StreamResponse:
            if next(numbers) == 5:
                stop.set()
                may_end.set()
            await may_end.wait()
            return await answering(request)

        async with serving(handler) as url:
            return await asyncio.wait_for(send(url, [CHAT], 200, duration_s=60, patience_s=10, stop=stop), 20)

    records = asyncio.run(run())
    assert 5 <= len(records) < 6000
    assert all(record.answered for record in records)


def test_every_end_of_a_request_is_told_as_it_happens() -> None:
    told: list[Record] = []
    assert sorted(load(answering, count=20, on_record=told.append), key=lambda r: r.start_s) == sorted(
        told, key=lambda r: r.start_s
    )


def test_a_summary_counts_latencies_of_answered_requests_only() -> None:
    good = Record("chat", "auto", 0.0, 0.01, 200, "small", "p", ttft_s=0.2, e2e_s=1.2, output_tokens=11)
    records = [
        good,
        replace(good, model="large", ttft_s=0.4, e2e_s=2.4, output_tokens=11),
        replace(good, ttft_s=None, error="no whole answer in time"),
        replace(good, request_class="code", status=429, ttft_s=None, error="HTTP 429"),
    ]
    found = summarise(records)
    assert (found.sent, found.answered, found.refused, found.failed) == (4, 2, 1, 1)
    assert found.shares == {"large": 0.5, "small": 0.5}
    assert found.ttft_mean_s == pytest.approx(0.3)
    assert found.inter_token_mean_s == pytest.approx(0.15)
    assert list(by_class(records)) == ["chat", "code"]
    assert np.isnan(summarise([]).ttft_p95_s)


def test_given_requests_are_sent_as_they_are() -> None:
    seen = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers.get("x-request-class"), (await request.json())["max_tokens"]))
        return await answering(request)

    async def run() -> list[Record]:
        planned = [Arrival(0.0, CODE, 10, 3), Arrival(0.15, CHAT, 20, 5), Arrival(0.3, CODE, 30, 2)]
        async with serving(handler) as url:
            return await send_arrivals(url, planned)

    began_s = time.time()
    records = asyncio.run(run())
    assert [record.error for record in records] == [""] * 3
    assert sorted(seen, key=str) == [("code", 2), ("code", 3), (None, 5)]
    assert [record.request_class for record in records] == ["code", "chat", "code"]
    assert records[2].start_s - began_s >= 0.3


def test_given_requests_are_in_order_and_end() -> None:
    late, early = Arrival(2.0, CHAT, 10, 3), Arrival(1.0, CHAT, 10, 3)
    with pytest.raises(ValueError, match="in the order"):
        asyncio.run(send_arrivals("http://127.0.0.1:9", [late, early]))
    with pytest.raises(ValueError, match="at most"):
        asyncio.run(send_arrivals("http://127.0.0.1:9", [Arrival(3601.0, CHAT, 10, 3)]))


def toy_trace() -> traces.Trace:
    """Ten requests: nine in the first second, and one after ten."""
    at_s = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 10.0])
    return traces.Trace(at_s, np.arange(100, 110), np.arange(1, 11))


def test_a_trace_keeps_its_shape_at_another_rate() -> None:
    found = traces.replayed(toy_trace(), CODE, rate_rps=0.5, duration_s=20.0)
    assert [arrival.at_s for arrival in found] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6])
    assert [(arrival.prompt_tokens, arrival.output_tokens) for arrival in found[:2]] == [(100, 1), (101, 2)]


def test_a_trace_goes_on_at_its_beginning_and_may_start_anywhere() -> None:
    found = traces.replayed(toy_trace(), CODE, rate_rps=1.0, duration_s=12.0, offset=0.5, longest_prompt=104, longest_output=3)
    assert [arrival.at_s for arrival in found[:3]] == pytest.approx([5.0, 5.0, 5.1])
    assert {arrival.prompt_tokens for arrival in found} <= set(range(100, 105))
    assert max(arrival.output_tokens for arrival in found) == 3


def test_streams_are_merged_in_order_and_a_steady_one_has_no_noise() -> None:
    found = traces.merged(traces.steady(CODE, 2.0, 3.0), traces.steady(CHAT, 1.0, 3.0, start_s=0.25))
    assert [arrival.at_s for arrival in found] == sorted(arrival.at_s for arrival in found)
    assert Counter(arrival.kind.name for arrival in found) == {"code": 6, "chat": 2}
    assert {arrival.prompt_tokens for arrival in found if arrival.kind is CODE} == {100}


@pytest.mark.skipif(not traces.present(), reason="no traces: SERVINGPLAN_DATA names no folder with them")
@pytest.mark.parametrize(("kind", "requests", "rate_rps"), [("conv", 19_366, 5.5), ("code", 8_819, 2.6)])
def test_the_published_traces_are_read_as_they_are_described(kind: str, requests: int, rate_rps: float) -> None:
    trace = traces.azure(kind)
    assert len(trace.at_s) == requests
    assert trace.rate_rps == pytest.approx(rate_rps, rel=0.02)
    assert (np.diff(trace.at_s) >= 0).all()
    assert trace.output_tokens.min() >= 1
    whole = traces.replayed(trace, CODE, rate_rps=20.0, duration_s=requests / 20.0)
    assert len(whole) == pytest.approx(requests, abs=2)
