import pytest

from servingplan.profiling.levels import (
    DEFAULT_LENGTHS,
    Lengths,
    Level,
    default_lengths,
    ladder,
    parse_clients,
    parse_lengths,
    parse_rates,
)


def test_lists_are_read_sorted_and_without_repetition() -> None:
    assert parse_clients("4, 1,2,4") == (1, 2, 4)
    assert parse_rates("2,0.5") == (0.5, 2.0)
    assert parse_lengths("128:64, 1024:128,128:64") == (Lengths(128, 64), Lengths(1024, 128))


@pytest.mark.parametrize(
    ("parse", "text", "part"),
    [
        (parse_clients, "0", "between 1 and"),
        (parse_clients, "1,,2", "'' must be a number of clients"),
        (parse_clients, "two", "'two' must be"),
        (parse_rates, "-1", "above 0, such as 0.5"),
        (parse_rates, "nan", "above 0"),
        (parse_lengths, "128", "PROMPT:OUTPUT"),
        (parse_lengths, "0:64", "1 token or more"),
        (parse_lengths, "64:2", "8 or more"),
    ],
)
def test_nonsense_is_refused_with_what_is_wanted(parse, text: str, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        parse(text)


@pytest.mark.parametrize("context", [96, 200, 1000, 2048, 4096, 9000, 131072, None])
def test_default_lengths_fit_in_the_context(context: int | None) -> None:
    lengths = default_lengths(context)
    assert lengths
    assert all(context is None or pair.total_tokens <= context for pair in lengths)
    if context is None or context >= 2400:
        assert lengths[-1].prompt_tokens > 1.5 * lengths[0].prompt_tokens


def test_a_context_too_short_to_measure_anything_gets_none() -> None:
    assert default_lengths(60) == ()


def test_a_long_context_gets_all_defaults_and_a_shorter_one_a_shorter_longest() -> None:
    assert default_lengths(131072) == DEFAULT_LENGTHS
    assert default_lengths(6000)[-1] == Lengths(5920, 64)


def test_the_ladder_goes_from_gentle_to_hard_through_all_lengths() -> None:
    short, long = Lengths(100, 40), Lengths(1000, 40)
    assert ladder([short, long], clients=[1, 2]) == (
        Level(short, clients=1), Level(long, clients=1), Level(short, clients=2), Level(long, clients=2),
    )  # fmt: skip


def test_levels_that_do_not_fit_in_the_kv_cache_are_left_out() -> None:
    long = Lengths(1000, 40)
    assert [level.clients for level in ladder([long], clients=[1, 2, 4, 8], kv_tokens=4500)] == [1, 2, 4]
