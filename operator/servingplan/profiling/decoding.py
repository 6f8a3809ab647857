"""Stretches of undisturbed decoding, read off the tokens' times.

Where nobody waits for a first token and nobody ends, each engine step gives every running request one token, and nothing
else happens: the time of k steps is k (alpha + max(floor, beta n) + gamma context) exactly, whatever the queue or the
scheduler do elsewhere. The stretches tell alpha and gamma apart from the rest of the model, which has to guess how prompts
and outputs meet.

A stretch is given to the fit as a request log of its own kind: its requests begin with the context they have come to and
end with the stretch. Stretches lie apart, so that no prompt falls into one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from servingplan.latency.fit import RequestLog
from servingplan.profiling.exchange import Sample

_FEWEST_STEPS = 4
_LEAST_REQUESTS = 10
_JUDGED_STEPS = 20


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps in which the same requests decoded and nothing else happened.

    Attributes:
        start_s, end_s: From the end of one step to the end of another, by the monotonic clock.
        steps: In that time.
        contexts: Tokens of each request, its prompt among them, when the first of these steps began.
    """

    start_s: float
    end_s: float
    steps: int
    contexts: tuple[int, ...]


def stretches(samples: Iterable[Sample]) -> list[Stretch]:
    """The stretches of one level.

    Args:
        samples: Every request of the level; times are infinite of those that were given up without a token.
    """
    ordered = sorted(samples, key=lambda sample: sample.sent_s)
    gaps = [late - early for one in ordered for early, late in pairwise(one.token_s)]
    if not gaps:
        return []
    margin_s = median(gaps) / 2
    found = (_stretch(running, start_s + margin_s, end_s - margin_s) for start_s, end_s, running in _quiet(ordered))
    return [one for one in found if one is not None]


def decode_log(chosen: Sequence[Stretch]) -> RequestLog | None:
    """Stretches, of one clock, as a request log; None where they are too few or too short for a fit."""
    rows = [(stretch, context) for stretch in chosen for context in stretch.contexts]
    if len(rows) < _LEAST_REQUESTS or max(stretch.steps for stretch in chosen) < _JUDGED_STEPS:
        return None
    return RequestLog(
        arrival_s=tuple(stretch.start_s for stretch, _ in rows),
        prompt_tokens=tuple(context - 1 for _, context in rows),
        output_tokens=tuple(stretch.steps + 1 for stretch, _ in rows),
        first_token_s=tuple(stretch.start_s for stretch, _ in rows),
        last_token_s=tuple(stretch.end_s for stretch, _ in rows),
    )


def _quiet(samples: Sequence[Sample]) -> Iterator[tuple[float, float, tuple[Sample, ...]]]:
    """Times during which nobody waits and the running requests stay the same."""
    changes = [(one.sent_s, "sent", one) for one in samples]
    changes += [(one.first_s, "first", one) for one in samples]
    changes += [(one.last_s, "last", one) for one in samples]
    changes.sort(key=lambda change: change[0])
    waiting = 0
    running: dict[int, Sample] = {}
    for (at_s, what, one), (next_s, _, _) in pairwise(changes):
        match what:
            case "sent":
                waiting += 1
            case "first":
                waiting -= 1
                running[id(one)] = one
            case "last":
                running.pop(id(one), None)
        if waiting == 0 and running:
            yield at_s, next_s, tuple(running.values())


def _stretch(running: Sequence[Sample], start_s: float, end_s: float) -> Stretch | None:
    """The steps between two moments; None where the requests' tokens do not come in common steps."""
    tokens = [[k for k, at_s in enumerate(one.token_s) if start_s < at_s < end_s] for one in running]
    count = len(tokens[0])
    if count <= _FEWEST_STEPS or any(len(own) != count for own in tokens):
        return None
    return Stretch(
        start_s=fmean(one.token_s[own[0]] for one, own in zip(running, tokens, strict=True)),
        end_s=fmean(one.token_s[own[-1]] for one, own in zip(running, tokens, strict=True)),
        steps=count - 1,
        contexts=tuple(one.prompt_tokens + own[0] + 1 for one, own in zip(running, tokens, strict=True)),
    )
