"""The size of RouterWise's setup space, and how much of what it retains can be placed.

Three models of 7, 13 and 34 billion parameters on 1 to 8 GPUs of 80 GB, with the least memory of a model at 1.0 and at 1.15 of
its 16-bit weights; then a fourth model of 7 billion. The paper reports about 700 and about 16,000 setups at most.

    python bench/planner/bench_setups.py
"""

from routerwise.setups import Space

SIZES_B = (7.0, 13.0, 34.0)
GPUS = range(1, 9)


def main() -> None:
    print(f"{'':34}" + "".join(f"{f'G={gpus}':>8}" for gpus in GPUS))
    for factor in (1.0, 1.15):
        spaces = [Space(SIZES_B, gpus, factor) for gpus in GPUS]
        retained = [space.retained() for space in spaces]
        packed = [sum(map(space.packs, setups)) for space, setups in zip(spaces, retained, strict=True)]
        row(f"3 models, memory x{factor:g}: retained", [len(setups) for setups in retained])
        row("  each GPU within 100 % compute", packed)
    for factor in (1.0, 1.15):
        row(f"4 models, memory x{factor:g}: retained", [Space((*SIZES_B, 7.0), gpus, factor).count() for gpus in GPUS])
    print("\nThe second row is an exact search for a placement; the filters of the paper check compute only in sum.")


def row(title: str, values: list[int]) -> None:
    print(f"{title:34}" + "".join(f"{value:8,}" for value in values))


if __name__ == "__main__":
    main()
