"""The endpoint-picker protocol on Envoy's external processing, as plain values.

The protocol is that of the Gateway API Inference Extension (proposal 004): the pick travels as a request header and as
dynamic metadata, both an ordered list ``ip:port[,ip:port...]``; a gateway may narrow the choice by a hint in the request's
metadata; the address that really served comes back in the metadata of the response. Replies that never differ are kept in
their serialised form, because most of what a picker costs is protobuf and gRPC.

What a client sends in the header of the pick is never read. It is overwritten by a pick and removed without one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from servingplan.render.envoy.picker import ATTRIBUTES, CLASS_METADATA

DESTINATION = "x-gateway-destination-endpoint"
LB_NAMESPACE = "envoy.lb"
SERVED_KEY = "x-gateway-destination-endpoint-served"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET_KEY = "x-gateway-destination-endpoint-subset"
DROPPED_HEADER = "x-llm-d-request-dropped-reason"

PICKER_NAMESPACE = "servingplan.picker"
"""Namespace of the dynamic metadata that tells of the decision; Envoy passes it on only if it is among the receiving ones."""

RECEIPT_KEY = "receipt"
"""In that namespace: the receipt of the decision, which a route may copy into a response header."""

MODEL_NAMESPACE = "servingplan.request"
"""Where Envoy writes the body's ``model`` when it reads it by itself."""

ATTRIBUTES_NAMESPACE = "envoy.filters.http.ext_proc"
"""Under which Envoy sends attributes."""

CHUNK_BYTES = 62_000
"""Longest part of a body in one reply; Envoy refuses messages beyond 64 KiB in full duplex."""

Wire = ProcessingResponse | bytes
"""A reply, or one that is serialised already."""


