"""Logs of real vLLM runs, as LLMServingSim's ``bench`` examples keep them, and how far a replay is from one.

A run is three files: ``NAME.requests.jsonl`` (one request a line), ``NAME.timeseries.csv`` (a row a second) and
``NAME.meta.json`` (engine options, start of the clock).
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from servingplan.sim.replay import Outcome, Workload

UNQUEUED_TTFT_S = 2.0
"""A request with a shorter TTFT in an overloaded run came before the queue had built up."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """What a real server did; times count from the first arrival.

    Attributes:
        workload: the requests.
        ttft_s, e2e_s: (n,) from arrival.
        inter_token_s: (n,) mean time between a request's tokens; NaN for outputs of one token.
        tick_s: (ticks,) when the series were read.
        running, waiting: (ticks,) requests.
    """

    workload: Workload
    ttft_s: np.ndarray
    e2e_s: np.ndarray
    inter_token_s: np.ndarray
    tick_s: np.ndarray
    running: np.ndarray
    waiting: np.ndarray


def read_run(folder: Path, name: str) -> RunLog:
    """Read a run.

    The engine's clock and the wall clock are joined by the request picked up soonest after its arrival: an engine
    picks requests up at step boundaries, so that counting from there would hide up to a step of every TTFT.
    """
    lines = (folder / f"{name}.requests.jsonl").read_text().splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: row["arrival_time"])
    column = {key: np.array([row[key] for row in rows], dtype=float) for key in rows[0] if key != "request_id"}
    arrival_s = column["arrival_time"] + np.min(column["queued_ts"] - column["arrival_time"])
    output = column["output_toks"].astype(int)
    spread_s = column["last_token_ts"] - column["first_token_ts"]
    meta = json.loads((folder / f"{name}.meta.json").read_text())
    series = np.genfromtxt(folder / f"{name}.timeseries.csv", delimiter=",", names=True)
    lead_s = column["arrival_time"][0] - datetime.fromisoformat(meta["started_at"]).timestamp()
    return RunLog(
        workload=Workload(arrival_s - arrival_s[0], column["input_toks"].astype(int), output),
        ttft_s=column["first_token_ts"] - arrival_s,
        e2e_s=column["last_token_ts"] - arrival_s,
        inter_token_s=np.where(output > 1, spread_s / np.maximum(output - 1, 1), np.nan),
        tick_s=series["t"] - lead_s,
        running=series["running"],
        waiting=series["waiting"],
    )


def errors(log: RunLog, outcome: Outcome, held_out: slice) -> dict[str, float]:
    """How far a replay is from the run, as fractions.

    Args:
        log: the run.
        outcome: its replay.
        held_out: requests the percentiles are taken of.

    Returns:
        Relative errors of percentiles over the held-out requests and of the mean TTFT of all unqueued ones; mean
        absolute errors of the series over their peaks.
    """
    chosen = np.zeros(len(log.ttft_s), dtype=bool)
    chosen[held_out] = True
    unqueued = log.ttft_s < UNQUEUED_TTFT_S
    columns = {
        "queued TTFT": (outcome.ttft_s, log.ttft_s, chosen & ~unqueued),
        "e2e": (outcome.e2e_s, log.e2e_s, chosen),
        "inter-token": (outcome.inter_token_s, log.inter_token_s, chosen),
    }
    found = {
        f"{name} p{q}": np.nanpercentile(ours[of], q) / np.nanpercentile(real[of], q) - 1
        for name, (ours, real, of) in columns.items()
        for q in (50, 95)
    }
    found["unqueued TTFT mean"] = np.mean(outcome.ttft_s[unqueued]) / np.mean(log.ttft_s[unqueued]) - 1
    ticks = np.clip(np.rint(log.tick_s / outcome.tick_s).astype(int), 0, len(outcome.running) - 1)
    for name, ours, real in (("running", outcome.running, log.running), ("waiting", outcome.waiting, log.waiting)):
        found[f"{name} series"] = np.mean(np.abs(ours[ticks] - real)) / np.max(real)
    return {name: float(value) for name, value in found.items()}
