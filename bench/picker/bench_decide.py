"""How long one decision takes, beside the least that any decision over as many endpoints could.

A brain routes Poisson arrivals at a steady load, is told first bytes, ends and scrapes as a picker would, and every ``choose``
is timed. The baseline, timed in turn with it, is what the plainest rule does: one numpy argmax over the endpoints. Quantiles
are over all decisions; their 95 % intervals are bootstrapped over blocks of decisions. On a busy box the time on the CPU tells
what a decision takes, and the time on the clock how long it was kept waiting besides.

A second table holds the processor time of all that is done for a chat request of 4 kB, with and without a predictor, and of its
parts: in a tight loop, and each time after 64 MB were written. After that not even the interpreter is in the caches, which is
worse than any pause in a real picker. The baseline there is reading the same body as JSON.

    python bench/picker/bench_decide.py [OUT_FOLDER]
"""

import heapq
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from live import estimator, layout, traffic
from servingplan.picker import embed, table
from servingplan.picker.body import read_prompt
from servingplan.picker.decide import Decider, Pick
from servingplan.picker.metrics import Metrics
from servingplan.picker.protocol import BodyMode, Opening
from servingplan.routing.ask import Ask, ClassRule, Outcome
from servingplan.routing.brain import Brain
from servingplan.routing.fleet import Endpoint, Engine, Scrape
from servingplan.routing.preset import Preset

mpl.use("Agg")
from matplotlib import pyplot as plt

