from itertools import combinations, product

import pytest

from routerwise.setups import ModelSetup, Setup, Space

SIZES_B = (7.0, 13.0, 34.0)


def test_three_models_retain_as_many_setups_as_the_paper_shows() -> None:
    spaces = [Space(SIZES_B, gpus) for gpus in range(1, 9)]
    assert [len(space.retained()) for space in spaces] == [0, 257, 305, 644, 576, 419, 177, 141]
    assert [space.count() for space in spaces] == [0, 257, 305, 644, 576, 419, 177, 141]


def test_a_fourth_model_peaks_at_five_gpus() -> None:
    counts = [Space((*SIZES_B, 7.0), gpus).count() for gpus in range(1, 9)]
    assert (max(counts), counts.index(max(counts)) + 1) == (17_328, 5)


@pytest.mark.parametrize(("gpus", "retained", "packed"), [(4, 554, 93), (8, 141, 30)])
def test_few_retained_setups_keep_every_gpu_within_its_compute(gpus: int, retained: int, packed: int) -> None:
    space = Space(SIZES_B, gpus, memory_factor=1.15)
    setups = space.retained()
    assert (len(setups), sum(map(space.packs, setups))) == (retained, packed)


def test_packing_agrees_with_every_placement_tried() -> None:
    space = Space((7.0, 34.0), 3, memory_factor=1.15)
    setups = [(ModelSetup(a, x), ModelSetup(b, y)) for a, b in product((1, 2), repeat=2) for x in (3, 6, 9) for y in (2, 5, 8)]
    found = [space.packs(setup) for setup in setups]
    assert found == [_some_placement_keeps(space, setup) for setup in setups]
    assert {True, False} == set(found)


def _some_placement_keeps(space: Space, setup: Setup) -> bool:
    """Every choice of GPUs for every model, one after the other."""
    for places in product(*(combinations(range(space.gpus), part.tp) for part in setup)):
        on = [[m for m, chosen in enumerate(places) if gpu in chosen] for gpu in range(space.gpus)]
        if all(
            sum(setup[m].tenths for m in models) <= 10 and sum(space.shard_gb(m, setup[m].tp) for m in models) <= 80
            for models in on
        ):
            return True
    return False


def test_memory_keeps_a_model_off_a_gpu_that_it_does_not_fit() -> None:
    space = Space((51.0,), 2)
    assert space.retained() == ((ModelSetup(2, 10),),)
    assert not space.fits_first((1,))


def test_replicas_of_one_model_may_share_a_gpu_but_shards_of_one_replica_may_not() -> None:
    space = Space((20.0,), 2)
    assert space.fits_replicas({(0, ModelSetup(1, 5)): 4})
    assert not space.fits_replicas({(0, ModelSetup(1, 5)): 5})
    assert space.fits_replicas({(0, ModelSetup(2, 5)): 4})
    assert not Space((20.0,), 1).fits_replicas({(0, ModelSetup(2, 5)): 1})
