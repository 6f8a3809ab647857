"""A real Envoy asks the picker, in each way in which it may send the body."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from servingplan.routing.ask import Choice, Outcome, Reason

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
MODES = ("BUFFERED", "NONE", "FULL_DUPLEX_STREAMED", "STREAMED")
READING = ("BUFFERED", "FULL_DUPLEX_STREAMED")


@pytest.fixture(scope="module")
def first(start_upstream):
    return start_upstream("first")


@pytest.fixture(scope="module")
def second(start_upstream):
    return start_upstream("second")


@pytest.fixture(scope="module")
def spare(start_upstream):
    return start_upstream("spare")


@pytest.fixture(scope="module", params=["port", "socket"])
def new_address(request, tmp_path_factory):
    """Makes where a picker listens: with gRPC's server, or with our own."""
    return lambda: "127.0.0.1:0" if request.param == "port" else f"unix:{tmp_path_factory.mktemp('picker') / 'picker.sock'}"


@pytest.fixture(scope="module")
def shared_picker(start_picker, new_address):
    return start_picker(new_address(), body_limit_bytes=12 * 1024 * 1024)


@pytest.fixture
def picker(shared_picker, table):
    brain = shared_picker.given.brain
    shared_picker.given.table, shared_picker.given.predict = table(explain=True), None
    brain.error = None
    brain.asks.clear()
    brain.ended.clear()
    brain.first_bytes.clear()
    return shared_picker


@pytest.fixture(scope="module")
def routers(shared_picker, first, second, spare, start_router):
    made: dict[str, Any] = {}

    def of(mode: str):
        if mode not in made:
            made[mode] = start_router(shared_picker, [first.address, second.address], spare.address, mode)
        return made[mode]

    return of


def ask(router, body: Any = b"{}", headers: Mapping[str, str] = JSON, path: str = CHAT):
    """Status, headers and text of one answer."""

    async def once():
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with aiohttp.ClientSession() as session, session.post(router.url + path, data=data, headers=headers) as answer:
            return answer.status, answer.headers, await answer.text()

    return asyncio.run(once())


def answered_by(router, *arguments: Any, **fields: Any) -> str | int:
    status, _, text = ask(router, *arguments, **fields)
    return json.loads(text)["upstream"] if status == 200 else status


@pytest.mark.parametrize("mode", MODES)
def test_a_pick_is_obeyed_and_released_when_the_answer_has_ended(mode, routers, picker, first, second, body, until):
    router, brain = routers(mode), picker.given.brain
    for upstream in (first, second):
        brain.pick(upstream.address)
        assert answered_by(router, body(model="large.v1")) == upstream.name
    until(lambda: not brain.in_flight, "the reservations are released")
    assert [outcome for _, outcome, _ in brain.ended] == [Outcome.CANCELLED] * 2


@pytest.mark.parametrize("mode", ("BUFFERED", "NONE", "FULL_DUPLEX_STREAMED"))
def test_the_model_of_the_body_is_known(mode, routers, picker, first, body):
    picker.given.brain.pick(first.address)
    for model, models in (("large.v1", {"large.v1"}), ("auto", None), ("chat", None)):
        assert answered_by(routers(mode), body(model=model)) == "first"
        assert picker.given.brain.asks[-1].models == models
    status, _, text = ask(routers(mode), body(model="gpt-5"))
    error = json.loads(text)["error"]
    assert (status, error["type"], error["param"], error["code"]) == (404, "NotFoundError", "model", 404)
    assert "chat, large.v1, small.v1" in error["message"]


@pytest.mark.parametrize("mode", MODES)
def test_the_body_arrives_whole(mode, routers, picker, first):
    picker.given.brain.pick(first.address)
    for size in (0, 1, 62_000, 62_001, 200_000):
        answer = json.loads(ask(routers(mode), b"x" * size)[2])
        assert (answer["upstream"], answer["bytes"]) == ("first", size)


