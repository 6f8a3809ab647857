"""Where the wire meets the decision: one request in, a pick or a refusal out, and everything counted.

Nothing in here may stop a request that a model server could answer. Without a table, and when something unforeseen fails, the
request goes on without a pick and Envoy routes it by the plan's weights.
"""

from __future__ import annotations

import logging
import math
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from servingplan.api.routing_table import RoutingTable
from servingplan.picker.asking import Catalogue, Predict, Prediction, RequestClass, asks_for_receipt, make_ask
from servingplan.picker.body import Prompt, read_prompt, sized_prompt
from servingplan.picker.metrics import Metrics
from servingplan.picker.protocol import Opening, Refusal
from servingplan.picker.receipts import ReceiptLog, receipt_of
from servingplan.render.envoy.bootstrap import BODY_LIMIT_BYTES
from servingplan.render.envoy.routes import RETRY_AFTER_S
from servingplan.routing.ask import Ask, Choice, Outcome, Reason

UNREAD_BODY_BYTES = 4 * 1024 * 1024
"""A longer body is not parsed if Envoy has read the model from it: that would hold up everyone else for tens of milliseconds,
and no model takes a million tokens of text, so that the length tells of images."""

_REPEAT_S = 60.0

log = logging.getLogger(__name__)


class Chooses(Protocol):
    """The decision; ``routing.brain.Brain`` outside of tests."""

    def choose(self, ask: Ask, now_s: float, draw: float) -> Choice:
        """Candidates for a request, with a reservation on the first."""

    def first_byte(self, ticket: int, now_s: float, address: str | None = None) -> None:
        """The response has begun, at ``address`` if that is known."""

    def finished(
        self, ticket: int, now_s: float, outcome: Outcome, output_tokens: float | None = None, address: str | None = None
    ) -> None:
        """The response has ended."""


class Source(Protocol):
    """Who keeps what the decision is made from; ``state.State`` outside of tests."""

    @property
    def brain(self) -> Chooses:
        """The decision, configured and fed."""

    @property
    def table(self) -> RoutingTable | None:
        """The routing table in force; None before the first."""

    @property
    def predict(self) -> Predict | None:
        """The predictor; None without one."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A decision that is being carried out.

    Attributes:
        candidates: Addresses in order.
        brain: Who made the reservation; a plan whose weights change gets a new one.
        ticket: Of the reservation.
        request_class: Its name.
        receipt: The receipt of the decision, if the client may have it.
    """

    candidates: tuple[str, ...]
    brain: Chooses
    ticket: int
    request_class: str
    receipt: str | None = None