class BodyMode(Enum):
    """How Envoy sends the request's body; the values are those of ``ProcessingMode.BodySendMode``."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4

    @property
    def waits_for_body(self) -> bool:
        """Whether the decision may wait for the body; in the other modes the headers have gone on before it comes."""
        return self in {BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL, BodyMode.FULL_DUPLEX_STREAMED}


_MODES = {mode.value: mode for mode in BodyMode}


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a request.

    Attributes:
        headers: By name in lower case; several of one name are joined by commas.
        is_whole: No body follows.
        mode: How the body is sent, if any follows.
        subset: Addresses that the gateway allows; None for all.
        model: Name that Envoy read from the body by itself; empty when there is none.
    """

    headers: Mapping[str, bytes]
    is_whole: bool
    mode: BodyMode
    subset: frozenset[str] | None = None
    model: str = ""

    def header(self, name: str) -> str:
        """Value of a header; empty without it."""
        return self.headers.get(name, b"").decode("utf-8", "replace")

    @property
    def length_bytes(self) -> int | None:
        """The announced length of the body; None without one."""
        value = self.headers.get("content-length", b"")
        return int(value) if value.isdigit() and len(value) < 19 else None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that the picker gives in place of a model.

    Attributes:
        kind: The error's type, as the OpenAI API and vLLM name it.
        reason: One word for metrics and for the header of dropped requests.
        param: The field of the body that is to blame; None without one.
        retry_after_s: When asking again may help; None when it will not.
    """

    status: int
    kind: str
    reason: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


def read_opening(message: ProcessingRequest, unannounced: BodyMode) -> Opening:
    """The opening in a message that carries ``request_headers``.

    Args:
        message: The first message of a stream.
        unannounced: The body mode of an Envoy that does not announce it.
    """
    received: dict[str, bytes] = {}
    for header in message.request_headers.headers.headers:
        key, value = header.key, header.raw_value or header.value.encode()
        received[key] = received[key] + b"," + value if key in received else value
    return _opening(message, received, unannounced, is_whole=message.request_headers.end_of_stream)


def read_told(message: ProcessingRequest, unannounced: BodyMode) -> Opening | None:
    """The opening in a message that carries ``request_body`` and, as our Envoy is set up, what is read of the headers.

    Args:
        message: The first message of a stream.
        unannounced: The body mode of an Envoy that does not announce it.

    Returns:
        With the headers of ``render.envoy.picker`` alone; None when the message tells of none.
    """
    if ATTRIBUTES_NAMESPACE not in message.attributes:
        return None
    received: dict[str, bytes] = {}
    metadata = message.metadata_context.filter_metadata
    if CLASS_METADATA in metadata:
        received = {name: value.string_value.encode() for name, value in metadata[CLASS_METADATA].fields.items()}
    for expression, value in message.attributes[ATTRIBUTES_NAMESPACE].fields.items():
        if expression in ATTRIBUTES:
            received[ATTRIBUTES[expression]] = value.string_value.encode()
    return _opening(message, received, unannounced, is_whole=False)


def read_mode(message: ProcessingRequest, unannounced: BodyMode) -> BodyMode:
    """How the body is sent, from the first message of a stream."""
    if not message.HasField("protocol_config"):
        return unannounced
    return _MODES.get(message.protocol_config.request_body_mode, unannounced)


def _opening(message: ProcessingRequest, headers: Mapping[str, bytes], unannounced: BodyMode, *, is_whole: bool) -> Opening:
    metadata = message.metadata_context.filter_metadata if message.HasField("metadata_context") else {}
    return Opening(
        headers=headers,
        is_whole=is_whole,
        mode=read_mode(message, unannounced),
        subset=_subset(metadata),
        model=_text(metadata, MODEL_NAMESPACE, "model"),
    )


def read_served(message: ProcessingRequest) -> str | None:
    """The address that served, from a message of the response; None when the gateway does not tell."""
    if not message.HasField("metadata_context"):
        return None
    return _text(message.metadata_context.filter_metadata, LB_NAMESPACE, SERVED_KEY) or None


def read_status(message: ProcessingRequest) -> int:
    """The status in a message that carries ``response_headers``; 0 without one."""
    for header in message.response_headers.headers.headers:
        if header.key == ":status":
            value = header.raw_value or header.value.encode()
            return int(value) if value.isdigit() else 0
    return 0


def _subset(metadata: Mapping[str, Any]) -> frozenset[str] | None:
    """The hint as a list or as one text with commas. An empty hint allows nobody, which differs from no hint."""
    if SUBSET_NAMESPACE not in metadata or SUBSET_KEY not in metadata[SUBSET_NAMESPACE].fields:
        return None
    value = metadata[SUBSET_NAMESPACE].fields[SUBSET_KEY]
    texts = [item.string_value for item in value.list_value.values] if value.HasField("list_value") else [value.string_value]
    return frozenset(part.strip() for text in texts for part in text.split(",") if part.strip())


def _text(metadata: Mapping[str, Any], namespace: str, key: str) -> str:
    if namespace not in metadata:
        return ""
    fields = metadata[namespace].fields
    return fields[key].string_value if key in fields else ""


def _serialised(field: str, **response: Any) -> bytes:
    return ProcessingResponse(**{field: {"response": response} if response else {}}).SerializeToString()


_UNPICKED = {"header_mutation": {"remove_headers": [DESTINATION]}}
GO_ON_HEADERS = _serialised("request_headers")
"""The headers may wait in Envoy for the reply to the body."""

UNPICKED_HEADERS = _serialised("request_headers", **_UNPICKED)
UNPICKED_BODY = _serialised("request_body", **_UNPICKED)
GO_ON_BODY = _serialised("request_body")
GO_ON_TRAILERS = _serialised("request_trailers")
GO_ON_RESPONSE_HEADERS = _serialised("response_headers")
GO_ON_RESPONSE_BODY = _serialised("response_body")
GO_ON_RESPONSE_TRAILERS = _serialised("response_trailers")


def picked(candidates: Sequence[str], *, on_body: bool, receipt: str | None = None) -> ProcessingResponse:
    """The reply that sends a request to the first candidate that takes it.

    Args:
        candidates: Addresses in order.
        on_body: Whether it answers the body, or else the headers.
        receipt: The receipt of the decision, for a response header; None without.
    """
    value = ",".join(candidates)
    reply = ProcessingResponse()
    common = (reply.request_body if on_body else reply.request_headers).response
    # The route was chosen before there was a pick.
    common.clear_route_cache = True
    option = common.header_mutation.set_headers.add()
    option.append_action = option.OVERWRITE_IF_EXISTS_OR_ADD
    option.header.key = DESTINATION
    option.header.raw_value = value.encode()
    reply.dynamic_metadata.fields[LB_NAMESPACE].struct_value.fields[DESTINATION].string_value = value
    if receipt is not None:
        reply.dynamic_metadata.fields[PICKER_NAMESPACE].struct_value.fields[RECEIPT_KEY].string_value = receipt
    return reply


def refused(refusal: Refusal) -> ProcessingResponse:
    """The reply that answers the client at once, in the shape of the OpenAI API's errors."""
    error = {"message": refusal.message, "type": refusal.kind, "param": refusal.param, "code": refusal.status}
    headers = {"content-type": "application/json", DROPPED_HEADER: refusal.reason}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(refusal.retry_after_s)))
    reply = ProcessingResponse()
    immediate = reply.immediate_response
    immediate.status.code = refusal.status
    immediate.body = json.dumps({"error": error}).encode()
    immediate.details = f"picker_{refusal.reason}"
    for name, value in headers.items():
        option = immediate.headers.set_headers.add()
        option.append_action = option.OVERWRITE_IF_EXISTS_OR_ADD
        option.header.key, option.header.raw_value = name, value.encode()
    return reply


def echoed(chunks: Sequence[bytes], *, ends: bool, of_response: bool = False) -> Iterator[ProcessingResponse]:
    """The replies that hand a body back in full duplex, where Envoy keeps none of it.

    Args:
        chunks: The body as it was received.
        ends: Whether the stream ends with it; trailers follow otherwise.
        of_response: Whether it is the response's body.
    """
    parts = [chunk[at : at + CHUNK_BYTES] for chunk in chunks for at in range(0, len(chunk), CHUNK_BYTES)]
    if not parts and ends:
        parts = [b""]
    for position, part in enumerate(parts):
        reply = ProcessingResponse()
        body = reply.response_body if of_response else reply.request_body
        streamed = body.response.body_mutation.streamed_response
        streamed.body = part
        streamed.end_of_stream = ends and position == len(parts) - 1
        yield reply
