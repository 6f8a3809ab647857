"""A pod's metrics page at full size, made anew for a few microseconds.

The page is the simulated vLLM's own (some 40 kB), rendered once; only the gauges that a picker looks at move.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from servingplan.sim.driver import Driver
from servingplan.sim.engine import Limits, StepCost
from servingplan.sim.metrics import Metrics

_GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


class Page:
    """The page of one model's pods."""

    def __init__(self, model: str, max_model_len: int = 32_768) -> None:
        metrics = Metrics(model, max_model_len, {"block_size": "16"})
        idle = Driver(
            StepCost(0.01, 0.0, 0.0, 0.0),
            Limits(1, 2048, 0),
            64,
            1024,
            on_token=lambda _ticket, _since_s: None,
            on_step=lambda _tokens: None,
        )
        metrics.watch(idle)
        text = metrics.page()
        pattern = "^((?:" + "|".join(_GAUGES) + r")\{.*\} )\S+$"
        self._parts = re.split(pattern.encode(), text, flags=re.MULTILINE)
        self._names = [part.split(b"{")[0].decode() for part in self._parts[1::2]]

    def text(self, running: float, waiting: float, kv_usage: float) -> bytes:
        """The page with these values."""
        values: Mapping[str, float] = dict(zip(_GAUGES, (running, waiting, kv_usage), strict=True))
        pieces = [self._parts[0]]
        for name, begin, after in zip(self._names, self._parts[1::2], self._parts[2::2], strict=True):
            pieces += [begin, str(float(values[name])).encode(), after]
        return b"".join(pieces)
