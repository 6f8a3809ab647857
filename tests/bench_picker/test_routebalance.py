"""RouteBalance's decision against one written a second time from the prose alone, in floats and in exact fractions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest

from baselines import routebalance
from baselines.routebalance import Costs, Rule, State
from virtualfleet import engines, tiers
from virtualfleet.engines import NOBODY

Number = float | Fraction
Exact = Callable[[float], Number]


@dataclass(frozen=True)
class Replica:
    """An instance as the second writing sees it."""

    name: int
    model: int
    step: tuple[Number, Number, Number]
    answered: bool
    running: int
    waiting: int
    owed_tokens: Number
    queued_prompt: int
    held: int
    capacity: int
    last_use: int

    @property
    def load(self) -> int:
        return self.running + self.waiting

    def as_empty_reply(self) -> Replica:
        return replace(self, running=0, waiting=0, owed_tokens=0, queued_prompt=0, held=0)


@dataclass(frozen=True)
class Prompt:
    tokens: int
    score: list[Number]
    length: list[Number]


class Router:
    """Decides with numbers of one kind.

    Args:
        rule: Its settings.
        exact: Makes a number of a float.
    """

    def __init__(self, rule: Rule, exact: Exact) -> None:
        self.rule, self.exact = rule, exact
        self.dust = exact(routebalance.SMALLEST)
        self.weights = [exact(weight) for weight in rule[:4]]
        self.prices = [(exact(tier.input_price), exact(tier.output_price)) for tier in tiers.TIERS]

    def seconds(self, replica: Replica, prompt: Prompt) -> Number:
        places = replica.capacity if replica.answered else routebalance.ASSUMED_SLOTS
        if self.rule.static:
            per_token = self.exact(tiers.TIERS[replica.model].prior_tpot_s)
        else:
            base, each_sequence, each_token = replica.step
            joined = min(replica.load + 1, places)
            context = replica.held + replica.queued_prompt + prompt.tokens + max(prompt.length) / 2
            per_token = base + each_sequence * joined + each_token * context
        per_token = max(per_token, self.exact(routebalance.SHORTEST_TPOT_S))
        own = prompt.length[replica.model]
        if replica.waiting == 0 and replica.running < places:
            return max(1, int(own)) * per_token
        return (replica.owed_tokens / max(1, replica.running) + own) * per_token

    def benefits(self, values: list[Number]) -> list[Number]:
        return [1 - value / (max(values) + self.dust) for value in values]

    def ranked(self, replicas: list[Replica], prompt: Prompt) -> list[tuple]:
        """All candidates with what they are compared by, best first."""
        seen = [one if one.answered else one.as_empty_reply() for one in replicas if one.answered or self.rule.empty_is_idle]
        if not seen:
            return []
        seconds = [self.seconds(one, prompt) for one in seen]
        dollars = [
            prompt.tokens * paid_in + prompt.length[one.model] * paid_out
            for one, (paid_in, paid_out) in ((one, self.prices[one.model]) for one in seen)
        ]
        scores = [prompt.score[one.model] for one in seen]
        if self.rule.minmax:
            scores = [(score - min(scores)) / (max(scores) - min(scores) + self.dust) for score in scores]
        used = [self.exact(one.load / one.capacity) for one in seen]
        terms = (scores, self.benefits(seconds), self.benefits(dollars), self.benefits(used))
        totals = [
            sum(weight * term for weight, term in zip(self.weights, one, strict=True)) for one in zip(*terms, strict=True)
        ]
        ties = seconds if self.rule.ties_by_latency else [one.load for one in seen]
        rows = zip(totals, ties, seen, strict=True)
        return sorted((-total, tie, one.last_use, one.name) for total, tie, one in rows)


def batch(router: Router, replicas: list[Replica], prompts: list[Prompt], stamp: int) -> list[int]:
    """Where a batch goes, longest first, each pick seen by the next."""
    goes = {}
    fleet = {one.name: one for one in replicas}
    for at in sorted(range(len(prompts)), key=lambda at: -max(prompts[at].length)):
        order = router.ranked(list(fleet.values()), prompts[at])
        if not order:
            goes[at] = NOBODY
            continue
        name = goes[at] = order[0][-1]
        chosen = fleet[name]
        fleet[name] = replace(
            chosen,
            waiting=chosen.waiting + 1,
            queued_prompt=chosen.queued_prompt + prompts[at].tokens,
            owed_tokens=chosen.owed_tokens + max(prompts[at].length),
            last_use=stamp,
        )
        stamp += 1
    return [goes[at] for at in range(len(prompts))]


def random_state(chance: np.random.Generator, slots: int) -> State:
    n = len(tiers.MODEL_OF)
    busy = chance.integers(0, 4)
    running = chance.integers(0, [2, 12, slots, slots + 1][busy], n)
    waiting = chance.integers(0, [1, 2, 6, 40][busy], n)
    return State(
        answered=(chance.random(n) > 0.1).astype(np.int64),
        running=running,
        waiting=waiting,
        pending_decode=((running + waiting) * chance.integers(0, 400, n)).astype(float),
        pending_prefill=waiting * chance.integers(1, 300, n),
        kv=running * chance.integers(1, 900, n).astype(np.int64),
        slots=np.full(n, slots, dtype=np.int64),
        picked=chance.permutation(n).astype(np.int64) - 1,
    )


def as_replicas(state: State, costs: Costs, exact: Exact) -> list[Replica]:
    columns = zip(*(column.tolist() for column in (costs.model, *costs[-3:], *state)), strict=True)
    return [
        Replica(
            name=i,
            model=model,
            step=(exact(base), exact(each_sequence), exact(each_token)),
            answered=bool(answered),
            running=running,
            waiting=waiting,
            owed_tokens=exact(owed),
            queued_prompt=int(queued),
            held=int(held),
            capacity=capacity,
            last_use=last_use,
        )
        for i, (
            model,
            base,
            each_sequence,
            each_token,
            answered,
            running,
            waiting,
            owed,
            queued,
            held,
            capacity,
            last_use,
        ) in enumerate(columns)
    ]


def random_rule(chance: np.random.Generator) -> Rule:
    weights = chance.choice([0.0, 0.1, 0.33, 0.5, 0.8], 3)
    flags = (bool(flag) for flag in chance.integers(0, 2, 4))
    return Rule(*map(float, weights), float(chance.choice([0.0, 0.2])), *flags)


def differing(costs: Costs, cases: int, most: int, exact: Exact) -> int:
    """Random states, each with a batch of up to `most` requests, that the two writings route differently."""
    chance = np.random.default_rng(1)
    wrong = 0
    for _ in range(cases):
        state, rule = random_state(chance, int(chance.choice([8, 32]))), random_rule(chance)
        k = int(chance.integers(1, most + 1))
        prompt = chance.integers(1, 1500, k)
        # Some scores and lengths are equal, so that ties happen; others have digits.
        quality = np.where(chance.random((k, 4)) < 0.5, chance.integers(0, 3, (k, 4)) / 2, chance.random((k, 4)))
        tokens = np.where(chance.random((k, 4)) < 0.3, chance.integers(1, 900, (k, 1)), chance.uniform(0.2, 900, (k, 4)))
        rows = zip(prompt.tolist(), quality.tolist(), tokens.tolist(), strict=True)
        prompts = [Prompt(long, [exact(one) for one in score], [exact(one) for one in length]) for long, score, length in rows]
        expected = batch(Router(rule, exact), as_replicas(state, costs, exact), prompts, 100)
        wrong += routebalance.assign(rule, costs, state, 100, prompt, quality, tokens).tolist() != expected
    return wrong


@pytest.fixture(scope="module")
def costs() -> Costs:
    return routebalance.costs(engines.build(np.ones(1), np.ones((1, 4)), 32))


def test_ten_thousand_picks_equal_those_of_a_second_writing(costs: Costs) -> None:
    assert differing(costs, cases=10_000, most=1, exact=float) == 0


def test_batches_equal_those_of_a_second_writing_in_exact_numbers(costs: Costs) -> None:
    assert differing(costs, cases=100, most=5, exact=Fraction) == 0


def pick_with(costs: Costs, scores: list[float], *, minmax: bool = True, **weights: float) -> str:
    """The tier that idle instances with equal lengths give, at the paper's prior times per output token and prices."""
    idle = routebalance.unknown(len(tiers.MODEL_OF), 256)
    idle.answered[:] = 1
    rule = Rule(minmax=minmax, static=True, **weights)
    return tiers.NAMES[costs.model[routebalance.pick(rule, costs, idle, 1, np.array(scores), np.full(4, 1000.0))]]