@pytest.mark.parametrize("mode", READING)
def test_ten_megabytes_are_decided_like_any_other(mode, routers, picker, first, body):
    picker.given.brain.pick(first.address)
    answer = json.loads(ask(routers(mode), body("word " * 2_000_000))[2])
    assert answer["bytes"] > 10_000_000
    assert picker.given.brain.asks[-1].prompt_tokens == pytest.approx(2_500_000, rel=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_a_body_over_the_limit_is_refused(mode, routers, picker):
    status, _, text = ask(routers(mode), b"x" * (13 * 1024 * 1024))
    assert (status, json.loads(text)["error"]["type"]) == (413, "BadRequestError")


def test_a_body_of_unknown_length_over_the_limit_is_refused(routers, picker):
    async def once():
        async def parts():
            for _ in range(13):
                yield b"x" * 1024 * 1024

        url = routers("FULL_DUPLEX_STREAMED").url + CHAT
        async with aiohttp.ClientSession() as session, session.post(url, data=parts(), headers=JSON) as answer:
            return answer.status

    with contextlib.suppress(aiohttp.ClientError):
        assert asyncio.run(once()) == 413
    assert not picker.given.brain.asks


def test_a_request_that_is_shed_is_told_when_to_come_again(routers, picker):
    for mode in MODES:
        picker.given.brain.choice = Choice((), None, 429, 3.2, None, Reason.OVERLOAD)
        status, headers, text = ask(routers(mode))
        assert (status, headers["retry-after"], headers["x-llm-d-request-dropped-reason"]) == (429, "4", "shed")
        assert json.loads(text)["error"]["type"] == "RateLimitError"


def test_503_where_nobody_may_serve(routers, picker):
    for mode in MODES:
        picker.given.brain.choice = Choice((), None, 503, 0.0, None, Reason.NOBODY)
        status, headers, text = ask(routers(mode))
        assert (status, json.loads(text)["error"]["type"]) == (503, "ServiceUnavailableError")
        assert int(headers["retry-after"]) > 0


@pytest.mark.parametrize("mode", ("BUFFERED", "NONE", "FULL_DUPLEX_STREAMED"))
def test_a_dead_or_resetting_pod_is_followed_by_the_next_candidate(mode, routers, picker, second, start_upstream, start_router):
    gone, resetting = start_upstream("gone"), start_upstream("resetting")
    gone.stop()
    resetting.mode = "reset"
    router = start_router(picker, [gone.address, resetting.address, second.address], second.address, mode)
    for bad in (gone, resetting):
        picker.given.brain.pick(bad.address, second.address)
        assert answered_by(router) == "second"
    assert resetting.requests == 1


def test_other_paths_go_on_without_a_pick(routers, picker, first, spare):
    picker.given.brain.pick(first.address)
    for mode in MODES:
        assert answered_by(routers(mode), path="/v1/models") == "spare"
    assert not picker.given.brain.asks


def test_a_client_cannot_choose_an_endpoint(routers, picker, first, second):
    picker.given.brain.pick(first.address)
    spoofed = JSON | {
        "x-gateway-destination-endpoint": second.address,
        "x-gateway-destination-endpoint-subset": second.address,
        "x-llm-d-model-name-rewrite": "small.v1",
        "test-epp-endpoint-selection": second.address,
    }
    for mode in MODES:
        assert answered_by(routers(mode), headers=spoofed) == "first"
        assert answered_by(routers(mode), headers=spoofed, path="/v1/models") == "spare"
    assert {ask.subset for ask in picker.given.brain.asks} == {None}
    picker.given.table = None
    assert answered_by(routers("BUFFERED"), headers=spoofed) == "spare"


def test_the_gateways_subset_narrows_the_choice(routers, picker, first):
    picker.given.brain.pick(first.address)
    ask(routers("BUFFERED"), headers=JSON | {"x-test-subset": "10.0.0.1:8000, 10.0.0.2:8000"})
    assert picker.given.brain.asks[-1].subset == {"10.0.0.1:8000", "10.0.0.2:8000"}


def test_the_receipt_comes_back_to_whoever_asks_and_may(routers, picker, table, first, body):
    picker.given.brain.pick(first.address)
    asks = JSON | {"x-servingplan-explain": "true"}
    for mode in ("BUFFERED", "NONE", "FULL_DUPLEX_STREAMED"):
        receipt = json.loads(ask(routers(mode), headers=asks)[1]["x-servingplan-decision"])
        assert receipt["candidates"] == [first.address]
        assert receipt["terms"]["ttft_s"] == 0.25
        assert "x-servingplan-decision" not in ask(routers(mode))[1]
    picker.given.table = table(explain=False)
    assert "x-servingplan-decision" not in ask(routers("BUFFERED"), headers=asks)[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_leaves_releases_the_reservation(mode, routers, picker, start_upstream, start_router, until):
    held = start_upstream("held")
    held.mode = "hold"
    router, brain = start_router(picker, [held.address], held.address, mode), picker.given.brain
    brain.pick(held.address)
    address = urlsplit(router.url)
    for reads in (True, False):
        client = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
        client.request("POST", CHAT, b"{}", JSON)
        if reads:
            assert client.getresponse().readline() == b"data: held\n"
        until(lambda: len(brain.in_flight) == 1, "the request is in flight")
        client.close()
        until(lambda: not brain.in_flight, "the reservation is released")


def test_a_gateway_that_shows_the_response_gets_it_back(picker, first, start_router, start_upstream, until):
    shown = {"response_header_mode": "SEND", "response_body_mode": "FULL_DUPLEX_STREAMED", "response_trailer_mode": "SEND"}
    router = start_router(picker, [first.address], first.address, "FULL_DUPLEX_STREAMED", **shown)
    picker.given.brain.pick(first.address)
    assert json.loads(ask(router, b"x" * 100_000)[2])["bytes"] == 100_000
    until(lambda: picker.given.brain.ended, "the request has ended")
    ticket, outcome, _ = picker.given.brain.ended[0]
    assert ([ticket], outcome) == ([number for number, _ in picker.given.brain.first_bytes], Outcome.COMPLETED)


def test_a_decision_that_fails_leaves_the_request_to_the_weights(routers, picker, first, body, caplog):
    picker.given.brain.error = ValueError("secret-prompt")
    for mode in ("BUFFERED", "NONE", "FULL_DUPLEX_STREAMED"):
        assert answered_by(routers(mode), body("secret-prompt")) == "spare"
    assert caplog.text.count("ValueError") == 1, "it is said once, not for every request"
    assert "secret" not in caplog.text


def test_no_prompt_is_in_a_log_a_metric_or_a_receipt(routers, picker, first, body, capfd):
    picker.given.brain.pick(first.address)
    secret = "confidential-words " * 100
    for sent in (body(secret, user="secret-user"), body(secret)[:-3], body(secret, model=secret)):
        ask(routers("BUFFERED"), sent, JSON | {"authorization": "Bearer confidential-key", "x-servingplan-explain": "1"})
    written = "".join(picker.receipts.lines) + picker.get("/metrics")[1] + "".join(capfd.readouterr())
    assert picker.receipts.lines
    assert "confidential" not in written
    assert "secret" not in written


class TestWithoutThePicker:
    """The weights serve on when the picker does not."""

    @pytest.fixture
    def own(self, start_picker, new_address, first):
        picker = start_picker(new_address())
        picker.given.brain.pick(first.address)
        return picker

    @pytest.fixture
    def alone(self, start_picker, new_address, own_loop, first):
        """A picker that shares its loop with nobody."""
        picker = start_picker(new_address(), on=own_loop)
        picker.given.brain.pick(first.address)
        yield picker
        picker.stop()

    @pytest.mark.parametrize("mode", ("BUFFERED", "NONE"))
    def test_it_hangs(self, mode, alone, first, spare, start_router, until):
        router = start_router(alone, [first.address], spare.address, mode, patience_s=0.2)
        assert answered_by(router) == "first"
        with alone.hanging():
            assert answered_by(router) == "spare"
            assert router.stat("http.ingress.ext_proc.message_timeouts") == 1, "Envoy trusted it, asked and waited"
        until(lambda: answered_by(router) == "first", "Envoy asks it again")

    @pytest.mark.parametrize("mode", ("BUFFERED", "NONE"))
    def test_it_drains_and_dies_while_an_answer_is_under_way(self, mode, own, start_upstream, spare, start_router, until):
        held = start_upstream("held")
        held.mode = "hold"
        own.given.brain.pick(held.address)
        router = start_router(own, [held.address], spare.address, mode)

        async def scenario() -> str:
            url = router.url + CHAT
            async with aiohttp.ClientSession() as session, session.post(url, data=b"{}", headers=JSON) as answer:
                assert await answer.content.readline() == b"data: held\n"
                stopping = asyncio.create_task(asyncio.to_thread(own.stop))
                await asyncio.to_thread(until, lambda: not router.trusts_the_picker(), "Envoy asks it no more")
                async with session.post(url, data=b"{}", headers=JSON) as other:
                    assert (await other.json())["upstream"] == "spare"
                assert not stopping.done()
                held.release()
                rest = await answer.text()
                await stopping
                return rest

        assert asyncio.run(scenario()).endswith("[DONE]\n\n")
        assert not own.given.brain.in_flight
        assert answered_by(router) == "spare"

    def test_it_is_not_ready(self, own, first, spare, start_router, until):
        router = start_router(own, [first.address], spare.address)
        assert answered_by(router) == "first"
        own.given.is_ready = False
        until(lambda: not router.trusts_the_picker(), "Envoy asks it no more")
        assert answered_by(router) == "spare"
        own.given.is_ready = True
        until(lambda: answered_by(router) == "first", "Envoy asks it again")


def test_it_serves_on_a_socket_and_takes_over_one_that_was_left(start_picker, start_router, first, spare, tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "picker.sock"
    old = start_picker(f"unix:{path}")
    old.given.brain.pick(first.address)
    assert answered_by(start_router(old, [first.address], spare.address)) == "first"
    assert path.stat().st_mode & 0o777 == 0o666
    new = start_picker(f"unix:{path}")
    new.given.brain.pick(first.address)
    assert answered_by(start_router(new, [first.address], spare.address)) == "first"
    assert new.given.brain.asks
