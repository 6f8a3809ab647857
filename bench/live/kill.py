"""``kill -9`` of the controller in the middle of a move, again and again, at another moment each time."""

import json
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import scene

from testbed import faults, traces
from testbed.bed import Bed
from testbed.cluster import wait_until
from testbed.stage import Operator, Served, background_load
from testbed.witness import Moment, Witness

RATE_RPS = 6.0
PRODUCTS = {"h100": "NVIDIA-H100-80GB-HBM3", "l40s": "NVIDIA-L40S"}
LIMIT = 4


def kill(bed: Bed, repeats: int, seed: int) -> None:
    """Moves back and forth; prints what became of each move, and what of the requests meanwhile."""
    random = np.random.default_rng(seed)
    with ExitStack() as stack:
        bed.kubectl("create", "namespace", "kill")
        witness = stack.enter_context(Witness(bed, "kill", Path(tempfile.mkdtemp())))
        bed.apply(scene.moving_plan(RATE_RPS), namespace="kill")
        plan, operator = Served(bed, "kill", "chat"), Operator(bed)
        plan.wait("Ready", "True", timeout_s=120)
        planned = traces.steady(scene.MOVING_CHAT, RATE_RPS, 3500.0)
        load = stack.enter_context(background_load(plan.url, planned, stream=False))
        kind, outcomes = "h100", Counter[str]()
        print("move  killed after  ended right in  requests  failed  most units (limit 4)  weight on nobody")
        for number in range(1, repeats + 1):
            kind = "l40s" if kind == "h100" else "h100"
            began_s, answered = time.time(), len(load.records)
            _move(bed, kind)
            delay_s = float(random.uniform(0.5, 10.0))
            time.sleep(delay_s)  # the moment of the kill is what is varied
            for pod in operator.pods():
                faults.kill_container(bed, pod, "controller")
            try:
                wait_until(lambda kind=kind: _arrived(plan, witness, kind), 150, f"moved to {kind}")
                outcome = f"{time.time() - began_s:.0f} s"
            except AssertionError as error:
                outcome = str(error)[-60:]
            outcomes["right" if outcome.endswith(" s") else "wrong"] += 1
            moments = list(witness.moments("chat", since_s=began_s))
            most = max(m.units.get(product, 0) for m in moments for product in PRODUCTS.values())
            lonely = sum(bool(_nowhere(m)) for m in moments)
            sent = load.records[answered:]
            lost = sum(not record.answered for record in sent)
            outcomes["failed requests"] += lost
            outcomes["requests"] += len(sent)
            outcomes["over the limit"] += most > LIMIT
            outcomes["weight on nobody"] += lonely
            print(f"{number:4}  {delay_s:10.1f} s  {outcome:>14}  {len(sent):8}  {lost:6}  {most:20}  {lonely:16}", flush=True)
        print(dict(outcomes))


def _move(bed: Bed, kind: str) -> None:
    patch = [
        {"op": "replace", "path": f"/spec/models/0/setups/{n}/maxReplicas", "value": 2 if name == kind else 0}
        for n, name in enumerate(PRODUCTS)
    ]
    bed.kubectl("patch", "msp", "chat", "-n", "kill", "--type=json", "-p", json.dumps(patch))


def _arrived(plan: Served, witness: Witness, kind: str) -> bool:
    wanted = {setup: count for setup, count in plan.replicas().items() if count[0]}
    assert list(wanted) == [f"only/{kind}"], wanted
    assert all(asked == ready for asked, ready in wanted.values()), wanted
    assert plan.condition("Ready")["status"] == "True"
    assert plan.condition("RoutingSynced")["status"] == "True"
    last = list(witness.moments("chat"))[-1]
    assert {product for product, units in last.units.items() if units} == {PRODUCTS[kind]}, last.units
    assert last.weighted
    assert all(f"-{kind}-" in pool for pool in last.weighted), last.weighted
    return True


def _nowhere(moment: Moment) -> set[str]:
    return {pool for pool in moment.weighted if not moment.ready.get(pool)}
