import math

import pytest

from servingplan.latency.fit import fit
from servingplan.profiling.decoding import decode_log, stretches
from servingplan.profiling.exchange import Sample

ALPHA_S, BETA_S, GAMMA_S = 10e-3, 50e-6, 80e-9


def decoded(prompts: list[int], tokens: int, start_s: float) -> list[Sample]:
    """Requests that decode together from the first token on, undisturbed; sent together before."""
    times, now_s = [start_s], start_s
    for k in range(1, tokens):
        now_s += ALPHA_S + BETA_S * len(prompts) + GAMMA_S * sum(prompt + k for prompt in prompts)
        times.append(now_s)
    return [Sample(start_s - 0.5, times[0], times[-1], prompt, tokens, 0, tuple(times)) for prompt in prompts]


def test_a_stretch_has_the_steps_between_two_changes_and_the_contexts_at_its_start() -> None:
    (found,) = stretches(decoded([100, 200], 31, 5.0))
    # The first and the last token are changes themselves.
    assert found.steps == 28
    assert found.contexts == (102, 202)
    assert found.end_s - found.start_s == pytest.approx(28 * 10.1e-3, rel=1e-2)


def test_nothing_counts_while_somebody_waits() -> None:
    running = decoded([100], 100, 5.0)
    given_up = Sample(5.4, math.inf, math.inf, 50, 0)
    (found,) = stretches([*running, given_up])
    assert found.end_s < 5.4
    assert found.steps < 40


def test_requests_that_do_not_share_their_steps_are_no_stretch() -> None:
    one, other = decoded([100, 100], 60, 5.0)
    out_of_step = Sample(other.sent_s, other.first_s, other.last_s, 100, 60, 0, other.token_s[::2] + other.token_s[-1:])
    assert stretches([one, out_of_step]) == []
    assert stretches([]) == []


def test_stretches_alone_tell_the_coefficients() -> None:
    runs = [decoded([prompt] * count, 60, 10.0 * k) for k, (prompt, count) in enumerate(
        [(100, 1), (100, 4), (100, 16), (4000, 1), (4000, 4), (8000, 2)], start=1
    )]  # fmt: skip
    log = decode_log([stretch for run in runs for stretch in stretches(run)])
    assert log is not None
    step = fit([log], max_num_seqs=256, max_num_batched_tokens=8192, first_wave=0.0).step
    assert step.alpha_s == pytest.approx(ALPHA_S, rel=0.01)
    assert step.beta_s == pytest.approx(BETA_S, rel=0.05)
    assert step.gamma_s == pytest.approx(GAMMA_S, rel=0.02)


def test_too_few_or_too_short_stretches_give_no_log() -> None:
    assert decode_log([]) is None
    assert decode_log(stretches(decoded([100] * 3, 60, 1.0))) is None
    assert decode_log(stretches(decoded([100] * 12, 12, 1.0))) is None
