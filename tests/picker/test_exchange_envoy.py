"""The Envoy that the operator renders asks the picker, in one message a request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from servingplan.api.routing_table import WEIGHT_TOTAL, ClassEntry, ModelEntry, Picker, Pool, RoutingTable
from servingplan.routing.ask import Choice, Reason

CHAT = "/v1/chat/completions"
CODE = {"x-request-class": "code"}


def _router_parts() -> Any:
    spec = spec_from_file_location("exchange_router", Path(__file__).parents[1] / "router" / "conftest.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def upstreams(start_upstream):
    return {name: start_upstream(name) for name in ("large", "small")}


@pytest.fixture(scope="module")
def made(upstreams) -> RoutingTable:
    """A plan whose weights send all to the small model."""
    models = []
    for name, upstream in upstreams.items():
        address, port = upstream.address.split(":")
        pool = Pool(name=f"chat-{name}", setup="s", address=address, port=int(port))
        models.append(ModelEntry(name=name, pools=(pool,), weights={pool.name: WEIGHT_TOTAL}))
    quality, weights = {"large": 0.9, "small": 0.5}, {"chat-small": WEIGHT_TOTAL}
    classes = (
        ClassEntry(name="code", headers=CODE, weights=weights, quality=quality),
        ClassEntry(name="chat", weights=weights, quality=quality),
    )
    picker = Picker(per_dollar=0, per_second=0, explain=True)
    return RoutingTable(namespace="llm", plan="chat", generation=1, models=tuple(models), classes=classes, picker=picker)


@pytest.fixture(scope="module")
def started(tmp_path_factory, made, start_picker, until):
    router = _router_parts().Router(tmp_path_factory.mktemp("one") / "router", made)
    picker = start_picker(f"unix:{router.paths.picker_socket}", body_limit_bytes=1024 * 1024)
    until(router.is_serving, "Envoy serves")
    yield router, picker
    router.close()


@pytest.fixture
def pod(started, made, upstreams, until):
    """Envoy and a picker that sends all to the large model."""
    router, picker = started
    picker.given.table = made
    picker.given.brain.pick(upstreams["large"].address)
    until(lambda: ask(router)[2] and picker.given.brain.asks, "Envoy asks the picker")
    until(lambda: not picker.given.brain.in_flight, "nothing is in flight")
    picker.given.brain.asks.clear()
    picker.receipts.lines.clear()
    return router, picker


def ask(
    router: Any, body: Any = None, headers: Mapping[str, str] | None = None, path: str = CHAT
) -> tuple[int, Mapping[str, str], Any]:
    """Status, headers and document of one answer."""

    async def once():
        data = {"messages": [{"role": "user", "content": "hello"}]} | (body or {})
        async with aiohttp.ClientSession() as session, session.post(router.url + path, json=data, headers=headers) as answer:
            return answer.status, answer.headers, json.loads(await answer.text())

    return asyncio.run(once())


def test_the_pick_is_obeyed_with_all_that_the_request_asks_for(pod):
    router, picker = pod
    asked = CODE | {
        "x-llm-d-slo-ttft-ms": "300",
        "x-slo-tpot-ms": "40",
        "x-servingplan-e2e-ms": "9000",
        "x-servingplan-budget": "0.25",
        "x-servingplan-min-quality": "0.5",
        "x-servingplan-priority": "0.5",
        "x-gateway-inference-fairness-id": "team",
    }
    assert ask(router, {"max_tokens": 7}, asked)[2]["upstream"] == "large"
    (found,) = picker.given.brain.asks
    assert (found.request_class, found.tenant, found.max_output_tokens) == ("code", "team", 7)
    limits = (found.ttft_slo_s, found.inter_token_slo_s, found.e2e_slo_s, found.budget, found.min_quality, found.weight)
    assert limits == pytest.approx((0.3, 0.04, 9.0, 0.25, 0.5, 0.5))


def test_the_model_of_the_body_is_obeyed_and_a_class_without_headers_takes_the_rest(pod):
    router, picker = pod
    assert ask(router, {"model": "large"})[2]["upstream"] == "large"
    (found,) = picker.given.brain.asks
    assert (found.models, found.request_class) == ({"large"}, "chat")


def test_the_receipt_bears_the_requests_name_and_reaches_whoever_asks(pod):
    router, picker = pod
    _, headers, _ = ask(router, None, {"x-request-id": "r-1", "x-servingplan-explain": "true"})
    (line,) = picker.receipts.lines
    assert json.loads(line)["request_id"] == "r-1"
    assert json.loads(headers["x-servingplan-decision"])["class"] == "chat"
    assert "x-servingplan-decision" not in ask(router)[1]


@pytest.mark.parametrize(
    ("choice", "body", "headers", "status", "kind"),
    [
        (Choice((), None, 429, 3.0, None, Reason.OVERLOAD), {}, {}, 429, "RateLimitError"),
        (Choice((), None, 503, 0.0, None), {}, {}, 503, "ServiceUnavailableError"),
        (None, {"model": "none"}, {}, 404, "NotFoundError"),
        (None, {}, {"x-servingplan-budget": "much"}, 400, "BadRequestError"),
        (None, {"user": "x" * 1024 * 1024}, {}, 413, "BadRequestError"),
    ],
    ids=["shed", "nobody", "unknown model", "bad header", "too long"],
)
def test_a_refusal_reaches_the_client(pod, choice, body, headers, status, kind):
    router, picker = pod
    if choice:
        picker.given.brain.choice = choice
    found, answer, document = ask(router, body, headers)
    assert (found, document["error"]["type"]) == (status, kind)
    assert ("retry-after" in answer) == (status in {429, 503})
    assert not picker.given.brain.in_flight


@pytest.mark.parametrize("leaves", [False, True], ids=["ends", "leaves"])
def test_the_reservation_is_held_until_the_answer_has_ended(pod, upstreams, until, leaves):
    router, picker = pod
    large = upstreams["large"]
    large.mode = "hold"

    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:
            answer = await session.post(router.url + CHAT, json={"stream": True})
            assert await answer.content.readline() == b"data: large\n"
            assert len(picker.given.brain.in_flight) == 1
            if leaves:
                answer.close()
            else:
                large.release()
                await answer.read()
            await asyncio.to_thread(until, lambda: not picker.given.brain.in_flight, "it is released")

    try:
        asyncio.run(scenario())
    finally:
        large.mode = "ok"
        large.release()


def test_a_decision_that_fails_leaves_the_request_to_the_weights(pod):
    router, picker = pod
    picker.given.brain.error = ValueError("hello")
    try:
        assert ask(router)[2]["upstream"] == "small"
    finally:
        picker.given.brain.error = None
