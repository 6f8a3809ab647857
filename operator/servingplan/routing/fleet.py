"""The replicas that may be picked, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Engine:
    """How fast the replicas of one pool are, and what they cost.

    A step takes ``alpha_s + max(floor_s, beta_s * computed tokens) + gamma_s * KV tokens read`` seconds, as in
    ``latency.profile``.

    Attributes:
        max_num_seqs: Requests a replica runs at once.
        max_num_batched_tokens: Token budget of a step; longer prompts are computed in chunks.
        kv_tokens: Tokens that fit in the KV cache; None where it is not known to bind.
        input_price: Dollars per prompt token.
        output_price: Dollars per output token.
        capacity_price: The plan's dual price of the pool, in quality per request.
    """

    pool: str
    model: str
    alpha_s: float
    beta_s: float
    gamma_s: float
    floor_s: float
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int | None
    input_price: float
    output_price: float
    capacity_price: float = 0.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One replica.

    Attributes:
        address: ``ip:port``.
        serves: False once it is not Ready or is being deleted: nobody is sent there any more.
    """

    address: str
    engine: Engine
    serves: bool = True


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a replica said of itself.

    Attributes:
        taken_s: When it said so, on the clock of the decisions.
        running: Requests in the batch.
        waiting: Requests in the queue.
        kv_usage: Fraction of the KV cache in use; None if not told.
        prefix_hit_share: Fraction of prompt tokens found in the prefix cache of late; None if not told.
    """

    taken_s: float
    running: float
    waiting: float
    kv_usage: float | None
    prefix_hit_share: float | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """Endpoints in the order of their addresses; every array is (endpoints,).

    Attributes:
        row_of: Row by address.
        models: Names of the models; ``model_of`` holds indices into it, as ``pool_of`` into ``pools``.
        kv_tokens: Infinite where unknown.
        slot_tokens: What of it each of ``slots`` requests has.
        nothing: Zeros, for whatever is the same nothing on all endpoints.
    """

    endpoints: tuple[Endpoint, ...]
    row_of: dict[str, int]
    models: tuple[str, ...]
    pools: tuple[str, ...]
    model_of: Rows
    pool_of: Rows
    serves: Mask
    alpha_s: Vector
    beta_s: Vector
    gamma_s: Vector
    floor_s: Vector
    slots: Vector
    budget: Vector
    kv_tokens: Vector
    slot_tokens: Vector
    input_price: Vector
    output_price: Vector
    nothing: Vector

    def __len__(self) -> int:
        return len(self.endpoints)


def fleet_of(endpoints: Sequence[Endpoint]) -> Fleet:
    """Columns of endpoints, the same for every order in which they are given; the last of two with one address counts."""
    unique = {each.address: each for each in endpoints}
    ordered = tuple(unique[address] for address in sorted(unique))
    engines = [each.engine for each in ordered]
    models = tuple(sorted({each.model for each in engines}))
    pools = tuple(sorted({each.pool for each in engines}))

    def column(*values: float) -> Vector:
        return np.array(values, dtype=np.float64)

    slots = column(*(max(1, each.max_num_seqs) for each in engines))
    kv_tokens = column(*(np.inf if each.kv_tokens is None else max(1, each.kv_tokens) for each in engines))
    return Fleet(
        endpoints=ordered,
        row_of={each.address: row for row, each in enumerate(ordered)},
        models=models,
        pools=pools,
        model_of=np.array([models.index(each.model) for each in engines], dtype=np.int64),
        pool_of=np.array([pools.index(each.pool) for each in engines], dtype=np.int64),
        serves=np.array([each.serves for each in ordered], dtype=np.bool_),
        alpha_s=column(*(each.alpha_s for each in engines)),
        beta_s=column(*(each.beta_s for each in engines)),
        gamma_s=column(*(each.gamma_s for each in engines)),
        floor_s=column(*(each.floor_s for each in engines)),
        slots=slots,
        budget=column(*(max(1, each.max_num_batched_tokens) for each in engines)),
        kv_tokens=kv_tokens,
        slot_tokens=kv_tokens / slots,
        input_price=column(*(each.input_price for each in engines)),
        output_price=column(*(each.output_price for each in engines)),
        nothing=np.zeros(len(ordered)),
    )


def carried(old: Vector, source: Rows, fill: float = 0.0) -> Vector:
    """A column of a new fleet: row i is row ``source[i]`` of the old one, or ``fill`` where that is negative."""
    new = np.full(len(source), fill, dtype=np.float64)
    stay = source >= 0
    new[stay] = old[source[stay]]
    return new
