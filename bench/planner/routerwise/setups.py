"""RouterWise's setup space: which tensor parallel size and which share of a GPU each of M models gets on G GPUs.

A model's setup is tp in {1, 2, 4} and a compute share rho in {10, ..., 100} %; a shard on each of tp GPUs gets rho of it. Of
the Cartesian product the paper retains what passes two filters (its section on pruning): the shares sum to the GPUs,
C = sum tp rho = G (its rho_min = 1), and First-Fit-Decreasing places the shards by memory, never two of one model on one GPU.

The filters look at compute only in sum, so most retained setups oversubscribe some GPU. ``packs`` is the test they leave out.
Shares are integers in tenths of a GPU: C = G is an equality, and 0.1 has no exact binary form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

TENSOR_PARALLEL = (1, 2, 4)
TENTHS = tuple(range(1, 11))
GPU_GB = 80.0
GB_PER_BILLION = 2.0
_ROUNDING_GB = 1e-9


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """How one model is deployed.

    Attributes:
        tp: Tensor parallel size; one shard on each of as many GPUs.
        tenths: Compute share of each shard, in tenths of a GPU.
    """

    tp: int
    tenths: int

    @property
    def compute_tenths(self) -> int:
        """Compute of all shards, in tenths of a GPU."""
        return self.tp * self.tenths


Setup = tuple[ModelSetup, ...]
"""One setup per model, in the order of the models."""


@dataclass(frozen=True, slots=True)
class Space:
    """The GPUs and the models to place on them.

    Attributes:
        sizes_b: Parameters of each model, in billions.
        gpus: How many GPUs of 80 GB there are.
        memory_factor: Least memory of a model as a multiple of its 16-bit weights.
    """

    sizes_b: tuple[float, ...]
    gpus: int
    memory_factor: float = 1.0

    def shard_gb(self, model: int, tp: int) -> float:
        """Memory of one shard of a model."""
        return GB_PER_BILLION * self.sizes_b[model] * self.memory_factor / tp

    def retained(self) -> tuple[Setup, ...]:
        """Every setup that passes the paper's two filters, in lexicographic order."""
        found: list[Setup] = []
        for sizes in product(TENSOR_PARALLEL, repeat=len(self.sizes_b)):
            if self.fits_first(sizes):
                found += (
                    tuple(ModelSetup(tp, tenths) for tp, tenths in zip(sizes, shares, strict=True))
                    for shares in _shares(sizes, 10 * self.gpus)
                )
        return tuple(found)

    def count(self) -> int:
        """How many setups are retained; faster than listing them."""
        fitting = (sizes for sizes in product(TENSOR_PARALLEL, repeat=len(self.sizes_b)) if self.fits_first(sizes))
        return sum(sum(1 for _ in _shares(sizes, 10 * self.gpus)) for sizes in fitting)

    def fits_first(self, sizes: tuple[int, ...]) -> bool:
        """Whether First-Fit-Decreasing on memory places every shard, for one tensor parallel size per model.

        Compute shares play no part in it, so it holds for all of them or for none.
        """
        return self._fits([(self.shard_gb(model, tp), tp) for model, tp in enumerate(sizes)])

    def fits_replicas(self, replicas: Mapping[tuple[int, ModelSetup], int]) -> bool:
        """The same for any number of replicas by model and setup; no two shards of one replica on one GPU."""
        return self._fits([(self.shard_gb(m, part.tp), part.tp) for (m, part), count in replicas.items() for _ in range(count)])

    def _fits(self, deployed: list[tuple[float, int]]) -> bool:
        """First-Fit-Decreasing of what is deployed, given as memory of a shard and number of shards."""
        free_gb = [GPU_GB + _ROUNDING_GB] * self.gpus
        for memory_gb, tp in sorted(deployed, key=lambda each: -each[0]):
            able = [gpu for gpu in range(self.gpus) if free_gb[gpu] >= memory_gb]
            if len(able) < tp:
                return False
            for gpu in able[:tp]:
                free_gb[gpu] -= memory_gb
        return True

    def packs(self, setup: Setup) -> bool:
        """Whether some placement keeps both compute and memory of every single GPU; an exact search."""
        shards = tuple((part.tp, part.tenths, self.shard_gb(model, part.tp)) for model, part in enumerate(setup))
        return _place(tuple(sorted(shards, reverse=True)), ((10, GPU_GB + _ROUNDING_GB),) * self.gpus)


def _shares(sizes: tuple[int, ...], total_tenths: int) -> list[tuple[int, ...]]:
    """Shares of all models with sum tp * share equal to the total."""
    if not sizes:
        return [()] if total_tenths == 0 else []
    if not 0 < total_tenths <= 10 * sum(sizes):
        return []
    return [(first, *rest) for first in TENTHS for rest in _shares(sizes[1:], total_tenths - sizes[0] * first)]


@lru_cache(maxsize=100_000)
def _place(shards: tuple[tuple[int, int, float], ...], free: tuple[tuple[int, float], ...]) -> bool:
    """Whether the models' shards fit on GPUs with so much compute and memory left; GPUs are in order, so equal states meet."""
    if not shards:
        return True
    tp, tenths, memory_gb = shards[0]
    able = [gpu for gpu, (compute, memory) in enumerate(free) if compute >= tenths and memory >= memory_gb]
    tried = set()
    for chosen in combinations(able, tp):
        left = list(free)
        for gpu in chosen:
            left[gpu] = (free[gpu][0] - tenths, free[gpu][1] - memory_gb)
        state = tuple(sorted(left))
        if state not in tried and _place(shards[1:], state):
            return True
        tried.add(state)
    return False
