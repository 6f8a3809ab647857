"""From a request to what is asked of the decision: the model it may go to, its class, its limits.

The rules are those of the router without a picker (the table's routes), so that a request means the same on both ways:

1. Only POST to a generating path is decided; everything else goes on untouched.
2. A body that names a model of the plan is obeyed, whatever its class. The plan's own name, ``auto``, an empty or a missing
   name leave the choice. Any other is refused with 404.
3. The class is the first of the table whose headers all match, else the class without headers, else the last.

Headers that a client may send, none of which names a pod:

| Header | Meaning |
| --- | --- |
| ``x-llm-d-slo-ttft-ms`` (``x-slo-ttft-ms``) | longest wait for the first token, in milliseconds |
| ``x-llm-d-slo-tpot-ms`` (``x-slo-tpot-ms``) | longest mean time between two tokens, in milliseconds |
| ``x-llm-d-inference-fairness-id`` (``x-gateway-inference-fairness-id``) | the tenant, among whom overload is shared |
| ``x-servingplan-e2e-ms`` | longest time to the last token, in milliseconds |
| ``x-servingplan-budget`` | most that the request may cost, in dollars |
| ``x-servingplan-min-quality`` | least predicted quality, from 0 to 1 |
| ``x-servingplan-priority`` | fraction of its class's weight, above 0 and at most 1: nobody makes himself more important |
| ``x-servingplan-explain`` | ``true`` asks for the receipt of the decision, where the plan allows that |

A value that cannot be used is refused with 400, because a budget that is silently ignored is spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from servingplan.api.routing_table import ClassEntry, RoutingTable
from servingplan.picker.body import Prompt
from servingplan.picker.protocol import Opening, Refusal
from servingplan.render.envoy.routes import AUTO, GENERATING_PATHS
from servingplan.routing.ask import Ask

_PATHS = frozenset(f"/v1/{path}" for path in GENERATING_PATHS)
_NO_OUTPUT_PATHS = frozenset({"/v1/embeddings"})
_MOST_TENANT_CHARACTERS = 64

TTFT_HEADERS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
INTER_TOKEN_HEADERS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
TENANT_HEADERS = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
E2E_HEADERS = ("x-servingplan-e2e-ms",)
BUDGET_HEADERS = ("x-servingplan-budget",)
MIN_QUALITY_HEADERS = ("x-servingplan-min-quality",)
PRIORITY_HEADERS = ("x-servingplan-priority",)
EXPLAIN_HEADER = "x-servingplan-explain"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a predictor says of one prompt, by model name.

    Attributes:
        quality: From 0 to 1.
        output_tokens: Mean length of the answer; empty when only quality is predicted.
    """

    quality: Mapping[str, float]
    output_tokens: Mapping[str, float] = field(default_factory=dict)


Predict = Callable[[Sequence[str]], Sequence[Prediction]]
"""A predictor: what it says of each of some prompts."""


@dataclass(frozen=True, slots=True)
class RequestClass:
    """A request class, ready to be matched and asked for.

    Attributes:
        entry: The class in the table.
        headers: Pairs of name and value that a request of the class carries.
        quality: By name of every model of the plan; 0 for a model that the class does not use.
        output_tokens: Likewise, the class's mean.
    """

    entry: ClassEntry
    headers: tuple[tuple[str, bytes], ...]
    quality: Mapping[str, float]
    output_tokens: Mapping[str, float]


class Catalogue:
    """A routing table as requests are held against it; made once per table.

    Attributes:
        table: The table it was made of.
        models: Names of the models.
    """

    def __init__(self, table: RoutingTable) -> None:
        self.table = table
        self.models = tuple(model.name for model in table.models)
        self._free = frozenset({table.plan, AUTO, ""})
        self._named = frozenset(self.models) - self._free
        entries = list(table.classes)
        rest = next((entry for entry in entries if not entry.headers), entries[-1] if entries else None)
        self._labelled = tuple(self._class(entry) for entry in entries if entry.headers)
        self._rest = self._class(rest) if rest else None

    def _class(self, entry: ClassEntry) -> RequestClass:
        return RequestClass(
            entry=entry,
            headers=tuple((name, value.encode()) for name, value in entry.headers.items()),
            quality={model: entry.quality.get(model, 0.0) for model in self.models},
            output_tokens=dict.fromkeys(self.models, float(entry.output_tokens)),
        )

    def request_class(self, headers: Mapping[str, bytes]) -> RequestClass | None:
        """The class of a request with these headers; None in a table without classes."""
        for labelled in self._labelled:
            if all(headers.get(name) == value for name, value in labelled.headers):
                return labelled
        return self._rest

    def named(self, model: str | None) -> str | Refusal | None:
        """The model that a request insists on; None when it leaves the choice, a refusal when the plan has no such model."""
        if model in self._named:
            return model
        if model in self._free:
            return None
        names = ", ".join(dict.fromkeys((self.table.plan, *self.models)))
        message = f"The model does not exist. Models of plan {self.table.plan}: {names}."
        return Refusal(404, "NotFoundError", "unknown_model", message, param="model")


