"""Which replicas fit on which nodes, as rows of a linear program.

A replica sits on one node. Where the sizes of replicas divide one another (1, 2, 4, 8, as tensor parallel sizes do), a set of
replicas fits exactly when for every size the blocks of that size which the replicas of at least that size take are no more than
the blocks that the nodes hold: bin packing with divisible sizes is easy (Coffman, Garey, Johnson 1987). Sizes of 3 or 6 break
that; then the nodes are filled by *patterns*, and an integer counts how many nodes are filled by each.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import pairwise


def divisible(sizes: tuple[int, ...]) -> bool:
    """Whether every size divides the next larger one."""
    ordered = sorted(set(sizes))
    return all(large % small == 0 for small, large in pairwise(ordered))


def blocks(free: tuple[int, ...], size: int) -> int:
    """Blocks of a size that nodes with some free units hold."""
    return sum(units // size for units in free)


def fillings(free: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]:
    """How nodes may be filled where sizes do not divide one another.

    Args:
        free: Units free on each node.
        sizes: Distinct sizes, ascending.

    Returns:
        For every distinct number of free units, the nodes that have it and the maximal patterns: replicas of each size.
    """
    found = []
    for units, nodes in sorted(Counter(free).items()):
        patterns = _patterns(units, sizes)
        if patterns:
            found.append((nodes, patterns))
    return tuple(found)


@lru_cache(maxsize=1024)
def _patterns(units: int, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    if not sizes:
        return ((),)
    *smaller, largest = sizes
    found: list[tuple[int, ...]] = []
    for count in range(units // largest, -1, -1):
        for rest in _patterns(units - count * largest, tuple(smaller)):
            pattern = (*rest, count)
            left = units - sum(size * number for size, number in zip(sizes, pattern, strict=True))
            if left < sizes[0]:
                found.append(pattern)
    return tuple(found)
