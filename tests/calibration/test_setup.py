"""What live latency teaches about a profile: samples are the latency form's own, of replicas whose step is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from servingplan.calibration.memory import Applied, SetupMemory
from servingplan.calibration.readings import Histogram
from servingplan.calibration.setup import Sample, corrected, faded, learn
from servingplan.latency.capacity import latency, margin, stable_rate_rps
from servingplan.latency.profile import Bound, Correction, EngineProfile, Point, StepTime, TokenMix

PRIOR = EngineProfile(step=StepTime(0.0137, 57e-6, 60e-9), max_num_seqs=256, kv_tokens=400_000)
MIX = TokenMix(1000, 250)
EDGES = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, math.inf)
LOADS = (0.35, 0.6, 0.45, 0.7, 0.3, 0.55)
P95 = ("ttft", Bound(1.0, 95.0))


def slower(*factors: float, profile: EngineProfile = PRIOR) -> EngineProfile:
    alpha, beta, gamma = factors * 3 if len(factors) == 1 else factors
    step = profile.step
    return replace(profile, step=StepTime(step.alpha_s * alpha, step.beta_s * beta, step.gamma_s * gamma))


def histogram(values_s: np.ndarray, count: float, mean_s: float) -> Histogram:
    counts = np.bincount(np.searchsorted(EDGES, values_s), minlength=len(EDGES)) * (count / len(values_s))
    return Histogram(EDGES, tuple(counts.tolist()), mean_s * count)


def sample_of(truth: EngineProfile, load: float, late: float = 1.0, requests: int = 300, **fields) -> Sample:
    """What a replica would show at a load of its own; `late` lengthens every time to first token."""
    rate_rps = load * stable_rate_rps(truth, MIX)
    found = latency(truth, MIX, rate_rps)
    ttft_s = late * np.array([found.ttft_s(percent) for percent in np.arange(0.5, 100, 1)])
    gap_s = found.decode_s / (MIX.output_tokens - 1)
    return Sample(
        replicas=1,
        rate_rps=rate_rps,
        mix=MIX,
        arrival_cv=1.0,
        requests=requests,
        ttft=histogram(ttft_s, requests, late * found.ttft_mean_s),
        inter_token=histogram(np.array([gap_s]), 250 * requests, gap_s),
        **({"work": 1.0, "unevenness": 0.0, "bounds": (P95,)} | fields),
    )


def taught(samples, prior: EngineProfile = PRIOR, memory: SetupMemory | None = None) -> SetupMemory:
    memory = memory or SetupMemory()
    for sample in samples:
        memory = learn(prior, memory, sample)
    return memory


def over_loads(truth: EngineProfile, cycles: int, **fields) -> list[Sample]:
    return [sample_of(truth, load, **fields) for load in itertools.islice(itertools.cycle(LOADS), cycles)]


def error(memory: SetupMemory, truth: EngineProfile, load: float) -> float:
    rate = load * stable_rate_rps(truth, MIX)
    return latency(corrected(PRIOR, memory), MIX, rate).ttft_mean_s / latency(truth, MIX, rate).ttft_mean_s - 1


@pytest.mark.parametrize("factors", [(0.8,), (1.3,), (1.6,), (1.0, 1.3, 1.0), (1.0, 1.0, 1.3), (1.2, 0.9, 1.1)])
def test_after_five_cycles_the_time_to_first_token_is_known_within_ten_percent(factors):
    truth = slower(*factors)
    memory = taught(over_loads(truth, 5))
    assert max(abs(error(memory, truth, load)) for load in (0.3, 0.5, 0.7)) <= 0.10
    assert memory.samples == 5


def test_a_profile_that_is_right_stays_as_it_is():
    memory = taught(over_loads(PRIOR, 12))
    assert np.abs(memory.log_step).max() < 0.01
    assert not memory.drifting
    assert corrected(PRIOR, replace(memory, applied=replace(memory.applied, margin={}))) == PRIOR


def test_at_one_load_the_factors_move_together():
    alpha, beta, gamma = taught([sample_of(slower(1.3), 0.5)]).log_step
    assert alpha == pytest.approx(math.log(1.3), abs=0.06)
    assert beta == pytest.approx(alpha, abs=0.08)
    assert gamma == pytest.approx(alpha, abs=0.08)


def test_what_is_believed_grows_surer_and_stays_a_covariance():
    once, often = (np.array(taught(over_loads(slower(1.2), cycles)).covariance) for cycles in (1, 10))
    assert often[0] < once[0] < 0.35**2 + 0.12**2
    lower = np.zeros((3, 3))
    lower[np.tril_indices(3)] = often
    assert np.linalg.eigvalsh(lower + np.tril(lower, -1).T).min() > 0


def test_one_odd_window_moves_nothing_but_the_doubt():
    settled = taught(over_loads(PRIOR, 8))
    after = learn(PRIOR, settled, sample_of(slower(3.0), 0.5))
    assert after.log_step == settled.log_step
    assert after.covariance[0] > settled.covariance[0]
    assert after.applied.step == settled.applied.step


def test_a_replica_that_changed_is_followed_after_a_few_windows():
    settled = taught(over_loads(PRIOR, 10))
    truth = slower(1.5)
    after = taught(over_loads(truth, 8), memory=settled)
    assert abs(error(after, truth, 0.5)) <= 0.10


def test_a_change_sounds_the_alarm_widens_the_margin_and_calms_down():
    settled = taught(over_loads(PRIOR, 10))
    truth, memory, states = slower(1.5), settled, []
    for sample in over_loads(truth, 25):
        memory = learn(PRIOR, memory, sample)
        states.append((memory.drifting, memory.applied.margin["ttft.p95"] - memory.margin["ttft.p95"]))
    assert any(drifting for drifting, _ in states)
    assert max(wider for drifting, wider in states if drifting) > 0.05
    assert not states[-1][0]
    assert abs(states[-1][1]) < 0.03


def test_what_the_step_does_not_explain_is_learnt_by_load():
    late = {0.35: 1.0, 0.75: 1.25}
    memory = taught([sample_of(PRIOR, load, late=factor) for _ in range(15) for load, factor in late.items()])
    assert memory.log_bias[3] > memory.log_bias[1] + 0.04
    profile = corrected(PRIOR, memory)
    for load, factor in late.items():
        sample = sample_of(PRIOR, load, late=factor)
        assert latency(profile, MIX, sample.rate_rps).ttft_mean_s == pytest.approx(sample.ttft.mean, rel=0.08)


def test_learning_settles_and_plans_stand_still():
    rng = np.random.default_rng(5)
    samples = [sample_of(slower(1.3), rng.choice(LOADS), late=float(rng.lognormal(0, 0.08))) for _ in range(60)]
    memory, steps = SetupMemory(), []
    for sample in samples:
        memory = learn(PRIOR, memory, sample)
        steps.append(memory.applied.step)
    late = steps[20:]
    assert sum(one != other for one, other in itertools.pairwise(late)) <= 4
    assert abs(error(memory, slower(1.3), 0.5)) < 0.06


@pytest.mark.parametrize(
    ("sample", "why"),
    [
        (sample_of(slower(1.3), 0.5, requests=29), "too few requests"),
        (replace(sample_of(slower(1.3), 0.5), rate_rps=0.0), "no rate"),
        (replace(sample_of(slower(1.3), 0.5), ttft=Histogram(EDGES, (0.0,) * len(EDGES), 0.0)), "no observations"),
        (sample_of(slower(1.3), 0.5, unevenness=math.nan), "a figure that is none"),
        (replace(sample_of(slower(1.3), 0.5), mix=TokenMix(10**6, 10)), "requests that cannot be there"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_sample_that_says_nothing_leaves_the_memory(sample, why):
    before = taught(over_loads(PRIOR, 2))
    assert learn(PRIOR, before, sample) is before, why


@pytest.mark.parametrize("fields", [{"growing": True}, {"draining": True}, {"unevenness": 0.8}], ids=str)
def test_a_queue_that_is_not_stationary_teaches_the_form_nothing(fields):
    settled = taught(over_loads(PRIOR, 6))
    after = learn(PRIOR, settled, sample_of(PRIOR, 0.8, late=20.0, **fields))
    assert after.log_step == settled.log_step
    assert (after.log_bias, after.margin, after.drift) == (settled.log_bias, settled.margin, settled.drift)


def test_a_queue_that_grows_at_a_light_load_says_that_the_replica_is_slower():
    settled = taught(over_loads(PRIOR, 2))
    after = learn(PRIOR, settled, sample_of(PRIOR, 0.5, late=20.0, growing=True))
    assert after.log_step[0] > settled.log_step[0] + 0.01


def test_a_faster_replica_is_found_out_where_it_is_believed_full():
    truth = slower(0.7)
    assert sample_of(truth, 0.75).rate_rps > stable_rate_rps(PRIOR, MIX)
    memory = taught([sample_of(truth, load) for load in (0.75, 0.8, 0.7, 0.75, 0.8)])
    assert abs(error(memory, truth, 0.6)) < 0.10


def test_without_a_time_between_tokens_the_common_factor_is_still_found():
    memory = taught([replace(sample, inter_token=None) for sample in over_loads(slower(1.3), 6)])
    assert abs(error(memory, slower(1.3), 0.5)) < 0.10


def test_a_profile_of_points_learns_its_common_factor():
    points = EngineProfile(points=tuple(Point(c, 1000, 250, 0.1 + 0.01 * c, 0.01 + 0.0005 * c) for c in (1, 8, 32, 64)))
    truth = replace(points, correction=Correction((1.3, 1.0, 1.0)))
    memory = SetupMemory()
    for load in LOADS:
        memory = learn(points, memory, sample_of(truth, load))
    rate = 0.5 * stable_rate_rps(truth, MIX)
    found, true = (latency(each, MIX, rate).ttft_mean_s for each in (corrected(points, memory), truth))
    assert found == pytest.approx(true, rel=0.10)


def test_the_margin_rises_while_windows_break_it_and_falls_slowly_after():
    late = [replace(sample_of(PRIOR, 0.5), ttft=heavy_tailed()) for _ in range(12)]
    risen = taught(late)
    assert risen.margin["ttft.p95"] > 0.15
    calm = taught(over_loads(PRIOR, 6), memory=risen)
    assert risen.margin["ttft.p95"] - 0.03 < calm.margin["ttft.p95"] < risen.margin["ttft.p95"]


def heavy_tailed() -> Histogram:
    """The mean of the form at half load, with a tenth of the requests far later than its 95th percentile."""
    found = latency(PRIOR, MIX, 0.5 * stable_rate_rps(PRIOR, MIX))
    values_s = np.array([found.ttft_s(percent) for percent in np.arange(0.5, 100, 1)])
    values_s[-10:] = 3 * found.ttft_s(95.0)
    return histogram(values_s, 300, found.ttft_mean_s)


def test_margins_of_means_have_their_own_keys():
    bounds = (("ttft", Bound(1.0, None)), ("interToken", Bound(0.1, None)), ("e2e", Bound(10.0, 95.0)))
    memory = taught(over_loads(PRIOR, 6, bounds=bounds))
    assert set(memory.margin) == {"ttft.mean", "interToken.mean"}


def test_corrections_are_what_was_applied():
    memory = SetupMemory(applied=Applied((1.2, 1.3, 1.2), (1.0, 1.0, 1.1, 1.1), {"ttft.p95": 0.1}))
    found = corrected(PRIOR, memory)
    assert found.correction == Correction((1.2, 1.3, 1.2), (1.0, 1.0, 1.1, 1.1), (("ttft.p95", 0.1),))
    assert margin(found, MIX, 0.4, key="ttft.p95") == pytest.approx(margin(PRIOR, MIX, 0.4) + 0.1)


def test_an_unseen_setup_takes_a_part_of_what_its_model_s_others_taught():
    one = SetupMemory(samples=9, applied=Applied((1.3, 1.3, 1.3)))
    alone, among = (corrected(PRIOR, None, family).correction.step[0] for family in ([one], [one] * 4))
    assert alone == pytest.approx(1.3**0.5, rel=0.02)
    assert alone < among < 1.3
    assert corrected(PRIOR, None) == corrected(PRIOR, SetupMemory(), [SetupMemory()]) == PRIOR


def test_equal_worlds_teach_equal_things():
    assert taught(over_loads(slower(1.3), 4)) == taught(over_loads(slower(1.3), 4))


def test_what_is_sent_nothing_is_believed_less_from_cycle_to_cycle():
    memory = taught(sample_of(slower(1.6), load) for load in LOADS)
    memory = replace(memory, margin={"ttft.p95": 0.4}, drifting=True)
    before = replace(memory, applied=None)
    steps = []
    for _ in range(30):
        memory = faded(memory)
        steps.append(memory.applied.step[0])
        assert not memory.drifting
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 1.4
    assert steps[-1] < 1.05
    assert memory.margin["ttft.p95"] < 0.02
    assert np.trace(np.array(_square(memory.covariance))) > np.trace(np.array(_square(before.covariance)))


def _square(lower):
    found = np.zeros((3, 3))
    found[np.tril_indices(3)] = lower
    return found