def is_generation(opening: Opening) -> bool:
    """Whether a request is one that is decided."""
    path = opening.header(":path").partition("?")[0]
    return path in _PATHS and opening.header(":method") == "POST"


def asks_for_receipt(opening: Opening) -> bool:
    """Whether the client wants to be told of the decision."""
    return opening.header(EXPLAIN_HEADER).lower() in {"true", "1"}


def make_ask(
    catalogue: Catalogue, chosen: RequestClass, opening: Opening, prompt: Prompt, prediction: Prediction | None
) -> Ask | Refusal:
    """What is asked of the decision for one request.

    Args:
        catalogue: Of the present table.
        chosen: The request's class.
        opening: Its headers and the gateway's hints.
        prompt: What its body told.
        prediction: What a predictor says of it; None leaves it at the class's means.
    """
    named = catalogue.named(prompt.model)
    if isinstance(named, Refusal):
        return named
    limits = _limits(opening)
    if isinstance(limits, Refusal):
        return limits
    entry, quality, output_tokens = chosen.entry, chosen.quality, chosen.output_tokens
    if prediction is not None:
        quality = {**quality, **prediction.quality}
        output_tokens = {**output_tokens, **prediction.output_tokens}
    if opening.header(":path").partition("?")[0] in _NO_OUTPUT_PATHS:
        output_tokens = dict.fromkeys(output_tokens, 1.0)
    return Ask(
        request_class=entry.name,
        prompt_tokens=prompt.tokens,
        quality=quality,
        output_tokens=output_tokens,
        models=frozenset({named}) if named else None,
        subset=opening.subset,
        max_output_tokens=prompt.max_output_tokens,
        budget=limits.budget,
        ttft_slo_s=limits.ttft_s,
        inter_token_slo_s=entry.inter_token_s if limits.inter_token_s is None else limits.inter_token_s,
        e2e_slo_s=entry.e2e_s if limits.e2e_s is None else limits.e2e_s,
        # Whoever insists on a model has answered the question of quality himself.
        min_quality=limits.min_quality if named else max(entry.min_quality, limits.min_quality),
        weight=limits.priority,
        tenant=next((opening.header(name) for name in TENANT_HEADERS if name in opening.headers), "")[:_MOST_TENANT_CHARACTERS],
        prefix=prompt.prefix,
    )


@dataclass(frozen=True, slots=True)
class _Limits:
    ttft_s: float | None = None
    inter_token_s: float | None = None
    e2e_s: float | None = None
    budget: float | None = None
    min_quality: float = 0.0
    priority: float = 1.0


_NO_LIMITS = _Limits()
_SCALES = {
    **dict.fromkeys(TTFT_HEADERS, ("ttft_s", 0.001, math.inf)),
    **dict.fromkeys(INTER_TOKEN_HEADERS, ("inter_token_s", 0.001, math.inf)),
    **dict.fromkeys(E2E_HEADERS, ("e2e_s", 0.001, math.inf)),
    **dict.fromkeys(BUDGET_HEADERS, ("budget", 1.0, math.inf)),
    **dict.fromkeys(MIN_QUALITY_HEADERS, ("min_quality", 1.0, 1.0)),
    **dict.fromkeys(PRIORITY_HEADERS, ("priority", 1.0, 1.0)),
}
"""Of each header with a number: the limit that it sets, what one unit of it is, and the greatest value."""


def _limits(opening: Opening) -> _Limits | Refusal:
    sent = opening.headers.keys() & _SCALES.keys()
    if not sent:
        return _NO_LIMITS
    values: dict[str, float] = {}
    # In the order of the table, so that a header and its older name always settle alike.
    for name in (name for name in _SCALES if name in sent):
        limit, unit, most = _SCALES[name]
        value = _number(opening.header(name))
        if value is None or not 0 < value <= most:
            bound = "" if math.isinf(most) else f" and at most {most:g}"
            message = f"Header {name} must be a number above 0{bound}."
            return Refusal(400, "BadRequestError", "bad_header", message)
        values.setdefault(limit, value * unit)
    return _Limits(**values)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
