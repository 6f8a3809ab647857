"""One request, as it is asked for and as it is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as the picker knows it.

    Attributes:
        quality: Expected score by model name; a model that is not named scores 0.
        output_tokens: Expected length by model name; a model that is not named is taken for the mean of those that are.
        models: Models the request may go to; None for all that the class's rule names.
        subset: Addresses the gateway allows; None for all.
        max_output_tokens: The request's own limit.
        budget: Dollars, never exceeded as far as ``max_output_tokens`` tells what the request may cost.
        ttft_slo_s: Bound on the time to first token, where it is stricter than that of the class.
        inter_token_slo_s: Bound on the mean time between tokens.
        e2e_slo_s: Bound on the time to the last token.
        min_quality: Least expected score.
        weight: How heavy the request is under overload; it multiplies the weight of its class.
        tenant: Who shares fairly with the others under overload. Whoever may choose a new name for each request has no share.
        prefix: Chained hashes of the prompt's leading blocks, all of one length.
    """

    request_class: str
    prompt_tokens: float
    quality: Mapping[str, float]
    output_tokens: Mapping[str, float]
    models: frozenset[str] | None = None
    subset: frozenset[str] | None = None
    max_output_tokens: float | None = None
    budget: float | None = None
    ttft_slo_s: float | None = None
    inter_token_slo_s: float | None = None
    e2e_slo_s: float | None = None
    min_quality: float = 0.0
    weight: float = 1.0
    tenant: str = ""
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ClassRule:
    """What the plan says of a request class.

    Attributes:
        ttft_s: Time to first token that the class may expect; None for the picker's own guard.
        models: Those that the class may go to; None for all. Not only those that the plan sends it to: a replica that could
            not keep the class's target at the load that is planned for may well keep it now. Nor are the plan's prices by
            model a part of the score: they would draw its shares request by request, and force picks which the live state
            says are bad.
    """

    name: str
    weight: float = 1.0
    ttft_s: float | None = None
    models: frozenset[str] | None = None


class Outcome(Enum):
    """How a request ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    TIMED_OUT = "timed out"


class Reason(Enum):
    """Why a request was picked for or turned away."""

    PICKED = "picked"
    OVERLOAD = "overload"
    BUDGET = "budget"
    NOBODY = "no endpoint"


@dataclass(frozen=True, slots=True)
class Terms:
    """Every term of the score of one endpoint for one request.

    ``utility`` is ``quality - money - latency - first_token - congestion``, where ``congestion`` is the larger of
    ``externality`` and ``capacity``. All are in units of quality.

    Attributes:
        high_ttft_s: What the time to first token is very likely to stay below; held against its bound.
        relaxed: Constraints that the endpoint does not meet, the one that was given up last standing last.
        runners_up: The next in the order of candidates, best first.
    """

    address: str
    pool: str
    model: str
    utility: float
    quality: float
    money: float
    latency: float
    first_token: float
    externality: float
    capacity: float
    congestion: float
    cost_dollars: float
    ttft_s: float
    high_ttft_s: float
    inter_token_s: float
    e2e_s: float
    in_flight: float
    prefix_tokens: float
    relaxed: tuple[str, ...]
    runners_up: tuple[Terms, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer to a request.

    Attributes:
        candidates: Distinct addresses in the order to be tried; empty unless ``status`` is 200.
        ticket: What later events of the request are told by; None unless ``status`` is 200.
        status: 200, 429 when shed or when no endpoint is within the budget, 503 when nobody may serve it.
        retry_after_s: After which a request that was shed is likely to be served; 0 unless ``status`` is 429.
        explained: The terms, or what makes them: few ever ask.
        pool, model: Of the first candidate; empty without one.
        ttft_s: Time to first token that is expected there.
    """

    candidates: tuple[str, ...]
    ticket: int | None
    status: int
    retry_after_s: float
    explained: Terms | Callable[[], Terms] | None
    reason: Reason = Reason.PICKED
    pool: str = ""
    model: str = ""
    ttft_s: float = 0.0

    @property
    def terms(self) -> Terms | None:
        """Of the chosen one, or of the best one when the request is shed."""
        return self.explained() if callable(self.explained) else self.explained
