"""A stream's messages and what they are answered with, without a wire."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from servingplan.picker.decide import Pick
from servingplan.picker.exchange import Exchange
from servingplan.picker.protocol import BodyMode, Opening, Refusal
from servingplan.render.envoy.picker import ATTRIBUTES
from servingplan.routing.ask import Outcome

POD = "10.0.0.1:8000"
PICK = Pick((POD,), None, 1, "chat")  # type: ignore[arg-type]
SHED = Refusal(429, "RateLimitError", "shed", "Too much.", retry_after_s=1)
TOLD = {":path": "/v1/chat/completions", ":method": "POST"}


class Decisions:
    """Answers all alike and remembers what it was asked and told."""

    body_limit_bytes = 100

    def __init__(self, answer: Pick | Refusal | None) -> None:
        self.answer = answer
        self.asked: list[tuple[Opening, bytes | None]] = []
        self.ended: list[Outcome] = []

    def decide(self, opening: Opening, body: bytes | None) -> Pick | Refusal | None:
        self.asked.append((opening, body))
        return self.answer

    def refuse_body(self) -> Refusal:
        return Refusal(413, "BadRequestError", "body_too_large", "Too long.")

    def first_byte(self, pick: Pick, served: str | None) -> None:
        raise AssertionError("no response is shown")

    def finished(self, pick: Pick, outcome: Outcome, served: str | None) -> None:
        self.ended.append(outcome)


def body(
    told: dict[str, str] | None = None, text: bytes = b"{}", mode: BodyMode = BodyMode.BUFFERED, ends: bool = True
) -> ProcessingRequest:
    message = ProcessingRequest(
        request_body={"body": text, "end_of_stream": ends}, protocol_config={"request_body_mode": mode.value}
    )
    if told is not None:
        named = {header: attribute for attribute, header in ATTRIBUTES.items()}
        message.attributes["envoy.filters.http.ext_proc"].update({named[header]: value for header, value in told.items()})
    return message


def headers(**fields: Any) -> ProcessingRequest:
    listed = [{"key": key, "raw_value": value.encode()} for key, value in TOLD.items()]
    return ProcessingRequest(
        request_headers={"headers": {"headers": listed}},
        protocol_config={"request_body_mode": BodyMode.BUFFERED.value},
        **fields,
    )


def replies(exchange: Exchange, *messages: ProcessingRequest) -> list[ProcessingResponse]:
    found = [reply for message in messages for reply in exchange.take(message)]
    return [ProcessingResponse.FromString(reply) if isinstance(reply, bytes) else reply for reply in found]


def picked(reply: ProcessingResponse) -> str:
    return reply.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] if reply.dynamic_metadata else ""


@pytest.mark.parametrize("told", [TOLD, TOLD | {"x-servingplan-budget": "0.1"}], ids=len)
def test_a_body_with_what_is_told_of_its_headers_is_decided_at_once_and_its_end_releases(told):
    decisions = Decisions(PICK)
    exchange = Exchange(decisions, BodyMode.NONE)
    (reply,) = replies(exchange, body(told))
    assert (reply.WhichOneof("response"), picked(reply)) == ("request_body", POD)
    assert reply.request_body.response.clear_route_cache
    assert reply.request_body.response.HasField("header_mutation"), "without one Envoy does not choose the route again"
    ((opening, text),) = decisions.asked
    assert ({name: value.decode() for name, value in opening.headers.items()}, text) == (told, b"{}")
    assert decisions.ended == []
    exchange.end()
    exchange.end()
    assert decisions.ended == [Outcome.CANCELLED]


def test_headers_and_then_a_body_are_decided_alike():
    decisions = Decisions(PICK)
    first, second = replies(Exchange(decisions, BodyMode.NONE), headers(), body())
    assert first == ProcessingResponse(request_headers={})
    assert picked(second) == POD
    assert len(decisions.asked) == 1


def test_what_is_told_beside_the_second_message_changes_nothing():
    decisions = Decisions(PICK)
    replies(Exchange(decisions, BodyMode.NONE), headers(), body({":path": "/v1/embeddings"}))
    ((opening, _),) = decisions.asked
    assert opening.header(":path") == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("answer", "text", "status"), [(SHED, b"{}", 429), (PICK, b"x" * 101, 413)], ids=["refused", "too long"]
)
def test_a_refusal_of_a_body_ends_the_talk(answer, text, status):
    exchange = Exchange(Decisions(answer), BodyMode.NONE)
    (reply,) = replies(exchange, body(TOLD, text), body(TOLD))
    assert reply.immediate_response.status.code == status
    exchange.end()


@pytest.mark.parametrize(
    "message",
    [
        body(),
        body(TOLD | {":path": "/v1/models"}),
        body(TOLD | {":method": "PUT"}),
        body({}),
        body(TOLD, mode=BodyMode.STREAMED),
    ],
    ids=["nothing told", "another path", "another method", "no path", "headers have gone on"],
)
def test_any_other_body_goes_on_undecided(message):
    decisions = Decisions(PICK)
    (reply,) = replies(Exchange(decisions, BodyMode.BUFFERED), message)
    assert (reply, decisions.asked) == (ProcessingResponse(request_body={}), [])


def test_a_body_without_headers_in_full_duplex_comes_back():
    decisions = Decisions(PICK)
    messages = [
        body(TOLD, b"one", BodyMode.FULL_DUPLEX_STREAMED, ends=False),
        body(None, b"two", BodyMode.FULL_DUPLEX_STREAMED),
    ]
    parts = [
        reply.request_body.response.body_mutation.streamed_response
        for reply in replies(Exchange(decisions, BodyMode.NONE), *messages)
    ]
    assert [(part.body, part.end_of_stream) for part in parts] == [(b"one", False), (b"two", True)]
    assert decisions.asked == []


def test_nothing_decided_is_nothing_to_release():
    decisions = Decisions(None)
    exchange = Exchange(decisions, BodyMode.NONE)
    (reply,) = replies(exchange, body(TOLD))
    assert picked(reply) == ""
    exchange.end()
    assert decisions.ended == []
