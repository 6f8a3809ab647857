"""The lengths of requests: prompt and output tokens, jointly.

A mix is known by its moments, or by a sample of (prompt, output) pairs. A mix of moments alone stands for lognormal and
independent lengths. Real lengths are neither: prompts of one class may come in two humps, and long prompts may go with short
outputs. So a sample keeps its shape wherever the shape matters (waits, percentiles), and its moments give the rest.

The moments of a blend are exact. Its shape is cut to a bounded number of weighted pairs, neighbours in prompt length merged
into their mean: that keeps both mean lengths, and loses a little spread within each merged pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLE_PAIRS, BLEND_PAIRS = 512, 256
"""Pairs that are kept at most, of a sample and of a blend."""

_PROMPT_CELLS, _OUTPUT_CELLS = 48, 16

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LengthSample:
    """Joint prompt and output lengths, each pair with a weight.

    A sample is part of the keys of every cache: as one block of memory it takes a sixth of what numbers of their own do.

    Attributes:
        data: (3, n) prompt tokens, output tokens and weights, as 64-bit floats.
    """

    data: bytes = b""

    @classmethod
    def of(cls, prompts: Floats, outputs: Floats, weights: Floats) -> LengthSample:
        """The sample of (n,) lengths and their weights, which sum to 1."""
        return cls(np.array([prompts, outputs, weights], dtype=np.float64).tobytes())

    @property
    def columns(self) -> Floats:
        """(3, n) prompt tokens, output tokens and weights; not to be written to."""
        return np.frombuffer(self.data).reshape(3, -1)

    def __len__(self) -> int:
        return len(self.data) // (3 * 8)


@dataclass(frozen=True, slots=True)
class TokenMix:
    """Lengths of a class's requests. ``TokenMix.of`` makes one from a sample, with the sample's moments.

    Attributes:
        prompt_tokens: Mean.
        output_tokens: Mean.
        prompt_cv: Coefficient of variation.
        output_cv: Coefficient of variation.
        sample: Joint lengths with their weights; empty where only the moments are known.
        correlation: Of prompt and output lengths.
    """

    prompt_tokens: float
    output_tokens: float
    prompt_cv: float = 1.0
    output_cv: float = 1.0
    sample: LengthSample = LengthSample()
    correlation: float = 0.0

    def __hash__(self) -> int:
        # A sample has thousands of pairs and is a key of every cache: unlike samples have unlike moments.
        return hash((self.prompt_tokens, self.output_tokens, self.prompt_cv, self.output_cv, self.correlation))

    @classmethod
    def of(cls, sample: Sequence[tuple[float, float]]) -> TokenMix:
        """The mix of a sample of (prompt, output) pairs.

        Raises:
            ValueError: The sample is empty, or has a length below 1.
        """
        pairs = tuple((prompt, output) for prompt, output in sample)
        if not pairs or min(map(min, pairs)) < 1:
            raise ValueError("a sample needs at least one pair, and every prompt and output at least one token")
        # In one order, so that the moments of a sample do not hang on the order it came in.
        prompts, outputs = np.array(sorted(pairs), dtype=float).T
        products = (prompts, outputs, prompts**2, outputs**2, prompts * outputs)
        columns = np.array(pairs, dtype=float).T
        found = LengthSample.of(columns[0], columns[1], np.full(len(pairs), 1 / len(pairs)))
        return _of_moments([float(values.mean()) for values in products], found)

    @property
    def held_token_steps(self) -> float:
        """Mean over requests of the KV tokens held, summed over the request's decode steps."""
        output_square = self.output_tokens**2 * (1 + self.output_cv**2)
        return self.prompt_output_product + (output_square + self.output_tokens) / 2

    @property
    def prompt_output_product(self) -> float:
        """Mean of prompt times output tokens."""
        return self.prompt_tokens * self.output_tokens * (1 + self.correlation * self.prompt_cv * self.output_cv)


class Lengths(NamedTuple):
    """A mix as weighted pairs.

    Attributes:
        prompts: (n,) tokens.
        outputs: (n,) tokens.
        weights: (n,) summing to 1.
    """

    prompts: Floats
    outputs: Floats
    weights: Floats


@lru_cache(maxsize=256)
def lengths(mix: TokenMix) -> Lengths:
    """The mix as weighted pairs: its sample, neighbours merged where it is large, or a grid over its lognormal lengths."""
    if mix.sample:
        prompts, outputs, weights = mix.sample.columns
        return _merged(np.column_stack([prompts, outputs]), weights, SAMPLE_PAIRS)
    prompts, outputs = (
        _lognormal(mix.prompt_tokens, mix.prompt_cv, _PROMPT_CELLS),
        _lognormal(mix.output_tokens, mix.output_cv, _OUTPUT_CELLS),
    )
    return Lengths(
        np.repeat(prompts[0], len(outputs[0])),
        np.tile(outputs[0], len(prompts[0])),
        np.outer(prompts[1], outputs[1]).ravel(),
    )


@lru_cache(maxsize=256)
def prompt_lengths(mix: TokenMix) -> tuple[Floats, Floats]:
    """(n,) prompt tokens and (n,) their weights, summing to 1."""
    if mix.sample:
        shape = lengths(mix)
        return shape.prompts, shape.weights
    return _lognormal(mix.prompt_tokens, mix.prompt_cv, _PROMPT_CELLS)


