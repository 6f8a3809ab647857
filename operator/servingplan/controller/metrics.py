"""What Prometheus says of the model servers, by plan.

Read beside the loop and handed to it with its age: a Prometheus that is slow or away must not hold up a decision. A series that
is missing stays missing; it is never read as zero.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Any

from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from requests import RequestException

from servingplan.controller.world import Measured
from servingplan.render.names import LABEL_PLAN, LABEL_POOL

log = logging.getLogger(__name__)

WINDOW = "2m"
_TIMEOUT_S = 5

_PLAN, _POOL = (name.replace(".", "_").replace("/", "_").replace("-", "_") for name in (LABEL_PLAN, LABEL_POOL))
_BY = f"namespace, {_PLAN}, {_POOL}"


def _mean(series: str) -> str:
    return f"sum by ({_BY}) (rate({series}_sum[{WINDOW}])) / sum by ({_BY}) (rate({series}_count[{WINDOW}]))"


def _quantile(quantile: float, series: str) -> str:
    return f"histogram_quantile({quantile}, sum by ({_BY}, le) (rate({series}_bucket[{WINDOW}])))"


QUERIES = {
    "present": f"sum by ({_BY}) (vllm:num_requests_running)",
    "ttft_mean_s": _mean("vllm:time_to_first_token_seconds"),
    "ttft_p95_s": _quantile(0.95, "vllm:time_to_first_token_seconds"),
    "inter_token_mean_s": _mean("vllm:inter_token_latency_seconds"),
}


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A Prometheus server."""

    url: str

    async def measure(self, plan_keys: list[str]) -> dict[str, Measured]:
        """What is known of every plan; where the server does not answer, why."""
        try:
            answers = await asyncio.to_thread(self._query)
        except (RequestException, PrometheusApiClientException, ValueError) as error:
            log.warning("Prometheus at %s does not answer: %s", self.url, error)
            return {key: Measured(error=f"{type(error).__name__}: {error}"[:300]) for key in plan_keys}
        return {key: _of_plan(key, answers) for key in plan_keys}

    def _query(self) -> dict[str, list[dict[str, Any]]]:
        connection = PrometheusConnect(url=self.url, timeout=_TIMEOUT_S)
        return {name: connection.custom_query(query) for name, query in QUERIES.items()}


def _of_plan(key: str, answers: dict[str, list[dict[str, Any]]]) -> Measured:
    by_name = {
        name: {
            sample["metric"].get(_POOL, ""): value
            for sample in samples
            if f"{sample['metric'].get('namespace')}/{sample['metric'].get(_PLAN)}" == key
            and math.isfinite(value := float(sample["value"][1]))
        }
        for name, samples in answers.items()
    }
    return Measured(
        ttft_mean_s=by_name["ttft_mean_s"],
        ttft_p95_s=by_name["ttft_p95_s"],
        inter_token_mean_s=by_name["inter_token_mean_s"],
        found=bool(by_name["present"]),
    )
