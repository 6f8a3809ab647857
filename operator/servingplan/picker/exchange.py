"""One request's conversation with Envoy, whichever way its body comes.

A stream opens with the request's headers and stays open until its response has ended, so its end is what releases the
reservation: exact to a millisecond, and free. The decision is made once, at the last moment at which it can still choose the
route: on the headers when no body is shown or the headers go on before it, on the body when Envoy holds the request back,
on the body's last part when Envoy hands the body over in full duplex.

Our own Envoy saves a message: it opens the stream with the whole body and tells beside it what is read of the headers. Any
other stream that opens with a body goes on without a pick.

Envoy closes a stream as soon as the last message is answered that it could ever send. In every mode but BUFFERED that would be
at the pick, so the response's trailers must be asked for: model servers send none, hence it costs nothing, and it holds the
stream open.

The response itself is left alone. Gateways that show it anyway get it back untouched, and what it tells is used: its status,
who really served, and when its first byte came. The headers of a response are no first byte, for vLLM sends them before it has
computed anything. Of a response that is not shown nothing is known but its end, for which ``CANCELLED`` stands: that a stream
ended says nothing about the endpoint that was picked, as another may have stood in for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest

from servingplan.picker import protocol
from servingplan.picker.asking import is_generation
from servingplan.picker.decide import Pick
from servingplan.picker.protocol import BodyMode, Opening, Refusal, Wire
from servingplan.routing.ask import Outcome


class Decides(Protocol):
    """What an exchange asks: see ``decide.Decider``."""

    body_limit_bytes: int

    def decide(self, opening: Opening, body: bytes | None) -> Pick | Refusal | None:
        """A pick, a refusal, or None to let the request go on without one."""

    def refuse_body(self) -> Refusal:
        """The refusal of a body over the limit."""

    def first_byte(self, pick: Pick, served: str | None) -> None:
        """The response has begun."""

    def finished(self, pick: Pick, outcome: Outcome, served: str | None) -> None:
        """The response has ended."""


class Exchange:
    """The state of one stream.

    Args:
        decider: Who decides.
        unannounced: The body mode of an Envoy that does not announce it.
    """

    def __init__(self, decider: Decides, unannounced: BodyMode) -> None:
        self._decider = decider
        self._unannounced = unannounced
        self._is_new = True
        self._opening: Opening | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._mode = unannounced
        # Without its headers nothing can be decided for a request.
        self._settled = True
        self._refused = False
        self._pick: Pick | None = None
        self._started = False
        self._served: str | None = None
        self._status = 0
        self._full_response = False

    def take(self, message: ProcessingRequest) -> Sequence[Wire]:
        """The replies to one message of Envoy's, in order."""
        if self._refused:
            return []
        kind = message.WhichOneof("request")
        if kind == "request_headers":
            return self._request_headers(message)
        if kind == "request_body":
            return self._request_body(message)
        if kind == "request_trailers":
            return self._request_trailers()
        return self._response(kind, message)

    def end(self) -> None:
        """Releases what was reserved: the stream has ended."""
        pick, self._pick = self._pick, None
        if pick is None:
            return
        seen = Outcome.FAILED if self._status >= 500 else Outcome.COMPLETED
        self._decider.finished(pick, seen if self._status else Outcome.CANCELLED, self._served)

    def _request_headers(self, message: ProcessingRequest) -> Sequence[Wire]:
        self._is_new = False
        opening = self._opening = protocol.read_opening(message, self._unannounced)
        self._announced(message, opening.mode)
        if not is_generation(opening):
            return [protocol.UNPICKED_HEADERS]
        self._settled = False
        length = opening.length_bytes
        if length is not None and length > self._decider.body_limit_bytes:
            return self._refuse(self._decider.refuse_body())
        if opening.is_whole or not opening.mode.waits_for_body:
            return [self._settle(None, on_body=False)]
        return [] if opening.mode is BodyMode.FULL_DUPLEX_STREAMED else [protocol.GO_ON_HEADERS]

    def _announced(self, message: ProcessingRequest, mode: BodyMode) -> None:
        self._mode = mode
        self._full_response = message.protocol_config.response_body_mode == BodyMode.FULL_DUPLEX_STREAMED.value

    def _open_with_body(self, message: ProcessingRequest) -> None:
        opening = protocol.read_told(message, self._unannounced)
        self._announced(message, opening.mode if opening else protocol.read_mode(message, self._unannounced))
        # In every other mode the headers have gone on, or are waited for by the reply.
        if opening is not None and opening.mode is BodyMode.BUFFERED and is_generation(opening):
            self._settled = False
        self._opening = opening

    def _request_body(self, message: ProcessingRequest) -> Sequence[Wire]:
        if self._is_new:
            self._is_new = False
            self._open_with_body(message)
        body = message.request_body.body
        if self._mode is not BodyMode.FULL_DUPLEX_STREAMED:
            if self._settled:
                return [protocol.GO_ON_BODY]
            if len(body) > self._decider.body_limit_bytes:
                return self._refuse(self._decider.refuse_body())
            return [self._settle(body, on_body=True)]
        ends = message.request_body.end_of_stream
        if self._settled:
            return list(protocol.echoed([body], ends=ends))
        self._chunks.append(body)
        self._size += len(body)
        if self._size > self._decider.body_limit_bytes:
            return self._refuse(self._decider.refuse_body())
        return self._settle_duplex(ends=True) if ends else []

    def _request_trailers(self) -> Sequence[Wire]:
        if self._mode is BodyMode.FULL_DUPLEX_STREAMED and not self._settled:
            replies = self._settle_duplex(ends=False)
            return replies if self._refused else [*replies, protocol.GO_ON_TRAILERS]
        return [protocol.GO_ON_TRAILERS]

    def _settle_duplex(self, *, ends: bool) -> Sequence[Wire]:
        chunks, self._chunks = self._chunks, []
        first = self._settle(b"".join(chunks), on_body=False)
        return [first] if self._refused else [first, *protocol.echoed(chunks, ends=ends)]

    def _settle(self, body: bytes | None, *, on_body: bool) -> Wire:
        assert self._opening is not None
        self._settled = True
        decision = self._decider.decide(self._opening, body)
        if isinstance(decision, Refusal):
            return self._refuse(decision)[0]
        if decision is None:
            return protocol.UNPICKED_BODY if on_body else protocol.UNPICKED_HEADERS
        self._pick = decision
        return protocol.picked(decision.candidates, on_body=on_body, receipt=decision.receipt)

    def _refuse(self, refusal: Refusal) -> Sequence[Wire]:
        self._settled = self._refused = True
        self._chunks = []
        return [protocol.refused(refusal)]

    def _response(self, kind: str | None, message: ProcessingRequest) -> Sequence[Wire]:
        self._served = protocol.read_served(message) or self._served
        if kind == "response_headers":
            self._status = protocol.read_status(message)
            return [protocol.GO_ON_RESPONSE_HEADERS]
        if kind == "response_trailers":
            return [protocol.GO_ON_RESPONSE_TRAILERS]
        if kind != "response_body":
            return []
        body = message.response_body
        if body.body and not self._started and self._pick is not None:
            self._started = True
            self._decider.first_byte(self._pick, self._served)
        if not self._full_response:
            return [protocol.GO_ON_RESPONSE_BODY]
        return list(protocol.echoed([body.body], ends=body.end_of_stream, of_response=True))
