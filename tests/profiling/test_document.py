import pytest
import yaml

from servingplan.api.v1alpha1 import Profile
from servingplan.latency.fit import Fit, Residual
from servingplan.latency.profile import StepTime
from servingplan.profiling.document import Source, decimal, to_yaml
from servingplan.profiling.fitting import EngineLimits, Found
from servingplan.profiling.levels import Lengths, Level
from servingplan.profiling.measured import Measured
from servingplan.profiling.steady import summary

SOURCE = Source("http://qwen:8000", "qwen", "2026-11-22 06:00 UTC", 151.0)


def one_level(clients: int, *, starved: bool = False) -> Measured:
    values = [summary([x, 1.1 * x]) for x in (0.1, 0.014, 2.0)]
    return Measured(Level(Lengths(100, 40), clients=clients), 100.0, 40.2, 12, *values, 3.0, 3.0, True, starved=starved)


def found(step: StepTime, *levels: Measured, identified: str = "alpha beta gamma", kv_tokens: int | None = 5000) -> Found:
    usable = tuple(level for level in levels if level.usable)
    result = Fit.__new__(Fit)
    values = {
        "step": step,
        "standard_error": StepTime(1e-4, 2e-6, 3e-9),
        "overhead_s": 0.002,
        "residuals": tuple(Residual(0.02, -0.01) for _ in usable),
        "identified": frozenset(identified.split()),
    }
    for name, value in values.items():
        object.__setattr__(result, name, value)
    return Found(result, EngineLimits(256, 8192, kv_tokens, "a default", "seen", "from /metrics"), usable, 9)


def test_the_document_is_a_profile_that_a_plan_takes() -> None:
    text = to_yaml(found(StepTime(13.7e-3, 57e-6, 60e-9), one_level(1), one_level(2)), SOURCE, [one_level(1)], ["A note."])
    profile = Profile.model_validate(yaml.safe_load(text))
    assert profile.coefficients is not None
    assert [float(x) for x in (profile.coefficients.alpha_ms, profile.coefficients.beta_ms, profile.coefficients.gamma_ms)] == [
        13.7, 0.057, 0.00006,
    ]  # fmt: skip
    assert (profile.max_num_seqs, profile.max_num_batched_tokens, profile.kv_tokens) == (256, 8192, 5000)


def test_its_comments_say_where_when_and_how_sure() -> None:
    levels = [one_level(1), one_level(2, starved=True)]
    text = to_yaml(found(StepTime(13.7e-3, 57e-6, 1e-15), *levels, identified="alpha beta"), SOURCE, levels, ["A note."])
    for part in ("http://qwen:8000", "2026-11-22 06:00 UTC", "alpha 13.7 ms +- 0.7 %", "# A note.", "+2.0 %", "not used"):
        assert part in text
    assert "gamma 1e-06 ns which these levels do not tell" in " ".join(text.replace("\n#", "").split())
    assert max(map(len, text.splitlines())) <= 128


def test_an_unknown_kv_cache_is_left_out_and_said() -> None:
    text = to_yaml(found(StepTime(13.7e-3, 57e-6, 60e-9), one_level(1), kv_tokens=None), SOURCE, [], [])
    assert "kvTokens" not in yaml.safe_load(text)
    assert "# kvTokens: from /metrics" in text


def test_what_no_plan_takes_is_not_written() -> None:
    with pytest.raises(ValueError, match="alphaMs"):
        to_yaml(found(StepTime(0.0, 57e-6, 60e-9), one_level(1)), SOURCE, [], [])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (13.7, "13.7"),
        (0.0570123, "0.05701"),
        (6e-5, "0.00006"),
        (123456.0, "123456"),
        (1e-30, "0"),
        (0.0, "0"),
        (float("nan"), "0"),
    ],
)
def test_decimals_have_four_digits_and_no_exponent(value: float, text: str) -> None:
    assert decimal(value) == text
