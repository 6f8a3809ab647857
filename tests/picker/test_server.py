"""The server on loopback, asked by a gRPC client."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servingplan.picker.asking import Prediction
from servingplan.routing.ask import Outcome

POD = "10.0.0.1:8000"
OTHER = "10.0.0.2:8000"
SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"


@pytest.fixture(params=["port", "socket"])
def picker(request, start_picker, tmp_path):
    picker = start_picker("127.0.0.1:0" if request.param == "port" else f"unix:{tmp_path / 'picker.sock'}")
    picker.given.brain.pick(POD, OTHER)
    yield picker
    picker.stop()


def headers(mode: int = 2, response_mode: int = 0, **sent: str) -> ProcessingRequest:
    named = {
        ":method": "POST",
        ":path": "/v1/chat/completions",
        **{key.replace("_", "-"): value for key, value in sent.items()},
    }
    listed = [{"key": key, "raw_value": value.encode()} for key, value in named.items()]
    return ProcessingRequest(
        request_headers={"headers": {"headers": listed}},
        protocol_config={"request_body_mode": mode, "response_body_mode": response_mode},
    )


def body(text: bytes = b"{}", ends: bool = True) -> ProcessingRequest:
    return ProcessingRequest(request_body={"body": text, "end_of_stream": ends})


def response(status: int = 200, served: str = "") -> ProcessingRequest:
    message = ProcessingRequest(
        response_headers={"headers": {"headers": [{"key": ":status", "raw_value": str(status).encode()}]}}
    )
    if served:
        message.metadata_context.filter_metadata["envoy.lb"].update({"x-gateway-destination-endpoint-served": served})
    return message


def response_body(text: bytes, ends: bool = False) -> ProcessingRequest:
    return ProcessingRequest(response_body={"body": text, "end_of_stream": ends})


@asynccontextmanager
async def stream(picker: Any):
    async with grpc.aio.insecure_channel(picker.target) as channel:
        call = ExternalProcessorStub(channel).Process()
        yield call
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def exchange(call: Any, message: ProcessingRequest) -> Any:
    await call.write(message)
    return await asyncio.wait_for(call.read(), 10)


def run(scenario: Any) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, 20))


def test_a_buffered_body_is_decided_and_its_end_releases(picker, until):
    async def scenario() -> None:
        async with stream(picker) as call:
            assert not (await exchange(call, headers())).request_headers.response.header_mutation.set_headers
            reply = await exchange(call, body(b'{"model": "large.v1", "prompt": "hi", "max_tokens": 5}'))
            assert reply.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == f"{POD},{OTHER}"
            assert len(picker.given.brain.in_flight) == 1

    run(scenario())
    until(lambda: not picker.given.brain.in_flight, "the reservation is released")
    (ask,) = picker.given.brain.asks
    assert (ask.models, ask.max_output_tokens, ask.request_class) == ({"large.v1"}, 5.0, "chat")
    assert picker.given.brain.ended == [(1, Outcome.CANCELLED, None)]


def test_a_full_duplex_body_comes_back_after_the_pick(picker):
    async def scenario() -> bytes:
        async with stream(picker) as call:
            await call.write(headers(mode=4))
            await call.write(body(b'{"prompt": "', ends=False))
            first = await exchange(call, body(b'hello"}'))
            assert first.request_headers.response.header_mutation.set_headers
            parts = [(await call.read()).request_body.response.body_mutation.streamed_response for _ in range(2)]
            assert [part.end_of_stream for part in parts] == [False, True]
            return b"".join(part.body for part in parts)

    assert run(scenario()) == b'{"prompt": "hello"}'
    assert picker.given.brain.asks[0].prompt_tokens == 1.25


def test_trailers_end_a_full_duplex_body_too(picker):
    async def scenario() -> None:
        async with stream(picker) as call:
            await call.write(headers(mode=4))
            await call.write(body(b"{}", ends=False))
            assert (await exchange(call, ProcessingRequest(request_trailers={}))).HasField("request_headers")
            part = (await call.read()).request_body.response.body_mutation.streamed_response
            assert (part.body, part.end_of_stream) == (b"{}", False)
            assert (await call.read()).HasField("request_trailers")

    run(scenario())


@pytest.mark.parametrize(("status", "want"), [(200, Outcome.COMPLETED), (404, Outcome.COMPLETED), (503, Outcome.FAILED)])
def test_a_response_that_is_shown_tells_who_served_and_how(status, want, picker, until):
    async def scenario() -> None:
        async with stream(picker) as call:
            await exchange(call, headers())
            await exchange(call, body())
            assert (await exchange(call, response(status, OTHER))).HasField("response_headers")
            assert not picker.given.brain.first_bytes, "headers come before the first token"
            for ends in (False, True):
                assert (await exchange(call, response_body(b"data", ends))).HasField("response_body")

    run(scenario())
    until(lambda: picker.given.brain.ended, "the request has ended")
    assert picker.given.brain.first_bytes == [(1, OTHER)]
    assert picker.given.brain.ended == [(1, want, OTHER)]


def test_a_response_body_in_full_duplex_comes_back(picker):
    async def scenario() -> None:
        async with stream(picker) as call:
            await exchange(call, headers(response_mode=4))
            await exchange(call, body())
            reply = await exchange(call, response_body(b"data", ends=True))
            part = reply.response_body.response.body_mutation.streamed_response
            assert (part.body, part.end_of_stream) == (b"data", True)
            assert (await exchange(call, ProcessingRequest(response_trailers={}))).HasField("response_trailers")

    run(scenario())


def test_a_stream_that_begins_in_the_middle_goes_on_without_a_pick(picker):
    async def scenario() -> None:
        async with stream(picker) as call:
            assert (await exchange(call, body())).HasField("request_body")
            assert (await exchange(call, ProcessingRequest(request_trailers={}))).HasField("request_trailers")

    run(scenario())
    assert not picker.given.brain.asks


@pytest.mark.parametrize("at_first", [True, False])
def test_a_message_that_is_none_ends_its_stream_and_releases(at_first, picker, until):
    async def scenario() -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(picker.target) as channel:
            call = channel.stream_stream(f"/{SERVICE}/Process")()
            if not at_first:
                await call.write(headers(mode=0).SerializeToString())
                await call.read()
                assert picker.given.brain.in_flight
            await call.write(b"no protobuf")
            return await call.code()

    assert run(scenario()) is grpc.StatusCode.INTERNAL
    until(lambda: picker.count("streams") == 0, "the stream has ended")
    assert not picker.given.brain.in_flight


def test_what_fails_unforeseen_is_told_and_logged_without_its_words(picker, until, monkeypatch, caplog):
    def fails(*_: Any) -> None:
        raise ValueError("what somebody asked")

    monkeypatch.setattr(picker.decider, "decide", fails)

    async def scenario() -> tuple[grpc.StatusCode, str]:
        async with grpc.aio.insecure_channel(picker.target) as channel:
            call = ExternalProcessorStub(channel).Process()
            await call.write(headers(mode=0))
            return await call.code(), await call.details()

    code, words = run(scenario())
    assert code is grpc.StatusCode.UNKNOWN
    until(lambda: "ValueError" in caplog.text, "it is logged")
    assert "somebody" not in (words or "") + caplog.text


def test_a_mode_that_nobody_knows_yet_is_taken_for_the_usual_one(picker):
    async def scenario() -> None:
        async with stream(picker) as call:
            assert (await exchange(call, headers(mode=5))).HasField("request_headers")
            assert (await exchange(call, body())).dynamic_metadata

    run(scenario())


def test_a_stream_that_breaks_off_releases(picker, until):
    async def scenario() -> None:
        async with grpc.aio.insecure_channel(picker.target) as channel:
            call = ExternalProcessorStub(channel).Process()
            await exchange(call, headers())
            await exchange(call, body())
            assert picker.given.brain.in_flight
            call.cancel()

    run(scenario())
    until(lambda: not picker.given.brain.in_flight, "the reservation is released")


def test_a_storm_of_cancelled_streams_leaves_nothing(picker, until):
    async def scenario() -> None:
        async with grpc.aio.insecure_channel(picker.target) as channel:
            calls = [ExternalProcessorStub(channel).Process() for _ in range(200)]
            await asyncio.gather(*(call.write(headers(mode=0)) for call in calls))
            await asyncio.to_thread(until, lambda: len(picker.given.brain.in_flight) > 50, "many are in flight")
            for call in calls:
                call.cancel()

    run(scenario())
    until(lambda: not picker.given.brain.in_flight, "all reservations are released")
    until(lambda: picker.count("streams") == 0, "all streams have ended")
    assert picker.count("requests_in_flight") == 0


def test_a_new_decision_leaves_the_tickets_of_the_old_one_alone(picker, until):
    old = picker.given.brain

    async def scenario() -> None:
        async with stream(picker) as call:
            await exchange(call, headers(mode=0))
            picker.given.brain = type(old)()

    run(scenario())
    until(lambda: not old.in_flight, "the old one releases its reservation")
    assert not picker.given.brain.ended


def test_health_by_grpc_and_http(picker, until):
    async def statuses() -> list[int]:
        async with grpc.aio.insecure_channel(picker.target) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            names = ("", SERVICE, "readiness", "liveness")
            return [(await check(health_pb2.HealthCheckRequest(service=name))).status for name in names]

    assert run(statuses()) == [1, 1, 1, 1]
    assert [picker.get(path)[0] for path in ("/healthz", "/readyz")] == [200, 200]
    picker.given.is_ready = False
    until(lambda: run(statuses()) == [2, 2, 2, 1], "it is alive and not to be asked")
    assert [picker.get(path)[0] for path in ("/healthz", "/readyz")] == [200, 503]


def test_metrics_tell_what_became_of_requests(picker, until):
    async def scenario() -> None:
        for sent in (b"{}", b'{"model": "none"}'):
            async with stream(picker) as call:
                await exchange(call, headers(x_request_class="code"))
                await exchange(call, body(sent))

    run(scenario())
    picked = {"request_class": "code", "model": "large.v1", "pool": "chat-large", "outcome": "picked", "reason": ""}
    refused = {"request_class": "code", "model": "", "pool": "", "outcome": "refused", "reason": "unknown_model"}
    until(lambda: picker.count("finished_total", request_class="code", outcome="cancelled") == 1, "the end is counted")
    assert [picker.count("decisions_total", **labels) for labels in (picked, refused)] == [1, 1]
    assert picker.count("decision_seconds_count") == 2
    assert picker.count("predicted_ttft_seconds_sum", request_class="code", model="large.v1") == 0.25
    assert "servingplan_picker_requests_in_flight 0.0" in picker.get("/metrics")[1]


def test_numbers_of_others_are_shown(picker):
    class Kept:
        def numbers(self) -> dict[str, Any]:
            return {
                "table_generation": {(): 7.0},
                "scrape_age_seconds": {(("pool", "p"),): 0.5, (("pool", "q"),): 1.5},
                "none": {},
            }

    picker.metrics.watch(Kept())
    page = picker.get("/metrics")[1]
    assert "servingplan_picker_table_generation 7.0" in page
    assert 'servingplan_picker_scrape_age_seconds{pool="q"} 1.5' in page


def test_a_receipt_has_every_term_and_neither_tenant_nor_prefix(picker):
    async def scenario() -> None:
        async with stream(picker) as call:
            await exchange(call, headers(x_request_id="r-1", x_llm_d_inference_fairness_id="team-a"))
            await exchange(call, body(json.dumps({"prompt": "word " * 200}).encode()))

    run(scenario())
    (line,) = picker.receipts.lines
    receipt = json.loads(line)
    assert (receipt["request_id"], receipt["class"], receipt["candidates"]) == ("r-1", "chat", [POD, OTHER])
    assert receipt["terms"].keys() >= {"utility", "quality", "money", "latency", "externality", "ttft_s", "runners_up"}
    assert "team-a" not in line
    assert str(picker.given.brain.asks[0].prefix[0]) not in line


def test_a_receipt_that_cannot_be_written_leaves_no_reservation(picker):
    def full(*_: str) -> None:
        raise OSError("no space left on device")

    async def scenario() -> Any:
        async with stream(picker) as call:
            return await exchange(call, headers(mode=0))

    picker.receipts.write = full
    assert list(run(scenario()).request_headers.response.header_mutation.remove_headers), "it goes on without a pick"
    assert picker.given.brain.asks
    assert not picker.given.brain.in_flight


def test_a_prediction_reaches_the_decision_and_a_failing_predictor_does_not_matter(picker):
    async def once() -> None:
        async with stream(picker) as call:
            await exchange(call, headers())
            await exchange(call, body(b'{"prompt": "hello"}'))

    seen: list[list[str]] = []

    def predict(texts: list[str]) -> list[Prediction]:
        seen.append(list(texts))
        return [Prediction({"small.v1": 0.95}, {"small.v1": 12.0}) for _ in texts]

    picker.given.predict = predict
    run(once())
    assert (seen, picker.given.brain.asks[-1].quality["small.v1"]) == ([["hello"]], 0.95)

    def fail(_: list[str]) -> list[Prediction]:
        raise ValueError("hello")

    picker.given.predict = fail
    run(once())
    assert picker.given.brain.asks[-1].quality["small.v1"] == 0.6
    assert picker.count("failed_predictions_total", error="ValueError") == 1


def test_an_address_in_use_is_said(start_picker):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen on {address}"):
            start_picker(address)
