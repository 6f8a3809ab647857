"""Coefficients found again from measurements that the simulation made with known ones; it shares no code with the fit."""

import dataclasses
import math

import numpy as np
import pytest

from servingplan.latency.closedloop import NO_EXTRA, Client, Extra, Limits, Loops, predict
from servingplan.latency.fit import ClosedLoop, Fit, OpenLoop, Prior, RequestLog, fit
from servingplan.latency.profile import StepTime, TokenMix
from servingplan.sim import engine
from servingplan.sim.engine import FIRST_REQUEST, StepCost
from servingplan.sim.replay import Replica, Workload, replay

LARGE = Replica(StepCost(13.7e-3, 0.0, 57e-6, 60e-9), kv_blocks=16_384, max_num_batched_tokens=8192, prefix_caching=False)
SMALL = Replica(StepCost(6.4e-3, 0.0, 20.7e-6, 41e-9), kv_blocks=25_000, max_num_batched_tokens=2048, prefix_caching=False)
SLOW = dataclasses.replace(LARGE, cost=StepCost(*(1.3 * value for value in LARGE.cost)))
REPLICAS = {"32B": LARGE, "8B": SMALL, "32B, 1.3 times slower": SLOW}
CLIENT = Client(start_steps=1.9, bunching=1.0)
LEVELS = [(c, i, o) for i, o in ((64, 48), (1024, 48), (3000, 64)) for c in (1, 2, 4, 8, 16)]


