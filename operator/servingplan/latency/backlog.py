"""Time to first token behind other prompts.

A request that arrives at a uniform point of a running step (the longer the step, the likelier) waits for the rest of it, on an
asynchronous engine for the step that is composed already, then for the full steps that the tokens ahead and its own take, and
for its last step with all that joins it there. What it finds is the stationary chain of ``latency.chain``. What is kept of the
dependence between these parts: by the length of the running step, and by whether prompts were left over for later steps.

Arrivals burstier than Poisson come in batches of geometric size whose mean gives the coefficient of variation over long times.

Left out: fluctuations of the number of running requests; a step's time takes their mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from servingplan.latency.chain import CELLS, Chain, Spectrum, masses_of, stationary_chain, transformed
from servingplan.latency.distribution import Gridded, Weighted
from servingplan.latency.grid import Floats, shifted, split, uniform

_NEGLIGIBLE = 1e-4
_SEVERAL = 3
_OWN_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class Prefill:
    """A replica as its prompts see it.

    Attributes:
        fixed_s: Time of a step without prompt tokens.
        floor_tokens: Prompt tokens whose computing hides behind the reading of the weights.
        compute_s: Seconds per prompt token above the floor.
        read_s: Seconds per prompt token in any case.
        budget: Prompt tokens per step.
        asynchronous: Whether a step is composed while the one before it runs.
    """

    fixed_s: float
    floor_tokens: float
    compute_s: float
    read_s: float
    budget: float
    asynchronous: bool = True

    def step_s(self, tokens: Floats) -> Floats:
        """Time of steps with these prompt tokens; of several steps where they exceed the budget."""
        steps = np.maximum(1.0, tokens / self.budget)
        return (
            self.fixed_s * steps + self.read_s * tokens + self.compute_s * np.maximum(0.0, tokens - steps * self.floor_tokens)
        )

    @property
    def token_s(self) -> float:
        """Seconds per prompt token of a full step."""
        return float(self.step_s(np.array(self.budget))) / self.budget


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The prompts that arrive.

    Attributes:
        prompts: (n,) tokens.
        weights: (n,) of the prompts, summing to 1.
        rate_rps: Requests per second.
        batch: Mean size of the batches they come in; 1 is Poisson.
    """

    prompts: Floats
    weights: Floats
    rate_rps: float
    batch: float = 1.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a request finds, in branches.

    Attributes:
        prefill: The replica.
        cell_tokens: Tokens of one cell.
        cell_s: Seconds of one cell.
        steps_s: (budget + 1,) time of steps with 0, 1 ... cells.
        ahead: (branches, frequencies) of the tokens ahead, each times the branch's probability.
        before: (branches, frequencies) of the time until the first step that may be the request's own.
        joining: (branches, budget + 1, budget + 1) from the cells of a request's last step, its own included, to those of all
            that join it too; for a request that needs one step only.
        joining_later: The same for a request that needs two steps, and for one that needs more; (2, budget + 1, budget + 1).
        mean_step_s: Mean time of a step.
    """

    prefill: Prefill
    cell_tokens: float
    cell_s: float
    steps_s: Floats
    mean_step_s: float
    ahead: Spectrum
    before: Spectrum
    joining: Floats
    joining_later: Floats

    def first_token(self, prompts: Floats, weights: Floats) -> Gridded:
        """Time to first token of requests with these prompts: (n,) tokens and (n,) weights summing to 1."""
        later_s, kept = self._beyond_grid(prompts)
        if not later_s.any():
            return Gridded(self._on_grid(prompts, weights), self.cell_s)
        within, beyond = weights * (later_s == 0), weights * (later_s > 0)
        later = later_s / self.cell_s
        delay = split(later, beyond, int(later.max()) + 2)
        masses = np.convolve(self._on_grid(kept, beyond), delay) / beyond.sum()
        if within.any():
            masses[: 2 * CELLS] += self._on_grid(prompts, within)
        return Gridded(masses, self.cell_s)

    def _beyond_grid(self, prompts: Floats) -> tuple[Floats, Floats]:
        """Seconds that (n,) prompts take for what leaves the grid, full steps first, and (n,) the tokens that stay."""
        budget, reach = self.prefill.budget, CELLS * self.cell_tokens
        # Where the grid ends within one step, so must the prompt with all that is ahead of it.
        limit = reach if budget <= reach else reach / 2
        steps = np.where(prompts > limit, np.ceil(np.maximum(0.0, prompts - max(limit, budget)) / budget), 0.0)
        rest = prompts - steps * budget
        kept = np.minimum(rest, limit)
        full_s = self.prefill.step_s(np.array([budget]))
        return steps * full_s + self.prefill.step_s(rest) - self.prefill.step_s(kept), kept

    def _on_grid(self, prompts: Floats, weights: Floats) -> Floats:
        """(2 CELLS,) masses of the time to first token, summing to the weights."""
        cells, budget = 2 * CELLS, len(self.steps_s) - 1
        own = transformed(_own_cells(prompts / self.cell_tokens, weights, budget))
        to_compute = masses_of(self.ahead * own)
        branches, steps = len(to_compute), -(-(cells - 1) // budget)
        padded = np.zeros((branches, steps * budget + 1))
        padded[:, :cells] = to_compute
        # [:, k]: requests that need k + 1 steps, by the cells of their last one.
        last = np.zeros((branches, steps, budget + 1))
        last[:, :, 1:] = padded[:, 1:].reshape(branches, steps, budget)
        last[:, 0, 0] = padded[:, 0]
        # A mass at a full step stands for values around it: half of them need one step more.
        last[:, 1:, 0] = last[:, :-1, -1] / 2
        last[:, :-1, -1] /= 2
        last[:, 0] = (last[:, 0, None, :] @ self.joining)[:, 0]
        last[:, 1:2] = last[:, 1:2] @ self.joining_later[0]
        last[:, 2:] = last[:, 2:] @ self.joining_later[1]
        ends = (np.arange(steps)[:, None] * self.steps_s[-1] + self.steps_s).ravel() / self.cell_s
        # The rest of the grid is for the time before: a sum that left the grid would come in again at its start.
        ends = np.minimum(ends, _OWN_SHARE * cells)
        found = masses_of((transformed(_split_rows(ends, last.reshape(branches, -1))) * self.before).sum(axis=0))
        scaled: Floats = found * (weights.sum() / found.sum())
        return scaled


def unloaded(prompts: Floats, weights: Floats, prefill: Prefill) -> Weighted:
    """Time to first token on an idle replica: the steps of the prompt itself."""
    full = np.maximum(0.0, np.ceil(prompts / prefill.budget) - 1)
    steps_s = prefill.step_s(np.array([prefill.budget])) * full + prefill.step_s(prompts - full * prefill.budget)
    order = np.argsort(steps_s, kind="stable")
    return Weighted(steps_s[order], weights[order])


def backlog(arrivals: Arrivals, prefill: Prefill, idle: float = 0.0) -> Backlog:
    """The queue in front of a request.

    Args:
        arrivals: All that arrive.
        prefill: The replica.
        idle: Fraction of the time in which nothing runs; a request that arrives then waits for nothing.
    """
    cell_tokens, budget = _grid(arrivals, prefill)
    steps_s = prefill.step_s(cell_tokens * np.arange(budget + 1.0))
    lengths = transformed(split(arrivals.prompts / cell_tokens, arrivals.weights, 2 * CELLS))
    # As many of a geometric batch come ahead of a request as behind it.
    beside = 1 / (arrivals.batch - (arrivals.batch - 1) * lengths)
    exponents = np.outer(steps_s, arrivals.rate_rps * (lengths - 1) * beside)
    arrived = np.exp(exponents)
    sized = float(arrivals.weights @ arrivals.prompts**2 / (arrivals.weights @ arrivals.prompts))
    chain = stationary_chain(arrived, steps_s, prefill.asynchronous, prefill.budget > _SEVERAL * sized)
    # Tokens that arrive before a uniform point of the step; as many arrive after it.
    exponents[:, 0] = 1.0
    around = (arrived - 1) / exponents  # at frequency 0, where both vanish, the limit is 1
    around[:, 0] = 1.0
    cell_s = (4 * prefill.fixed_s + 1.3 * CELLS * cell_tokens * prefill.token_s) / (2 * CELLS)
    return _found(chain, arrived, around * beside, steps_s, cell_tokens, cell_s, idle, prefill)


def _grid(arrivals: Arrivals, prefill: Prefill) -> tuple[float, int]:
    """Tokens per cell, and cells per budget: as fine as the cells allow that still hold nearly all of the backlog."""
    mean = float(arrivals.weights @ arrivals.prompts)
    square = float(arrivals.weights @ arrivals.prompts**2)
    load = min(0.95, arrivals.rate_rps * mean * prefill.token_s)
    longest = min(float(arrivals.prompts.max()), mean + 6 * max(0.0, square - mean**2) ** 0.5)
    per_step = arrivals.rate_rps * prefill.fixed_s / (1 - load)
    residual = (square / mean + 2 * (arrivals.batch - 1) * mean) / 2
    in_step = (1 + 3 * (arrivals.batch * per_step) ** 0.5 + 2 * per_step) * arrivals.batch * mean
    reach = 1.25 * longest + 6 * residual * load / (1 - load) + in_step
    budget = round(prefill.budget * CELLS / reach)
    if budget >= CELLS:
        return reach / CELLS, CELLS - 1
    # A backlog of very many steps is taken several steps at a time.
    return (prefill.budget / budget, budget) if budget > 0 else (reach / CELLS, 1)


def _found(
    chain: Chain,
    arrived: Spectrum,
    around: Spectrum,
    steps_s: Floats,
    cell_tokens: float,
    cell_s: float,
    idle: float,
    prefill: Prefill,
) -> Backlog:
    budget = len(steps_s) - 1
    time_s = chain.within * steps_s
    mass = np.maximum(chain.waiting.sum(axis=1), 1e-300)
    long = mass * time_s.sum(axis=1)
    share = long / long.sum()
    # Idle times are among those in which no step holds a prompt.
    idle = min(idle, float(share[0]))
    share[0] -= idle
    within = time_s / time_s.sum(axis=1, keepdims=True)
    around = within @ around
    following, left = _following_and_left(chain.waiting / mass[:, None], budget)
    before = transformed(uniform(within @ steps_s / cell_s, 2 * CELLS))
    before_none_left, before_some_left = before * (1 - left.sum(axis=1))[:, None], before
    meanwhile = arrived[-1]
    if prefill.asynchronous:
        before_none_left = before * transformed(_split_rows(steps_s / cell_s, following))
        before_some_left = before * transformed(split(steps_s[-1:] / cell_s, np.ones(1), 2 * CELLS))
        following[:, -1] += left.sum(axis=1)
        meanwhile = share @ following / max(1e-9, 1 - idle) @ arrived
    # Of a request that needs further steps, all that arrives until its last one is composed may join that.
    until = share @ around / max(1e-9, 1 - idle) * meanwhile
    nothing = np.ones((1, CELLS + 1))
    ahead = np.concatenate([share[:, None] * around, share[:, None] * around * transformed(left), idle * nothing])
    joining = np.array([_joined(row, budget) for row in np.concatenate([masses_of(around), np.eye(1, 2 * CELLS)])])
    kept = ahead[:, 0].real > _NEGLIGIBLE
    return Backlog(
        prefill=prefill,
        cell_tokens=cell_tokens,
        cell_s=cell_s,
        steps_s=steps_s,
        mean_step_s=float(long.sum()),
        ahead=ahead[kept],
        before=np.concatenate([before_none_left, before_some_left, nothing])[kept],
        joining=joining[np.array([*range(len(share)), *range(len(share)), len(share)])[kept]],
        joining_later=np.array([_joined(row, budget) for row in masses_of(np.stack([until, until * arrived[-1]]))]),
    )


def _following_and_left(waiting: Floats, budget: int) -> tuple[Floats, Floats]:
    """(groups, budget + 1) of the step composed out of what waits, if it takes all, and (groups, 2 CELLS) of what it leaves."""
    left = np.zeros_like(waiting)
    left[:, 1 : 2 * CELLS - budget] = waiting[:, budget + 1 :]
    return waiting[:, : budget + 1].copy(), left


def _joined(joining: Floats, budget: int) -> Floats:
    """(budget + 1, budget + 1) from the cells taken in a step to the cells taken after others joined, up to the budget."""
    fitting = joining[: budget + 1].copy()
    fitting[-1] += joining[budget + 1 :].sum()
    return shifted(fitting, budget + 1)


def _own_cells(prompts: Floats, weights: Floats, budget: int) -> Floats:
    """Masses of the request's own prompt; one just longer than some full steps keeps the further step that it needs."""
    full = np.maximum(0.0, np.ceil(prompts / budget - 1e-9) - 1)
    return split(np.where(full > 0, np.maximum(prompts, full * budget + 1), prompts), weights, 2 * CELLS)


def _split_rows(values: Floats, weights: Floats) -> Floats:
    """(rows, 2 CELLS) masses of (n,) values, in cells, under (rows, n) weights."""
    cells, rows = 2 * CELLS, len(weights)
    values = np.minimum(values, cells - 1.0)
    below = np.minimum(values.astype(np.intp), cells - 2)
    upper = weights * (values - below)
    at = (below + cells * np.arange(rows)[:, None]).ravel()
    found = np.bincount(at, (weights - upper).ravel(), rows * cells) + np.bincount(at + 1, upper.ravel(), rows * cells)
    return np.asarray(found[: rows * cells], dtype=np.float64).reshape(rows, cells)