TIERS = (
    (Engine("3b", "3b", 9.6e-3, 55e-6, 6e-8, 0.0, 256, 2048, 278_000, 0.06e-6, 0.06e-6), 3, 0.39),
    (Engine("7b", "7b", 18.8e-3, 1e-4, 12e-8, 0.0, 256, 2048, 56_000, 0.07e-6, 0.07e-6), 5, 0.55),
    (Engine("14b", "14b", 14.6e-3, 1e-4, 8e-8, 0.0, 256, 2048, 217_000, 0.15e-6, 0.15e-6), 3, 0.59),
    (Engine("72b", "72b", 39.7e-3, 1.7e-4, 10e-8, 0.0, 256, 2048, 436_000, 0.38e-6, 0.40e-6), 2, 0.65),
)
SIZES = (13, 50, 200)
TARGETS_US = {13: 300.0, 200: 1000.0}
DECISIONS, WARM_UP, BLOCK = 6000, 500, 100
RATE_RPS_EACH, SCRAPE_S = 2.3, 0.25
BLOCKS_OF_PROMPT = 16
REQUESTS, STAY_S = {"hot": 800, "cold": 250}, 2.0
TO_WRITE = np.zeros(64 * 2**20, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Timed:
    """Microseconds of (decisions,) choices, on the clock and on the CPU, and of the argmax beside each."""

    endpoints: int
    choice_us: np.ndarray
    cpu_us: np.ndarray
    argmax_us: np.ndarray
    event_us: float


def fleet(size: int) -> list[Endpoint]:
    pattern = [engine for engine, count, _ in TIERS for _ in range(count)]
    return [Endpoint(f"10.0.{at // 250}.{at % 250}:8000", pattern[at % len(pattern)]) for at in range(size)]


def asks(rng: np.random.Generator, count: int) -> list[Ask]:
    models = [engine.model for engine, _, _ in TIERS]
    quality = np.clip(np.array([score for _, _, score in TIERS]) + rng.normal(0, 0.1, (count, len(TIERS))), 0, 1)
    prompts, outputs = rng.lognormal(5.5, 1.0, count), rng.lognormal(5.3, 0.6, (count, len(TIERS)))
    conversations = rng.integers(0, 400, count)
    return [
        Ask(
            "chat",
            float(prompts[at]),
            dict(zip(models, quality[at].tolist(), strict=True)),
            dict(zip(models, outputs[at].tolist(), strict=True)),
            tenant=str(at % 7),
            prefix=tuple(int(conversations[at]) * 1000 + block for block in range(BLOCKS_OF_PROMPT)),
        )
        for at in range(count)
    ]


def measure(size: int) -> Timed:
    rng = np.random.default_rng(size)
    replicas, brain = fleet(size), Brain(Preset.BALANCED.prices)
    brain.configure(replicas, {"chat": ClassRule("chat")})
    requests, scores = asks(rng, DECISIONS + WARM_UP), rng.random((DECISIONS + WARM_UP, size))
    draws = rng.random(DECISIONS + WARM_UP)
    choice_us, cpu_us, argmax_us, spent_s, events = [], [], [], 0.0, 0
    now_s, scraped_s, due = 0.0, 0.0, []
    for at, ask in enumerate(requests):
        now_s += rng.exponential(1.0 / (RATE_RPS_EACH * size))
        while due and due[0][0] <= now_s:
            at_s, ticket, event = heapq.heappop(due)
            spent_s += told(event, brain, ticket, at_s)
            events += 1
        while scraped_s <= now_s:
            for address, running in brain.in_flight().items():
                brain.observe(address, Scrape(scraped_s, running, 0.0, 0.2), scraped_s)
            scraped_s += SCRAPE_S
        begun_cpu, begun = time.thread_time(), time.perf_counter()
        choice = brain.choose(ask, now_s, float(draws[at]))
        done, done_cpu = time.perf_counter(), time.thread_time()
        int(np.argmax(scores[at]))
        argmax_us.append(1e6 * (time.perf_counter() - done))
        choice_us.append(1e6 * (done - begun))
        cpu_us.append(1e6 * (done_cpu - begun_cpu))
        if choice.ticket is not None and choice.terms is not None:
            heapq.heappush(due, (now_s + choice.terms.ttft_s, choice.ticket, "first"))
            heapq.heappush(due, (now_s + choice.terms.e2e_s, choice.ticket, "last"))
    columns = (np.array(column[WARM_UP:]) for column in (choice_us, cpu_us, argmax_us))
    return Timed(size, *columns, 1e6 * spent_s / max(1, events))


def told(event: str, brain: Brain, ticket: int, at_s: float) -> float:
    begun = time.perf_counter()
    if event == "first":
        brain.first_byte(ticket, at_s)
    else:
        brain.finished(ticket, at_s, Outcome.COMPLETED)
    return time.perf_counter() - begun


class Kept:
    """What a decision is made from, kept up by this benchmark in place of a cluster."""

    def __init__(self, size: int, predict: embed.PromptPredictor | None) -> None:
        self.table = layout.table(picker={"per_dollar": 1500.0, "per_second": 0.02})
        self.predict, self.brain, self.now_s = predict, Brain(Preset.BALANCED.prices), 0.0
        pools = [tier.pool for tier, count in zip(layout.TIERS, layout.counts(13), strict=True) for _ in range(count)]
        members: dict[str, dict[str, bool]] = {tier.pool: {} for tier in layout.TIERS}
        for at in range(size):
            members[pools[at % len(pools)]][f"10.0.{at // 250}.{at % 250}:8000"] = True
        self.brain.configure(table.endpoints(self.table, members), table.class_rules(self.table))


def bodies(count: int, seed: int) -> list[bytes]:
    made = traffic.Bodies(traffic.Plan(pieces=(), seed=seed))
    return [made.next()[0].partition(b"\r\n\r\n")[2] for _ in range(count)]


def timed_us(state: str, work: Callable[[], object]) -> float:
    if state == "cold":
        TO_WRITE.__iadd__(1)
    begun = time.thread_time()
    work()
    return 1e6 * (time.thread_time() - begun)


def whole(size: int, predict: embed.PromptPredictor | None, state: str) -> tuple[float, float]:
    """Microseconds of a request from its body to its pick, and of its end: medians."""
    kept, rng, picked, ended = Kept(size, predict), np.random.default_rng(size), [], []
    decider = Decider(kept, Metrics(), clock=lambda: kept.now_s, draw=rng.random)
    headers = {":path": b"/v1/chat/completions", ":method": b"POST", "content-type": b"application/json"}
    flying: list[tuple[float, Pick]] = []
    scraped_s = 0.0
    for body in bodies(REQUESTS[state], size):
        kept.now_s += rng.exponential(1.0 / (RATE_RPS_EACH * size))
        while scraped_s <= kept.now_s:
            for address, running in kept.brain.in_flight().items():
                kept.brain.observe(address, Scrape(scraped_s, running, 0.0, 0.2), scraped_s)
            scraped_s += SCRAPE_S
        while flying and flying[0][0] < kept.now_s - STAY_S:
            pick = flying.pop(0)[1]
            ended.append(timed_us(state, lambda pick=pick: decider.finished(pick, Outcome.CANCELLED, None)))
        opening, found = Opening(headers, is_whole=False, mode=BodyMode.BUFFERED), []
        picked.append(timed_us(state, lambda body=body, to=found, of=opening: to.append(decider.decide(of, body))))
        if isinstance(found[0], Pick):
            flying.append((kept.now_s, found[0]))
    return float(np.median(picked)), float(np.median(ended)) if ended else float("nan")


def parts(predict: embed.PromptPredictor, state: str) -> dict[str, float]:
    """Medians of microseconds of what comes before the decision."""
    sent = bodies(REQUESTS[state], 7)
    texts = [read_prompt(body, 300.0).text for body in sent]
    features = [predict.embedder.features([text]) for text in texts]
    works = {
        "JSON alone": (json.loads, sent),
        "read the body": (lambda body: read_prompt(body, 300.0), sent),
        "features": (lambda text: predict.embedder.features([text]), texts),
        "prediction": (predict.predictor.predict, features),
    }
    return {name: median_us(state, work, of) for name, (work, of) in works.items()}


def median_us(state: str, work: Callable[[Any], object], of: Sequence[object]) -> float:
    return float(np.median([timed_us(state, lambda each=each: work(each)) for each in of]))


def show_parts(folder: Path) -> None:
    file, source = estimator.trained(folder)
    predict = embed.load(file)
    # A picker that has served for a while knows the words.
    prose = traffic.prose().decode()
    predict([prose[at : at + embed.WORD_CHARACTERS] for at in range(0, len(prose), embed.WORD_CHARACTERS)])
    print(f"\nprocessor time of a chat request of 4 kB in us; predictor trained on {source}")
    for state in REQUESTS:
        found = parts(predict, state)
        unit = found["JSON alone"]
        print(f"{state:>5}: " + ", ".join(f"{name} {each:.0f} ({each / unit:.1f}x)" for name, each in found.items()))
    print(f"{'':>5} {'endpoints':>9} {'predictor':>9} {'to the pick':>11} {'its end':>8}")
    for state in REQUESTS:
        for size in SIZES:
            for name, used in (("no", None), ("yes", predict)):
                pick, end = whole(size, used, state)
                print(f"{state:>5} {size:9d} {name:>9} {pick:11.0f} {end:8.1f}")


def interval(values: np.ndarray, figure: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """95 % of the bootstrap over blocks of consecutive decisions."""
    blocks = values.reshape(-1, BLOCK)
    rng = np.random.default_rng(1)
    found = [figure(blocks[rng.integers(0, len(blocks), len(blocks))].ravel()) for _ in range(400)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'endpoints':>9} {'p50 us':>16} {'p99 us':>18} {'target':>7} {'CPU p50':>7} {'p99':>5}", end="")
    print(f" {'argmax p50':>10} {'ratio p50':>9} {'event us':>8}")
    timed = [measure(size) for size in SIZES]
    for each in timed:
        p50, p99 = np.percentile(each.choice_us, [50, 99])
        cpu50, cpu99 = np.percentile(each.cpu_us, [50, 99])
        low50, high50 = interval(each.choice_us, lambda values: float(np.percentile(values, 50)))
        low99, high99 = interval(each.choice_us, lambda values: float(np.percentile(values, 99)))
        base, target = float(np.median(each.argmax_us)), TARGETS_US.get(each.endpoints)
        print(f"{each.endpoints:9d} {p50:5.0f} [{low50:.0f}, {high50:.0f}] {p99:6.0f} [{low99:.0f}, {high99:.0f}]", end="")
        print(f" {f'{target:.0f}' if target else '-':>7} {cpu50:7.0f} {cpu99:5.0f}", end="")
        print(f" {base:10.2f} {p50 / base:9.0f} {each.event_us:8.1f}")
    draw(timed, out / "decide.png")
    with tempfile.TemporaryDirectory() as folder:
        show_parts(Path(folder))


def draw(timed: list[Timed], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for each, colour in zip(timed, ("#2a6f97", "#e09f3e", "#9e2a2b"), strict=True):
        share = 1 - np.arange(len(each.choice_us)) / len(each.choice_us)
        axes.plot(np.sort(each.choice_us), share, color=colour, lw=2, label=f"{each.endpoints} endpoints")
        axes.plot(np.sort(each.argmax_us), share, color=colour, lw=1, ls=":")
        if each.endpoints in TARGETS_US:
            axes.plot(TARGETS_US[each.endpoints], 0.01, marker="v", ms=9, color=colour, mec="white")
    axes.axhline(0.01, color="#bbbbbb", lw=0.8)
    axes.annotate("p99", (0.995, 0.0105), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#777777")
    axes.set(xscale="log", yscale="log", xlabel="microseconds", ylabel="share of decisions that take longer", ylim=(1e-3, 1.1))
    axes.set_title("One decision (solid), one argmax (dotted), targets (triangles)", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