class Decider:
    """Decides for every request, in one thread.

    Args:
        source: What the decision is made from.
        metrics: Where it is counted.
        receipts: Where receipts are written; None for nowhere.
        body_limit_bytes: Longest body.
        clock: Seconds that never go back, the same as the source uses.
        draw: A random number from 0 to 1, without 1.
    """

    def __init__(
        self,
        source: Source,
        metrics: Metrics,
        *,
        receipts: ReceiptLog | None = None,
        body_limit_bytes: int = BODY_LIMIT_BYTES,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.body_limit_bytes = body_limit_bytes
        self._source, self._metrics, self._receipts = source, metrics, receipts
        self._clock, self._draw = clock, draw
        self._catalogue: Catalogue | None = None
        self._said_s: dict[str, float] = {}

    def decide(self, opening: Opening, body: bytes | None) -> Pick | Refusal | None:
        """A pick, a refusal, or None to let the request go on without one.

        Args:
            opening: The beginning of the request.
            body: Its body; None when it is not shown.
        """
        started_s = self._clock()
        try:
            return self._decide(opening, body, started_s)
        except Exception as error:
            self._say(error, started_s)
            self._metrics.decided("", "", "", "unpicked", "error", self._clock() - started_s)
            return None

    def refuse_body(self) -> Refusal:
        """The refusal of a body over the limit."""
        message = f"The request body is longer than {self.body_limit_bytes} bytes."
        self._metrics.decided("", "", "", "refused", "body_too_large", 0.0)
        return Refusal(413, "BadRequestError", "body_too_large", message)

    def first_byte(self, pick: Pick, served: str | None) -> None:
        """The response of a pick has begun."""
        pick.brain.first_byte(pick.ticket, self._clock(), served)

    def finished(self, pick: Pick, outcome: Outcome, served: str | None) -> None:
        """The response of a pick has ended; releases its reservation."""
        pick.brain.finished(pick.ticket, self._clock(), outcome, None, served)
        self._metrics.finished(pick.request_class, outcome.name.lower())

    def _say(self, error: Exception, now_s: float) -> None:
        """Logs what failed and where; not what it says nor with which values, for both may hold a part of a prompt."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {frame.filename}:{frame.lineno}"
        # A decision that fails once mostly fails for every request.
        if now_s - self._said_s.get(where, -math.inf) >= _REPEAT_S:
            self._said_s[where] = now_s
            log.error("a decision failed: %s", where)

    def _decide(self, opening: Opening, body: bytes | None, started_s: float) -> Pick | Refusal | None:
        catalogue = self._current()
        chosen = catalogue.request_class(opening.headers) if catalogue else None
        if catalogue is None or chosen is None:
            self._metrics.decided("", "", "", "unpicked", "no_table", self._clock() - started_s)
            return None
        prompt = _prompt(opening, body, chosen)
        ask = make_ask(catalogue, chosen, opening, prompt, self._predict(prompt))
        if isinstance(ask, Refusal):
            self._metrics.decided(chosen.entry.name, "", "", "refused", ask.reason, self._clock() - started_s)
            return ask
        now_s = self._clock()
        brain = self._source.brain
        choice = brain.choose(ask, now_s, self._draw())
        try:
            shown = self._receipt(catalogue, opening, ask, choice)
            return self._answer(catalogue.table.plan, ask, choice, brain, shown, self._clock() - started_s)
        except Exception:
            if choice.ticket is not None:
                brain.finished(choice.ticket, now_s, Outcome.CANCELLED)
            raise

    def _current(self) -> Catalogue | None:
        table = self._source.table
        if table is None:
            return None
        if self._catalogue is None or self._catalogue.table is not table:
            self._catalogue = Catalogue(table)
        return self._catalogue

    def _predict(self, prompt: Prompt) -> Prediction | None:
        """What a predictor says of a prompt. Prompts are not gathered: two together take as long as one after the other."""
        predict = self._source.predict
        if predict is None or not prompt.text:
            return None
        try:
            return predict([prompt.text])[0]
        except Exception as error:
            self._metrics.prediction_failed(type(error).__name__)
            return None

    def _answer(
        self, plan: str, ask: Ask, choice: Choice, brain: Chooses, receipt: str | None, seconds: float
    ) -> Pick | Refusal:
        name = ask.request_class
        if choice.ticket is None:
            refusal = _refusal(plan, name, choice)
            self._metrics.decided(name, "", "", "refused", refusal.reason, seconds)
            return refusal
        self._metrics.decided(name, choice.model, choice.pool, "picked", "", seconds)
        self._metrics.expected(name, choice.model, choice.ttft_s)
        return Pick(choice.candidates, brain, choice.ticket, name, receipt)

    def _receipt(self, catalogue: Catalogue, opening: Opening, ask: Ask, choice: Choice) -> str | None:
        """Writes the receipt where receipts are written; returns it if the client asks for it and may have it."""
        settings = catalogue.table.picker
        shown = settings is not None and settings.explain and asks_for_receipt(opening)
        if not shown and self._receipts is None:
            return None
        text = receipt_of(ask, choice)
        if self._receipts is not None:
            self._receipts.write(opening.header("x-request-id"), text)
        return text if shown else None


def _prompt(opening: Opening, body: bytes | None, chosen: RequestClass) -> Prompt:
    mean_tokens = float(chosen.entry.prompt_tokens)
    if body is None:
        return sized_prompt(opening.length_bytes, mean_tokens, opening.model)
    if len(body) > UNREAD_BODY_BYTES and opening.model:
        return sized_prompt(len(body), mean_tokens, opening.model)
    return read_prompt(body, mean_tokens)


def _refusal(plan: str, request_class: str, choice: Choice) -> Refusal:
    if choice.reason is Reason.BUDGET:
        message = f"No model of plan {plan} answers this request within its budget."
        return Refusal(429, "RateLimitError", "over_budget", message)
    if choice.status == 429:
        message = f"Plan {plan} has no capacity for this request of class {request_class} within its latency target."
        return Refusal(429, "RateLimitError", "shed", message, retry_after_s=choice.retry_after_s)
    message = f"Class {request_class} of plan {plan} has no ready replica."
    return Refusal(503, "ServiceUnavailableError", "no_endpoint", message, retry_after_s=RETRY_AFTER_S)
