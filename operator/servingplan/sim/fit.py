"""Fit of step-time coefficients to the request log of a real server.

The whole log is replayed for each trial, since arrivals and lengths are given; only the latencies of the chosen
requests count. The loss is the mean absolute log error of TTFT and of inter-token latency, so that a request that
waited a minute weighs no more than one that did not wait. Nelder-Mead in log space, from several starts: gamma runs to
zero where the log does not identify it, and alpha and floor trade against each other where every step is full.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from servingplan.sim.engine import StepCost
from servingplan.sim.replay import Outcome, Replica, replay
from servingplan.sim.runlog import RunLog

_STARTS = (
    StepCost(10e-3, 1e-3, 60e-6, 60e-9),
    StepCost(20e-3, 5e-3, 40e-6, 20e-9),
    StepCost(5e-3, 10e-3, 150e-6, 200e-9),
)
_NEGLIGIBLE = 1e-12


def loss(log: RunLog, outcome: Outcome, chosen: slice) -> float:
    """Mean absolute log error of TTFT and inter-token latency of the chosen requests."""
    ttft = np.abs(np.log(outcome.ttft_s[chosen] / log.ttft_s[chosen]))
    gaps = np.abs(np.log(outcome.inter_token_s[chosen] / log.inter_token_s[chosen]))
    return float(np.mean(ttft) + np.nanmean(gaps))


def fit(log: RunLog, replica: Replica, chosen: slice, starts: Sequence[StepCost] = _STARTS) -> Replica:
    """Find the step cost that makes `replica` repeat the chosen requests' latencies.

    Args:
        log: the measured run.
        replica: limits and KV blocks of the real server; its cost is not used.
        chosen: requests whose latencies count.
        starts: where the searches begin.

    Returns:
        `replica` with the best cost found.
    """

    def objective(logarithms: np.ndarray) -> float:
        return loss(log, replay(log.workload, replace(replica, cost=_cost(logarithms))), chosen)

    found = [
        minimize(objective, np.log(start), method="Nelder-Mead", options={"maxfev": 250, "xatol": 1e-2, "fatol": 1e-4})
        for start in starts
    ]
    return replace(replica, cost=_cost(min(found, key=lambda result: result.fun).x))


def _cost(logarithms: np.ndarray) -> StepCost:
    values = np.exp(np.clip(logarithms, np.log(_NEGLIGIBLE), 0.0))
    return StepCost(*(float(value) for value in values))
