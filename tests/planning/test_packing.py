"""Rows of blocks and patterns against a search node by node."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracle import pack
from servingplan.planning.packing import blocks, divisible, fillings

FREE = st.lists(st.integers(0, 8), min_size=1, max_size=3).map(tuple)


@given(free=FREE, counts=st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 3)))
def test_blocks_are_exact_where_sizes_divide(free, counts):
    sizes = (1, 2, 4)
    wanted = all(
        sum(n * (size // block) for size, n in zip(sizes, counts, strict=True) if size >= block) <= blocks(free, block)
        for block in sizes
    )
    listed = tuple(size for size, n in zip(sizes, counts, strict=True) for _ in range(n))
    assert pack(tuple(sorted(free)), tuple(sorted(listed, reverse=True))) == wanted


@given(free=FREE, counts=st.tuples(st.integers(0, 4), st.integers(0, 3)))
def test_patterns_are_exact_where_they_do_not(free, counts):
    sizes = (2, 3)
    choices = [pattern for nodes, found in fillings(free, sizes) for pattern in [tuple(found)] * nodes]
    wanted = any(
        all(sum(pattern[at] for pattern in chosen) >= n for at, n in enumerate(counts)) for chosen in product(*choices)
    )
    listed = (3,) * counts[1] + (2,) * counts[0]
    assert pack(tuple(sorted(free)), listed) == wanted


@pytest.mark.parametrize(
    ("sizes", "chain"), [((1, 2, 4, 8), True), ((2, 3), False), ((3, 6), True), ((), True), ((4, 6), False)]
)
def test_which_sizes_divide(sizes, chain):
    assert divisible(sizes) is chain