@pytest.mark.parametrize(("gap", "tier"), [(0.19, "3b"), (0.21, "7b")])
def test_7b_needs_a_gap_of_a_fifth_at_uniform_weights(costs: Costs, gap: float, tier: str) -> None:
    # The 72B scores best and sets the scale; it is out of reach all the same.
    assert pick_with(costs, [0.0, gap, 0.0, 1.0]) == tier


@pytest.mark.parametrize(("gap", "tier"), [(0.34, "3b"), (0.36, "14b")])
def test_14b_needs_a_gap_of_a_third_at_uniform_weights(costs: Costs, gap: float, tier: str) -> None:
    assert pick_with(costs, [0.0, 0.0, gap, 1.0]) == tier


@pytest.mark.parametrize("others", [(0.0, 0.0, 0.0), (0.9, 0.9, 0.9), (0.0, 0.5, 0.2)])
def test_72b_is_out_of_reach_at_uniform_weights(costs: Costs, others: tuple[float, float, float]) -> None:
    assert pick_with(costs, [*others, 1.0]) != "72b"


@pytest.mark.parametrize(
    ("others", "tier"),
    [
        ((0.14, 0.17, 0.37), "72b"),
        ((0.16, 0.17, 0.37), "3b"),
        ((0.14, 0.18, 0.37), "7b"),
        ((0.14, 0.17, 0.38), "14b"),
    ],
)
def test_72b_is_reached_without_a_price_of_latency(costs: Costs, others: tuple[float, float, float], tier: str) -> None:
    assert pick_with(costs, [*others, 1.0], minmax=False, quality=0.5, latency=0.0, cost=0.5) == tier


