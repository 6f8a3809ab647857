"""What clients see when a pod or the picker fails, and what is left in the picker's ledger afterwards.

Nobody tells the router about a fault: the killed or hung pod stays in DNS and in the list of endpoints, which is worse than
a cluster, where its readiness falls within a second or so. Streams that had begun on a killed pod are lost with it, whoever
routes; errors before the first byte are the router's.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from live import figures, layout, stack
from live.compare import busiest, chats, models
from live.process import wait_until
from live.streams import IN_FLIGHT, LEDGER, scene
from live.traffic import End, Plan

BEFORE_S, AFTER_S = 15.0, 30.0
_SINCE_S = ((0.0, 1.0), (1.0, 3.0), (3.0, math.inf))
_LOST = (End.BEFORE, End.HEADED, End.CUT, End.LATE)


@dataclass(frozen=True, slots=True)
class PodFault:
    """What a pod's fault did.

    Attributes:
        fault: ``kill`` or ``hang``.
        rows: One a request.
        fault_s: When it happened, on the rows' clock.
        victim: The pod.
        held: Requests that the victim had begun to answer; what becomes of them is not in the router's hand.
        lost: Of all other requests that were under way or came later, how many ended in which way without an answer.
        asked: Of those, all.
        attempts_s: When, in seconds after the fault, each request came that the victim was tried for.
        ttft_p99_ms: Before and after the fault.
    """

    arm: str
    fault: str
    rows: np.ndarray
    fault_s: float
    victim: str
    held: int
    lost: dict[str, int]
    asked: int
    attempts_s: tuple[float, ...]
    ttft_p99_ms: tuple[float, float]

    def words(self) -> str:
        """One line."""
        share = sum(self.lost.values()) / max(1, self.asked)
        everyone = (sum(self.lost.values()) + self.held) / max(1, len(self.rows))
        tried = [sum(low <= at_s < high for at_s in self.attempts_s) for low, high in _SINCE_S]
        before, after = self.ttft_p99_ms
        return (
            f"{self.fault} 1 of 13, {self.arm:14} {self.held} begun answers lost with the pod; of {self.asked} others "
            f"{sum(self.lost.values())} failed ({share:.2%}) {self.lost or ''}; {everyone:.2%} of the whole run; tried there "
            f"{tried[0]} in the first second, {tried[1]} in the next two, {tried[2]} later; "
            f"TTFT p99 {before:.0f} -> {after:.0f} ms"
        )


def pod_fault(folder: Path, arm: stack.Arm, fault: str, rate_rps: float = 18.0, seed: int = 0) -> PodFault:
    """Kill the busiest of thirteen pods as by SIGKILL, or stop it as by SIGSTOP, in the middle of a load of streams."""
    seconds = BEFORE_S + AFTER_S
    plan = chats(((seconds, rate_rps),), seed)
    with scene(folder, arm, engines=True) as (fleet, router, sender):
        sender.begin([router], plan)
        began_s = time.monotonic()
        time.sleep(BEFORE_S)  # the load before the fault
        victim = busiest(fleet)
        fault_s, wall_s = time.monotonic() - began_s, time.time()
        fleet.order(fault, [victim])
        rows, _ = sender.finish()
        wait_until(lambda: len(router.log_lines()) >= len(rows), "every request is in the access log")
        lines = router.log_lines()
    address = next(f"{spec.address}:{spec.port}" for spec in fleet.specs if spec.name == victim)
    began = (rows["sent_s"] < fault_s) & (rows["pod"] == victim.encode()) & np.isin(rows["end"], _LOST)
    others = rows[~began & (rows["end_s"] >= fault_s)]
    tried = (line for line in lines if line.get("upstream") == address or int(line.get("attempts", 1)) > 1)
    return PodFault(
        arm.name,
        fault,
        rows,
        fault_s,
        victim,
        int(np.sum(began)),
        figures.ends(others[np.isin(others["end"], _LOST)]),
        len(others),
        tuple(at_s for line in tried if (at_s := _started_s(line) - wall_s) >= 0),
        (
            figures.percentile(figures.ttft_ms(rows[(rows["sent_s"] < fault_s) & (rows["sent_s"] > 2.0)]), 99),
            figures.percentile(figures.ttft_ms(rows[rows["sent_s"] >= fault_s]), 99),
        ),
    )


def _started_s(line: Mapping[str, str]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


@dataclass(frozen=True, slots=True)
class PickerFault:
    """What the picker's fault did.

    Attributes:
        ends: Outcomes from the fault on.
        p99_ms: Whole requests before, in the first two seconds of the fault, and later in it.
        shares: Part of the requests by model before and amid the fault.
    """

    fault: str
    ends: dict[str, int]
    p99_ms: tuple[float, float, float]
    shares: tuple[dict[str, float], dict[str, float]]

    def words(self) -> str:
        """One line."""
        shares = " | ".join(" ".join(f"{model} {share:.0%}" for model, share in each.items()) for each in self.shares)
        before, at_once, later = self.p99_ms
        return (
            f"picker {self.fault:10} {self.ends}; whole request p99 {before:.1f} ms before, {at_once:.1f} ms in the first two "
            f"seconds, {later:.1f} ms then; models before and after: {shares}"
        )


def picker_fault(folder: Path, arm: stack.Arm, fault: str, rate_rps: float = 100.0, seed: int = 0) -> PickerFault:
    """Kill the picker, stop it, or give it a table that is none, in the middle of a load of short requests."""
    calm_s, fault_s = 6.0, 12.0
    faults: dict[str, Callable[[stack.Router], None]] = {
        "killed": lambda router: router.signal_picker(signal.SIGKILL),
        "stopped": lambda router: router.signal_picker(signal.SIGSTOP),
        "malformed": lambda router: router.publish(arm.table(2), '{"plan": '),
    }
    plan = Plan(((calm_s + fault_s, rate_rps),), stream=False, seed=seed)
    with scene(folder, arm) as (_, router, sender):
        sender.begin([router], plan)
        began_s = time.monotonic()
        time.sleep(calm_s)  # the load before the fault
        faults[fault](router)
        at_s = time.monotonic() - began_s
        rows, _ = sender.finish()
    sent_s = rows["sent_s"]
    before = rows[(sent_s > 1.0) & (sent_s < at_s)]
    first = rows[(sent_s >= at_s) & (sent_s < at_s + 2)]
    later = rows[sent_s >= at_s + 2]
    return PickerFault(
        fault,
        figures.ends(rows[rows["end_s"] >= at_s]),
        (
            figures.percentile(figures.whole_ms(before), 99),
            figures.percentile(figures.whole_ms(first), 99),
            figures.percentile(figures.whole_ms(later), 99),
        ),
        (models(before), models(later)),
    )


def storm(folder: Path, arm: stack.Arm, fault: str, streams: int = 300) -> str:
    """Some hundred streams whose clients, pods or picker go at once: seconds until the ledger is at nothing.

    Args:
        folder: For files.
        arm: Ours, with or without the predictor.
        fault: ``clients``, ``pods`` or ``picker``; after ``picker`` the clients go too.
        streams: How many are under way, about.
    """
    begun_s = 3.0
    long = Plan(((begun_s, streams / begun_s),), body_bytes=layout.PROMPT_BYTES, output_tokens=300.0, pace_s=1.0)
    with scene(folder, arm) as (fleet, router, sender):
        sender.begin([router], long)
        time.sleep(begun_s + 1.0)  # until the last stream has begun
        held = router.metric(IN_FLIGHT)
        extra = ""
        if fault == "picker":
            router.signal_picker(signal.SIGKILL)
            router.start_picker()
            wait_until(lambda: router.get("/readyz", router.metrics_port)[0] == 200, "the new picker is ready")
            extra = f", of which the new picker knows {router.metric(IN_FLIGHT):g}"
        gone_s = time.monotonic()
        if fault == "pods":
            fleet.order("kill")
        else:
            sender.stop()
        wait_until(lambda: not any(ledger_numbers(router).values()), "nothing is in flight at the picker")
        after_s = time.monotonic() - gone_s
        time.sleep(1.0)  # whatever comes late must not bring it below nothing
        ledger = ledger_numbers(router)
    return f"storm, {fault:7} {held:g} streams gone at once{extra}: nothing in flight after {after_s:.2f} s; then {ledger}"


def ledger_numbers(router: stack.Router) -> dict[str, float]:
    """What the picker holds: reservations of its ledger, requests without an end, streams of Envoy's."""
    names = (LEDGER, IN_FLIGHT, "servingplan_picker_streams")
    return {name.removeprefix("servingplan_picker_"): router.metric(name) for name in names}
