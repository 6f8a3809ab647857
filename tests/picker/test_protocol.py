"""Messages as Envoy sends them, and replies as it reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from servingplan.picker import asking, protocol
from servingplan.picker.protocol import BodyMode, Refusal
from servingplan.render.envoy.picker import ASKED_HEADERS, ATTRIBUTES


def opening(headers: Any = (), metadata: Any = None, **fields: Any) -> protocol.Opening:
    listed = [{"key": key, "raw_value": value} for key, value in headers]
    message = ProcessingRequest(request_headers={"headers": {"headers": listed}}, **fields)
    for namespace, values in (metadata or {}).items():
        message.metadata_context.filter_metadata[namespace].update(values)
    return protocol.read_opening(message, BodyMode.BUFFERED)


def with_body(attributes: Any = None, metadata: Any = None, **fields: Any) -> ProcessingRequest:
    """A first message as our own Envoy sends it."""
    message = ProcessingRequest(request_body={"body": b"{}", "end_of_stream": True}, **fields)
    if attributes is not None:
        message.attributes["envoy.filters.http.ext_proc"].update(attributes)
    for namespace, values in (metadata or {}).items():
        message.metadata_context.filter_metadata[namespace].update(values)
    return ProcessingRequest.FromString(message.SerializeToString())


def hint(value: Any) -> dict[str, Any]:
    return {"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": value}}


def test_headers_are_bytes_or_text_and_repeated_ones_are_joined():
    message = ProcessingRequest(request_headers={"headers": {"headers": [{"key": "a", "value": "text"}]}})
    assert protocol.read_opening(message, BodyMode.NONE).header("a") == "text"
    assert opening([("b", b"1"), ("b", b"2")]).header("b") == "1,2"
    assert opening([("c", b"\xff")]).header("c") == "\ufffd"
    assert opening().header("d") == ""


NAMED = {header: attribute for attribute, header in ATTRIBUTES.items()}


def test_what_is_told_beside_a_body_stands_for_its_headers():
    attributes = {
        NAMED[":path"]: "/v1/completions",
        NAMED[":method"]: "POST",
        NAMED["x-servingplan-budget"]: "\u00e9",
        "other": "x",
    }
    metadata = {"servingplan.class": {"x-class": "code", ":path": "/"}, "servingplan.request": {"model": "m"}} | hint(
        "1.1.1.1:1"
    )
    told = protocol.read_told(with_body(attributes, metadata, protocol_config={"request_body_mode": 2}), BodyMode.NONE)
    assert told == protocol.Opening(
        headers={
            "x-class": b"code",
            ":path": b"/v1/completions",
            ":method": b"POST",
            "x-servingplan-budget": "\u00e9".encode(),
        },
        is_whole=False,
        mode=BodyMode.BUFFERED,
        subset=frozenset({"1.1.1.1:1"}),
        model="m",
    )


def test_a_header_that_is_not_there_is_told_apart_from_an_empty_one():
    told = protocol.read_told(with_body({NAMED["x-request-id"]: ""}), BodyMode.BUFFERED)
    assert told is not None
    assert (told.headers, told.mode) == ({"x-request-id": b""}, BodyMode.BUFFERED)


@pytest.mark.parametrize("metadata", [{}, {"servingplan.class": {"x-class": "code"}}], ids=repr)
def test_a_body_beside_which_nothing_is_told_is_no_opening(metadata):
    assert protocol.read_told(with_body(None, metadata), BodyMode.BUFFERED) is None


def test_every_header_that_a_decision_reads_is_told():
    constants = {name: value for name, value in vars(asking).items() if name.endswith(("_HEADER", "_HEADERS"))}
    read = {header for value in constants.values() for header in ([value] if isinstance(value, str) else value)}
    assert read | {"x-request-id"} == set(ASKED_HEADERS)
    assert set(ATTRIBUTES.values()) == {":path", ":method", *ASKED_HEADERS}


@pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"ten", b"9" * 40, "٣".encode()])
def test_a_length_is_a_plain_number(value):
    assert opening([("content-length", value)]).length_bytes is None
    assert opening([("content-length", b"12")]).length_bytes == 12


@pytest.mark.parametrize("mode", BodyMode)
def test_the_announced_mode_counts(mode):
    assert opening(protocol_config={"request_body_mode": mode.value}).mode is mode
    assert opening().mode is BodyMode.BUFFERED


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (["1.1.1.1:1", "2.2.2.2:2"], {"1.1.1.1:1", "2.2.2.2:2"}),
        ("1.1.1.1:1, 2.2.2.2:2,", {"1.1.1.1:1", "2.2.2.2:2"}),
        (["1.1.1.1:1,2.2.2.2:2"], {"1.1.1.1:1", "2.2.2.2:2"}),
        ([], set()),
        ("", set()),
        (7, set()),
    ],
    ids=repr,
)
def test_a_subset_is_a_list_or_a_text(value, want):
    assert opening(metadata=hint(value)).subset == want


def test_no_hint_is_another_thing_than_an_empty_one():
    assert opening().subset is None
    assert opening(metadata={"envoy.lb.subset_hint": {"other": "x"}}).subset is None
    assert opening(metadata={"envoy.lb": {"x-gateway-destination-endpoint-subset": "1.1.1.1:1"}}).subset is None


def test_the_model_that_envoy_read():
    assert opening(metadata={"servingplan.request": {"model": "m"}}).model == "m"
    assert opening(metadata={"servingplan.request": {"model": None}}).model == ""


@pytest.mark.parametrize("on_body", [True, False])
def test_a_pick_is_header_and_metadata_alike(on_body):
    reply = protocol.picked(["1.1.1.1:1", "2.2.2.2:2"], on_body=on_body)
    assert reply.WhichOneof("response") == ("request_body" if on_body else "request_headers")
    common = (reply.request_body if on_body else reply.request_headers).response
    (option,) = common.header_mutation.set_headers
    assert (option.header.key, option.header.raw_value) == ("x-gateway-destination-endpoint", b"1.1.1.1:1,2.2.2.2:2")
    assert option.append_action == option.OVERWRITE_IF_EXISTS_OR_ADD
    assert common.clear_route_cache
    assert dict(reply.dynamic_metadata["envoy.lb"]) == {"x-gateway-destination-endpoint": "1.1.1.1:1,2.2.2.2:2"}
    assert "servingplan.picker" not in reply.dynamic_metadata


def test_a_pick_carries_its_receipt():
    reply = protocol.picked(["1.1.1.1:1"], on_body=True, receipt='{"a":1}')
    assert reply.dynamic_metadata["servingplan.picker"]["receipt"] == '{"a":1}'


def test_without_a_pick_a_clients_header_is_removed():
    for text, kind in ((protocol.UNPICKED_BODY, "request_body"), (protocol.UNPICKED_HEADERS, "request_headers")):
        reply = ProcessingResponse.FromString(text)
        assert list(getattr(reply, kind).response.header_mutation.remove_headers) == ["x-gateway-destination-endpoint"]


def test_a_refusal_has_the_shape_of_the_openai_api():
    reply = protocol.refused(Refusal(429, "RateLimitError", "shed", "Too much.", retry_after_s=0.2)).immediate_response
    headers = {option.header.key: option.header.raw_value for option in reply.headers.set_headers}
    assert reply.status.code == 429
    assert headers["retry-after"] == b"1"
    assert headers["x-llm-d-request-dropped-reason"] == b"shed"
    error = {"message": "Too much.", "type": "RateLimitError", "param": None, "code": 429}
    assert json.loads(reply.body) == {"error": error}
    lasting = protocol.refused(Refusal(404, "NotFoundError", "unknown_model", "No.")).immediate_response
    assert "retry-after" not in {option.header.key for option in lasting.headers.set_headers}


@pytest.mark.parametrize("sizes", [[], [0], [1], [62_000], [62_001, 0, 5], [200_000]], ids=repr)
@pytest.mark.parametrize("ends", [True, False])
def test_a_body_is_handed_back_whole_in_parts_that_envoy_takes(sizes, ends):
    chunks = [bytes([position]) * size for position, size in enumerate(sizes)]
    parts = [reply.request_body.response.body_mutation.streamed_response for reply in protocol.echoed(chunks, ends=ends)]
    assert b"".join(part.body for part in parts) == b"".join(chunks)
    assert all(len(part.body) <= 62_000 for part in parts)
    assert (
        [part.end_of_stream for part in parts] == [False] * (len(parts) - 1) + [True]
        if ends
        else not any(part.end_of_stream for part in parts)
    )
    if ends:
        assert parts, "the end has to be told even of an empty body"