def test_an_instance_that_does_not_answer_looks_idle_unless_that_is_switched_off(costs: Costs) -> None:
    state = routebalance.unknown(len(tiers.MODEL_OF), 256)
    state.answered[1:], state.running[1:] = 1, 50
    request = 10, np.zeros(4), np.full(4, 100.0)
    rule = Rule(quality=0.0, latency=0.0, cost=1.0)
    assert routebalance.pick(rule, costs, state, *request) == 0
    assert routebalance.pick(rule._replace(empty_is_idle=False), costs, state, *request) == 1
    state.answered[:] = 0
    assert routebalance.pick(rule._replace(empty_is_idle=False), costs, state, *request) == NOBODY


def test_batches_fill_up_or_wait_fifty_milliseconds_while_nothing_queues() -> None:
    # The first batch waits for eight requests or 100 ms; every later one for four or 50 ms.
    arrival_s = np.array([0.0, 0.2, 0.201, 0.202, 0.203, 0.5, 0.52])
    n = len(arrival_s)
    fleet = engines.build(np.full(n, 10), np.full((n, 4), 5), 256)
    state, nobody = routebalance.unknown(len(tiers.MODEL_OF), 256), np.zeros(len(tiers.MODEL_OF), dtype=np.int64)
    arguments = arrival_s, np.full((n, 4), 0.5), np.full((n, 4), 5.0), 0.0, nobody
    held_s = routebalance.run.py_func(fleet, Rule(), routebalance.costs(fleet), state, *arguments)
    assert fleet.sent_s == pytest.approx([0.1, 0.203, 0.203, 0.203, 0.203, 0.55, 0.55])
    assert held_s == pytest.approx(np.mean(fleet.sent_s - arrival_s))
