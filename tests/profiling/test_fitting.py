import numpy as np
import pytest

from servingplan.api.v1alpha1 import Profile
from servingplan.latency.closedloop import Client, Limits, Loops, predict
from servingplan.latency.profile import StepTime
from servingplan.profiling.fitting import EngineLimits, compared, fitted, predicted
from servingplan.profiling.levels import Lengths, Level
from servingplan.profiling.measured import Measured
from servingplan.profiling.steady import summary

STEP = StepTime(10e-3, 50e-6, 100e-9)
CLIENT = Client(0.002, 0.0, 1.5)


def limits(budget: int) -> EngineLimits:
    return EngineLimits(256, budget, None, "", "", "")


def levels(budget: int = 2048, slower: float = 1.0) -> list[Measured]:
    """What the model of closed loops itself predicts, as if measured."""
    made = []
    for clients in (1, 2, 4, 8):
        for prompt, output in ((128, 128), (1024, 64), (6000, 64)):
            loops = Loops(*(np.array([float(x)]) for x in (clients, prompt, output)))
            step = StepTime(*(slower * x for x in (STEP.alpha_s, STEP.beta_s, STEP.gamma_s, 0.0)))
            ttft, tpot = (float(x[0]) for x in predict(loops, step, Limits(256, budget), CLIENT))
            values = [summary([0.99 * x, 1.01 * x]) for x in (ttft, tpot, ttft + output * tpot)]
            made.append(Measured(Level(Lengths(prompt, output), clients=clients), prompt, output, 50, *values, 1.0, 1.0, True))
    return made


def test_levels_alone_give_back_the_coefficients_they_were_made_with() -> None:
    step = fitted(levels(), [limits(2048)]).fit.step
    assert (step.alpha_s, step.beta_s, step.gamma_s) == pytest.approx((STEP.alpha_s, STEP.beta_s, STEP.gamma_s), rel=0.05)


@pytest.mark.parametrize("budget", [2048, 8192])
def test_an_unknown_token_budget_is_the_one_that_explains_the_levels(budget: int) -> None:
    found = fitted(levels(budget), [limits(2048), limits(8192)])
    assert found.limits.max_num_batched_tokens == budget
    assert found.misfit < 0.02


def test_levels_at_which_the_client_was_starved_are_not_looked_at() -> None:
    with pytest.raises(ValueError, match="no level"):
        fitted([], [limits(2048)])


def test_the_curve_goes_through_the_levels() -> None:
    made = levels()
    found = fitted(made, [limits(2048)])
    values = predicted(made, found.fit.step, found.limits, found.fit.client)
    assert [value[1] for value in values] == pytest.approx([one.tpot.mean for one in made], rel=0.03)


def test_a_server_slower_than_believed_is_told_by_how_much() -> None:
    coefficients = {"alphaMs": "10", "betaMs": "0.05", "gammaMs": "0.0001"}
    believed = Profile.model_validate({"coefficients": coefficients, "maxNumBatchedTokens": 2048})
    made = levels(slower=1.3)
    sentence = compared(made, believed, fitted(made, [limits(2048)]))
    slower = [float(part.split()[-1]) for part in sentence.split(" times as long")[:2]]
    # A step that takes longer lets more prompts meet in it, so latencies grow by more than the steps.
    assert all(1.25 < value < 1.5 for value in slower)


def test_points_cannot_be_compared() -> None:
    points = [{"concurrency": c, "promptTokens": 9, "outputTokens": 9, "ttftMs": 9, "tpotMs": 9} for c in (1, 2)]
    made = levels()
    assert "only coefficients" in compared(made, Profile.model_validate({"points": points}), fitted(made, [limits(2048)]))
