"""The loop on the test bed in real time: real API server, Prometheus, Envoy; engines whose speed the operator does not know.

    PYTHONPATH=hack python bench/live/bench_live.py loop|step|kill|idle [--out FOLDER]

``loop``  Arrivals and lengths of the Azure conversation trace; engines at 0.8 and 1.3 times the speed of their profiles. First
          without corrections, then with them: one-minute windows within the target, and the error of the predicted mean TTFT.
``step``  The load triples: until the routers serve other weights, and until more replicas are asked for.
``kill``  ``kill -9`` of the controller in the middle of a move, many times.
``idle``  Many plans of which nothing changes: status writes, CPU and memory of the operator.

Windows count the requests that were sent in them, as their clients saw them. Other work on the machine slows the engines and
is learnt as if it were the engines' own; the load average is printed with the figures.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import scene
from idle import idle
from kill import kill
from plot import draw
from record import Look, Window, looks, predicted_at, wilson, windows

from testbed import traces
from testbed.bed import DEMO_NODES, Bed, Settings
from testbed.cluster import wait_until
from testbed.load import Arrival, LoadClass
from testbed.stage import RELEASE, SYSTEM, BackgroundLoad, Served, background_load
from testbed.witness import Witness

CHART = Path(__file__).resolve().parents[2] / "charts/servingplan"
CYCLE_S = 60.0


@contextmanager
def bed_with_operator(scrape_s: float, **values: Any) -> Iterator[Bed]:
    """A bed with the operator in it; this process stands inside from here on."""
    with Bed(DEMO_NODES, Settings(nodes=(), scrape_interval_s=scrape_s)) as bed:
        bed.enter()
        prometheus = {"url": "http://prometheus.monitoring.svc:9090", "scrapeIntervalSeconds": scrape_s}
        bed.helm.install(CHART, RELEASE, SYSTEM, {"prometheus": prometheus, "replicas": 1} | values)
        yield bed


def applied(bed: Bed, namespace: str, body: dict[str, Any], stack: ExitStack) -> tuple[Served, Witness]:
    """A plan that serves, watched."""
    bed.kubectl("create", "namespace", namespace)
    witness = stack.enter_context(Witness(bed, namespace, Path(tempfile.mkdtemp())))
    bed.apply(body, namespace=namespace)
    plan = Served(bed, namespace, body["metadata"]["name"])
    plan.wait("Ready", "True", timeout_s=120)
    return plan, witness


def loop(out: Path, speed: float, rate_rps: float, before_min: int, learning_min: int, after_min: int, seed: int) -> None:
    """The first figure: before and after the loop is closed."""
    if not traces.present():
        print("no traces: SERVINGPLAN_DATA names no folder with them")
        return
    print("speed  phase       windows  kept             p95 of windows   mean error  requests  failed  generator lag p99")
    with bed_with_operator(5.0) as bed, ExitStack() as stack:
        _loop_at(bed, stack, out, speed, rate_rps, before_min, learning_min, after_min, seed)


def _loop_at(
    bed: Bed,
    stack: ExitStack,
    out: Path,
    speed: float,
    rate_rps: float,
    before_min: int,
    learning_min: int,
    after_min: int,
    seed: int,
) -> None:
    trace = traces.azure("conv")
    plan, witness = applied(bed, "live", scene.plan(rate_rps, speed, trace, "Disabled"), stack)
    minutes = before_min + learning_min + after_min + 1
    offset = float(np.random.default_rng(seed).uniform())
    planned = traces.replayed(
        trace,
        scene.CHAT,
        rate_rps,
        minutes * 60.0,
        offset=offset,
        longest_prompt=scene.LONGEST_PROMPT,
        longest_output=scene.LONGEST_OUTPUT,
    )
    load = stack.enter_context(background_load(plan.url, planned, seed=seed))
    began_s = time.time()
    _until(began_s + 60 * before_min)
    bed.kubectl("patch", "msp", "chat", "-n", "live", "--type=merge", "-p", '{"spec":{"metrics":{"calibration":"Enabled"}}}')
    learning_s = time.time()
    _until(learning_s + 60 * learning_min)
    learnt_s = time.time()
    _until(learnt_s + 60 * after_min)
    ended_s = time.time()
    records = load.finish()
    found = looks(witness, "chat")
    phases = {"before": (began_s, learning_s), "learning": (learning_s, learnt_s), "after": (learnt_s, ended_s)}
    for phase, (low_s, high_s) in phases.items():
        _row(speed, phase, load, list(_by_model(records, low_s, high_s)), found, low_s, high_s)
    every = list(_by_model(records, began_s, ended_s))
    draw(
        out / f"live_speed_{speed:g}.png",
        f"Engines at {speed:g} times the speed of their profiles",
        f"test bed in real time, arrivals and lengths of Azure's conversation trace at {rate_rps:g} requests/s, seed {seed}",
        scene.TTFT_S,
        found,
        every,
        [(learning_s, "corrections on"), (learnt_s, f"{learning_min} cycles later")],
    )


def _by_model(records: list[Any], low_s: float, high_s: float) -> Iterator[Window]:
    for model in sorted({record.model for record in records if record.model}):
        yield from windows(records, low_s, high_s, model)


def _row(
    speed: float, phase: str, load: BackgroundLoad, found: list[Window], seen: list[Look], low_s: float, high_s: float
) -> None:
    kept = sum(window.p95_s <= scene.TTFT_S for window in found)
    low, high = wilson(kept, len(found))
    errors = [
        abs(predicted / window.mean_s - 1)
        for window in found
        if (predicted := predicted_at(seen, window.model, window.begin_s + 60)) is not None
    ]
    sent = [record for record in load.records if low_s <= record.start_s < high_s]
    p95s = [window.p95_s for window in found]
    print(
        f"{speed:5g}  {phase:10}  {len(found):7}  {kept / max(1, len(found)):5.1%} [{low:.0%}, {high:.0%}]"
        f"  {np.median(p95s) if p95s else np.nan:.2f} s (max {max(p95s, default=np.nan):.2f})"
        f"  {np.mean(errors) if errors else np.nan:9.1%}  {len(sent):8}  {sum(r.failed for r in sent):6}"
        f"  {np.percentile([r.lag_s for r in sent], 99) if sent else np.nan:.3f} s  load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def _until(moment_s: float) -> None:
    while (left_s := moment_s - time.time()) > 0:
        time.sleep(min(1.0, left_s))  # the moment is one of the load's clock: there is nothing else to wait for


def step(out: Path, repeats: int, rate_rps: float) -> None:
    """The load triples on a plan that has just settled."""
    del out
    print("run  weights at every Envoy  more replicas asked  failed  (seconds after the step)")
    with bed_with_operator(5.0) as bed:
        for run in range(repeats):
            with ExitStack() as stack:
                namespace = f"step-{run}"
                plan, witness = applied(bed, namespace, scene.stepping_plan(rate_rps), stack)
                stack.callback(_remove, bed, plan)
                calm_s = 90.0
                planned = _tripled(scene.STEP_CHAT, rate_rps, calm_s, 120.0, seed=run)
                load = stack.enter_context(background_load(plan.url, planned, stream=False, seed=run))
                step_s = time.time() + calm_s
                _until(step_s)
                weights_s, asked_s = _reactions(plan, witness, step_s)
                records = load.finish()
                print(f"{run:3}  {weights_s:22.1f}  {asked_s:19.1f}  {sum(r.failed for r in records):6}", flush=True)


def _tripled(kind: LoadClass, rate_rps: float, calm_s: float, then_s: float, seed: int) -> list[Arrival]:
    random = np.random.default_rng(seed)
    before = np.cumsum(random.exponential(1 / rate_rps, int(calm_s * rate_rps * 2)))
    after = calm_s + np.cumsum(random.exponential(1 / (3 * rate_rps), int(then_s * rate_rps * 6)))
    times = [*before[before < calm_s], *after[after < calm_s + then_s]]
    return [Arrival(float(at_s), kind, round(kind.prompt_tokens), round(kind.output_tokens)) for at_s in times]


def _reactions(plan: Served, witness: Witness, step_s: float, timeout_s: float = 110.0) -> tuple[float, float]:
    """Seconds until every router serves other weights, and until more replicas are asked for; NaN where they never did."""
    first = [m for m in witness.moments(plan.name) if m.at_s <= step_s][-1]
    found: dict[str, float] = {}

    def reacted() -> bool:
        for moment in witness.moments(plan.name, since_s=step_s):
            if sum(moment.asked.values()) > sum(first.asked.values()):
                found.setdefault("asked", moment.at_s - step_s)
            if moment.weights != first.weights:
                found.setdefault("published", moment.at_s - step_s)
        if "published" in found and "served" not in found and plan.condition("RoutingSynced")["status"] == "True":
            found["served"] = time.time() - step_s
        return {"asked", "served"} <= found.keys()

    with suppress(AssertionError):  # what never came is told as that
        wait_until(reacted, timeout_s)
    return found.get("served", float("nan")), found.get("asked", float("nan"))


def _remove(bed: Bed, plan: Served) -> None:
    bed.kubectl("delete", "msp", plan.name, "-n", plan.namespace)
    wait_until(lambda: not plan.pods(), 150, "accelerators are free again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loop", "step", "kill", "idle"])
    parser.add_argument("--out", type=Path, default=Path("out/bench/live"))
    parser.add_argument("--speed", type=float, action="append")
    parser.add_argument("--rate", type=float, default=12.0)
    parser.add_argument("--before", type=int, default=6, help="minutes without corrections")
    parser.add_argument("--learning", type=int, default=5, help="minutes, and so cycles, of learning")
    parser.add_argument("--after", type=int, default=12, help="minutes that are judged")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.what == "loop":
        speeds = options.speed or [0.8, 1.3]
        for speed in speeds:
            # Whoever has entered a bed cannot start another: every speed has a process of its own.
            told = (options.out, speed, options.rate, options.before, options.learning, options.after, options.seed)
            process = get_context("spawn").Process(target=loop, args=told)
            process.start()
            process.join()
    elif options.what == "step":
        step(options.out, options.repeats or 3, rate_rps=8.0)
    elif options.what == "kill":
        with bed_with_operator(1.0, tickSeconds=1, cycleSeconds=3, dwellSeconds=15) as bed:
            kill(bed, options.repeats or 20, options.seed)
    else:
        with bed_with_operator(15.0) as bed:
            idle(bed, options.plans, options.minutes)


if __name__ == "__main__":
    main()