def closed_loop(replica: Replica, clients: int, prompt: int, output: int, *, seed: int = 0, rounds: int = 10) -> ClosedLoop:
    """One level in virtual time, without its first two rounds.

    Output lengths vary by a quarter about the mean, so that clients move through all phases to one another.
    """
    n = clients * rounds
    shape = engine.Shape(n, replica.kv_blocks, replica.max_num_seqs, -(-(prompt + 2 * output) // engine.BLOCK_TOKENS), 0)
    e = engine.build(lambda k: [0] * k, lambda k: [0.0] * k, lambda k, m: [[0] * m for _ in range(k)], shape)
    limits = engine.Limits(replica.max_num_seqs, replica.max_num_batched_tokens, 0)
    lengths = np.linspace(0.75 * output, 1.25 * output, n).round().astype(int)
    e.prompt[FIRST_REQUEST:] = [prompt] * n
    e.output[FIRST_REQUEST:] = np.random.default_rng(seed).permutation(lengths).tolist()
    e.first_token_s[FIRST_REQUEST:] = [-1.0] * n
    due, sent, end, now_s = [0.0] * clients, FIRST_REQUEST, FIRST_REQUEST + n, 0.0
    while True:
        while sent < end and due and due[0] <= now_s:
            e.arrival_s[sent] = due.pop(0)
            engine.enqueue(e, sent)
            sent += 1
        while engine.in_flight_steps(e) < engine.PIPELINE_DEPTH and engine.compose(e, replica.cost, limits, now_s):
            pass
        if engine.in_flight_steps(e):
            now_s = engine.next_end_s(e)
            engine.deliver(e, now_s)
            due += [now_s + 1e-3 for r in e.outputs[: e.counts[engine.OUTPUTS]] if e.status[r] == engine.FINISHED]
        elif sent < end:
            now_s = due[0]
        else:
            break
    chosen = slice(FIRST_REQUEST + 2 * clients, FIRST_REQUEST + n - clients)
    arrival_s, first_s, last_s, tokens = (
        np.array(column[chosen]) for column in (e.arrival_s, e.first_token_s, e.finished_s, e.output)
    )
    return ClosedLoop(
        clients,
        prompt,
        output,
        float(np.mean(first_s - arrival_s)),
        float(np.mean((last_s - first_s) / (tokens - 1))),
        simultaneous=False,
    )


def limits_of(replica: Replica) -> dict[str, int]:
    return {
        "max_num_seqs": replica.max_num_seqs,
        "max_num_batched_tokens": replica.max_num_batched_tokens,
        "kv_tokens": (replica.kv_blocks - 1) * engine.BLOCK_TOKENS,
    }


def errors(found: Fit, cost: StepCost) -> tuple[float, float, float]:
    return found.step.alpha_s / cost.alpha_s - 1, found.step.beta_s / cost.beta_s - 1, found.step.gamma_s / cost.gamma_s - 1


@pytest.fixture(scope="module", params=REPLICAS)
def measured(request: pytest.FixtureRequest) -> tuple[Replica, list[ClosedLoop]]:
    replica = REPLICAS[request.param]
    return replica, [closed_loop(replica, *level) for level in LEVELS]


def test_closed_loops_give_the_coefficients_back(measured: tuple[Replica, list[ClosedLoop]]) -> None:
    replica, points = measured
    found = fit(points, **limits_of(replica), first_wave=0.0)
    alpha, beta, gamma = errors(found, replica.cost)
    assert abs(alpha) < 0.05
    assert abs(beta) < 0.05
    assert abs(gamma) < 0.15
    assert found.identified == {"alpha", "beta", "gamma"}
    cost, error = replica.cost, found.standard_error
    assert abs(found.step.alpha_s - cost.alpha_s) < 3 * error.alpha_s
    assert abs(found.step.beta_s - cost.beta_s) < 3 * error.beta_s
    assert abs(found.step.gamma_s - cost.gamma_s) < 3 * error.gamma_s


def test_closed_form_predicts_the_simulated_loops(measured: tuple[Replica, list[ClosedLoop]]) -> None:
    replica, points = measured
    step = StepTime(replica.cost.alpha_s, replica.cost.beta_s, replica.cost.gamma_s)
    loops = Loops(*np.array([(p.concurrency, p.prompt_tokens, p.output_tokens) for p in points], dtype=float).T)
    ttft_s, tpot_s = predict(loops, step, Limits(**limits_of(replica)), CLIENT)
    np.testing.assert_allclose(tpot_s, [p.tpot_s for p in points], rtol=0.03)
    assert np.median(np.abs(ttft_s / [p.ttft_s for p in points] - 1)) < 0.05


def test_slots_make_clients_wait() -> None:
    loops = Loops(np.array([16.0, 32.0]), np.array([256.0, 256.0]), np.array([128.0, 128.0]))
    step = StepTime(10e-3, 20e-6, 40e-9)
    ttft_s, tpot_s = predict(loops, step, Limits(16, 8192), Client())
    assert tpot_s[1] == pytest.approx(tpot_s[0], rel=1e-3)
    assert ttft_s[1] - ttft_s[0] == pytest.approx(ttft_s[0] + 127 * tpot_s[0], rel=0.01)


def workload(rate_rps: float, n: int, seed: int) -> Workload:
    source = np.random.default_rng(seed)
    return Workload(
        np.cumsum(source.exponential(1 / rate_rps, n)),
        np.clip(source.lognormal(6.2, 0.6, n), 16, 4000).astype(int),
        np.clip(source.lognormal(4.8, 0.5, n), 8, 600).astype(int),
    )


def test_open_loops_give_the_coefficients_back() -> None:
    points = []
    for prompt, output, rates_rps in ((128, 128, (1.0, 14.0)), (4096, 512, (0.1, 0.5, 1.2))):
        for rate_rps in rates_rps:
            n = 3000
            arrival_s = np.cumsum(np.random.default_rng(3).exponential(1 / rate_rps, n))
            outcome = replay(Workload(arrival_s, np.full(n, prompt), np.full(n, output)), LARGE)
            mix = TokenMix(prompt, output, prompt_cv=0.0, output_cv=0.0)
            points.append(OpenLoop(rate_rps, mix, float(np.mean(outcome.ttft_s)), float(np.mean(outcome.inter_token_s))))
    alpha, beta, gamma = errors(fit(points, **limits_of(LARGE)), LARGE.cost)
    assert abs(alpha) < 0.05
    assert abs(beta) < 0.05
    assert abs(gamma) < 0.15


def test_a_request_log_gives_the_coefficients_back() -> None:
    load = workload(4.0, 400, seed=5)
    outcome = replay(load, LARGE)
    log = RequestLog(
        tuple(load.arrival_s.tolist()),
        tuple(load.prompt_tokens.tolist()),
        tuple(load.output_tokens.tolist()),
        tuple(outcome.first_token_s.tolist()),
        tuple(outcome.finished_s.tolist()),
    )
    found = fit([log], **limits_of(LARGE))
    alpha, beta, gamma = errors(found, LARGE.cost)
    assert abs(alpha) < 0.05
    assert abs(beta) < 0.05
    assert abs(gamma) < 0.15
    assert found.residuals[0].tpot < 0.03


def test_the_order_of_measurements_does_not_matter() -> None:
    points = synthetic(StepTime(10e-3, 20e-6, 40e-9))
    one, other = (fit(p, max_num_seqs=64, max_num_batched_tokens=8192, first_wave=0.0) for p in (points, points[::-1]))
    assert one.step.alpha_s == pytest.approx(other.step.alpha_s, rel=1e-3)
    assert one.step.gamma_s == pytest.approx(other.step.gamma_s, rel=1e-2)
    assert one.residuals[0].tpot == pytest.approx(other.residuals[-1].tpot, abs=1e-3)


def synthetic(
    step: StepTime,
    client: Client = CLIENT,
    extra: Extra = NO_EXTRA,
    lengths: tuple[tuple[int, int], ...] = ((128, 64), (2048, 256)),
) -> list[ClosedLoop]:
    levels = [(c, i, o) for i, o in lengths for c in (1, 2, 4, 8, 16, 32)]
    loops = Loops(*np.array(levels, dtype=float).T)
    ttft_s, tpot_s = predict(loops, step, Limits(64, 8192), client, extra=extra)
    return [ClosedLoop(*level, float(t), float(p)) for level, t, p in zip(levels, ttft_s, tpot_s, strict=True)]


def test_a_gamma_the_data_do_not_show_is_called_not_identified() -> None:
    found = fit(
        synthetic(StepTime(20e-3, 50e-6, 1e-12), lengths=((32, 16), (64, 16))), max_num_seqs=64, max_num_batched_tokens=8192
    )
    assert "gamma" not in found.identified
    assert {"alpha", "beta"} <= found.identified


def test_the_first_wave_is_found() -> None:
    points = synthetic(StepTime(10e-3, 40e-6, 40e-9), Client(0.02, 0.12, 1.3, 0.5))
    found = fit(points, max_num_seqs=64, max_num_batched_tokens=8192)
    assert found.first_wave == pytest.approx(0.12, rel=0.2)
    assert all(abs(residual.tpot) < 0.01 for residual in found.residuals)


def test_a_sparse_model_takes_the_further_costs() -> None:
    points = synthetic(StepTime(5e-3, 10e-6, 5e-9), Client(0.02, 0.1, 1.3, 0.5), Extra(0.02, 8e-3, 20.0))
    plain, further = (fit(points, max_num_seqs=64, max_num_batched_tokens=8192, extra=extra) for extra in (False, True))
    assert max(abs(residual.tpot) for residual in plain.residuals) > 0.05
    assert max(abs(residual.tpot) for residual in further.residuals) < 0.02


def test_with_a_prior_one_point_rescales() -> None:
    believed = StepTime(10e-3, 40e-6, 40e-9)
    slower = StepTime(13e-3, 52e-6, 52e-9)
    point = synthetic(slower)[8]
    found = fit([point], max_num_seqs=64, max_num_batched_tokens=8192, prior=Prior(believed, Client(0.01, 0.0, 1.5, 1.0)))
    assert abs(found.residuals[0].tpot) < 0.02
    assert found.step.alpha_s > 1.1 * believed.alpha_s


POINT = ClosedLoop(4, 128.0, 64.0, 0.05, 0.01)
OTHER = ClosedLoop(8, 128.0, 64.0, 0.06, 0.011)
LOG = RequestLog(tuple(map(float, range(12))), (8,) * 12, (30,) * 12, (20.0,) * 12, (30.0,) * 12)


@pytest.mark.parametrize(
    ("measurements", "reason"),
    [
        ([], "there is no measurement"),
        ([POINT], "one point only"),
        ([POINT, POINT], "all points have the same load"),
        ([POINT, dataclasses.replace(OTHER, ttft_s=math.nan)], "measurement 2: ttft_s is nan"),
        ([POINT, dataclasses.replace(OTHER, tpot_s=0.0)], "measurement 2: a latency of 0.0 s"),
        ([POINT, dataclasses.replace(OTHER, concurrency=0)], "concurrency is 0"),
        ([POINT, dataclasses.replace(OTHER, output_tokens=1.0)], "1.0 output tokens"),
        ([POINT, dataclasses.replace(OTHER, prompt_tokens=5000.0)], "do not fit in 4096 tokens of KV cache"),
        ([OpenLoop(-1.0, TokenMix(8, 8), 0.1, 0.1)], "the rate is -1.0"),
        ([dataclasses.replace(LOG, arrival_s=(0.0,))], "unequal lengths"),
        ([dataclasses.replace(LOG, first_token_s=(-1.0,) * 12)], "before its arrival"),
        ([dataclasses.replace(LOG, last_token_s=(19.0,) * 12)], "before its first"),
        ([dataclasses.replace(LOG, output_tokens=(5,) * 12)], "20 steps or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_sentence(measurements: list[ClosedLoop], reason: str) -> None:
    with pytest.raises(ValueError, match=r"^[^.\n]*(\d\.\d[^.\n]*)*$") as refused:
        fit(measurements, max_num_seqs=64, max_num_batched_tokens=2048, kv_tokens=4096)
    assert reason in str(refused.value)
