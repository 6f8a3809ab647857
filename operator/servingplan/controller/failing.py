"""Replicas that do not become ready: how long they are waited for, and when they are tried again.

A replica has its cold start and half as much again. Then it is given up: its setup may have no more replicas than are ready,
so that others cover and whatever waits for it goes on. It is tried again after a minute, and after twice as long each further
time.
"""

from __future__ import annotations

from servingplan.controller.case import Case
from servingplan.controller.memory import GivenUp, SetupKey
from servingplan.controller.world import Node, Pod

_PATIENCE = 1.5
_FIRST_RETRY_S, _LAST_RETRY_S = 60.0, 1800.0


def given_up(case: Case, nodes: tuple[Node, ...], now_s: float) -> dict[SetupKey, GivenUp]:
    """What is given up now, and what was and has not come back since."""
    lost = {node.name for node in nodes if not node.schedulable}
    found = {}
    for key, setup in case.setups.items():
        kept = case.memory.kept(key)
        before = kept.given_up
        # A pod on a lost node says nothing of its setup.
        missing = [pod for pod in case.pods[case.pools[key]] if not pod.serves and not pod.terminating and pod.node not in lost]
        if before and before.holds(now_s):
            found[key] = before
            continue
        since_s = _since_s(missing, kept.changed_s if case.denied[key] else 0.0)
        if since_s is not None and now_s - since_s > _PATIENCE * setup.cold_start_seconds:
            attempts = before.attempts + 1 if before else 1
            wait_s = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2 ** (attempts - 1))
            found[key] = GivenUp(case.denied[key] or _reason(missing), attempts, now_s + wait_s)
        elif before and (missing or case.ready[key] < kept.replicas or not kept.replicas):
            # Under way again: that it failed before counts until it is ready.
            found[key] = before
    return found


def _since_s(missing: list[Pod], denied_s: float) -> float | None:
    """Since when the oldest of the missing replicas is waited for; None where none is missing."""
    since = [pod.ready_changed_s or pod.created_s for pod in missing] + ([denied_s] if denied_s else [])
    return min(since, default=None)


def _reason(missing: list[Pod]) -> str:
    said = next((pod.waiting for pod in missing if pod.waiting), "")
    restarts = max(pod.restarts for pod in missing)
    return said or (f"not ready in time, restarted {restarts} times" if restarts else "not ready in time")