@lru_cache(maxsize=256)
def output_gaps(mix: TokenMix) -> tuple[Floats, Floats]:
    """(n,) gaps between a request's tokens, of the requests that have any, and (n,) their share of all requests."""
    shape = lengths(mix)
    several = shape.outputs >= 1.5
    if not several.any():
        return np.ones(1), np.full(1, 1e-12)
    merged = _merged(np.column_stack([shape.outputs[several], shape.outputs[several]]), shape.weights[several], _OUTPUT_CELLS)
    return np.maximum(1.0, merged.outputs - 1), merged.weights


def blend(parts: Sequence[tuple[float, TokenMix]]) -> TokenMix:
    """The mix of several that arrive together.

    Args:
        parts: Requests per second, and mix, of each; parts without requests do not count. Their order does not matter.

    Raises:
        ValueError: No part has requests.
    """
    by_mix: dict[TokenMix, list[float]] = {}
    for rate_rps, mix in parts:
        if rate_rps > 0:
            by_mix.setdefault(mix, []).append(rate_rps)
    present = sorted(((sum(sorted(rates)), mix) for mix, rates in by_mix.items()), key=_order)
    if not present:
        raise ValueError("a blend needs a part with requests")
    if len(present) == 1:
        return present[0][1]
    total_rps = sum(rate_rps for rate_rps, _ in present)
    shares = [rate_rps / total_rps for rate_rps, _ in present]
    shapes = [_shortened(mix, BLEND_PAIRS) for _, mix in present]
    shape = _merged(
        np.concatenate([np.column_stack(shape[:2]) for shape in shapes]),
        np.concatenate([share * shape.weights for share, shape in zip(shares, shapes, strict=True)]),
        BLEND_PAIRS,
    )
    moments = np.array(shares) @ np.array([_moments(mix) for _, mix in present])
    return _of_moments(moments.tolist(), LengthSample.of(*shape))


def _order(part: tuple[float, TokenMix]) -> tuple[float, ...]:
    rate_rps, mix = part
    return mix.prompt_tokens, mix.output_tokens, mix.prompt_cv, mix.output_cv, mix.correlation, rate_rps


def _moments(mix: TokenMix) -> tuple[float, ...]:
    return (
        mix.prompt_tokens,
        mix.output_tokens,
        mix.prompt_tokens**2 * (1 + mix.prompt_cv**2),
        mix.output_tokens**2 * (1 + mix.output_cv**2),
        mix.prompt_output_product,
    )


def _of_moments(moments: Sequence[float], sample: LengthSample) -> TokenMix:
    """A mix from the means of prompt, output, their squares and their product."""
    prompt, output, prompt_square, output_square, product = moments
    prompt_cv = max(0.0, prompt_square / prompt**2 - 1) ** 0.5
    output_cv = max(0.0, output_square / output**2 - 1) ** 0.5
    spread = prompt * prompt_cv * output * output_cv
    correlation = (product - prompt * output) / spread if spread > 0 else 0.0
    return TokenMix(prompt, output, prompt_cv, output_cv, sample, correlation)


@lru_cache(maxsize=256)
def _shortened(mix: TokenMix, pairs: int) -> Lengths:
    whole = lengths(mix)
    return _merged(np.column_stack(whole[:2]), whole.weights, pairs)


def _merged(pairs: Floats, weights: Floats, count: int) -> Lengths:
    """At most `count` weighted pairs: neighbours by prompt, then output, merged into their mean."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, weights = pairs[order], weights[order]
    if len(pairs) <= count:
        return Lengths(pairs[:, 0], pairs[:, 1], weights)
    # Cells of equal weight; the middle of a pair's weight says which cell it is in.
    cell = np.minimum((count * (np.cumsum(weights) - weights / 2)).astype(int), count - 1)
    totals = np.bincount(cell, weights, count)
    used = totals > 0
    prompts, outputs = (np.bincount(cell, weights * pairs[:, axis], count)[used] / totals[used] for axis in (0, 1))
    return Lengths(prompts, outputs, np.asarray(totals[used], dtype=np.float64))


@lru_cache(maxsize=8)
def _normal_cells(count: int) -> tuple[Floats, Floats]:
    """(cells + 1,) edges, equally far apart out to 3.6 deviations, and (cells,) weights of a standard normal."""
    normal = NormalDist()
    edges = np.linspace(-3.6, 3.6, count + 1)
    below = np.array([0.0, *(normal.cdf(edge) for edge in edges[1:-1]), 1.0])
    weights: Floats = np.diff(below)
    return edges, weights


def _lognormal(mean: float, cv: float, cells: int) -> tuple[Floats, Floats]:
    """Values and weights of a lognormal, with its mean and, as far as the cells reach, its spread."""
    if cv <= 0:
        return np.array([mean]), np.array([1.0])
    edges, weights = _normal_cells(cells)
    sigma = np.log(1 + cv**2) ** 0.5
    values = np.exp(sigma * (edges[1:] + edges[:-1]) / 2)
    return values * mean / (weights @ values), weights
