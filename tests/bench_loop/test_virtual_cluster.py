"""The virtual cluster that the loop is judged on: pods, requests and readings as the real parts would have them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from servingplan.api.routing_table import ClassEntry, ModelEntry, Pool, RoutingTable
from servingplan.controller.world import Node
from servingplan.render import names
from servingplan.sim.engine import StepCost
from servingplan.sim.replay import Replica, Workload, replay
from virtual import reading, traffic
from virtual.cluster import Cluster
from virtual.engines import REFUSED, UNSERVED, Engines
from virtual.reading import Arrivals, Settings

PLAN = names.Owner("llm", "chat", "uid-chat")
KEY = "llm/chat"
REPLICA = Replica(StepCost(5e-3, 3e-3, 1e-5, 1e-8), kv_blocks=4000, max_num_seqs=64, prefix_caching=False)


def deployment(pool: str, replicas: int, units: int = 2) -> dict:
    container = {"name": "vllm", "resources": {"limits": {"nvidia.com/gpu": str(units)}}}
    labels = names.labels(PLAN, "model-server") | {names.LABEL_POOL: pool}
    return {
        "kind": "Deployment",
        "metadata": names.metadata(PLAN, pool, "model-server"),
        "spec": {
            "replicas": replicas,
            "template": {"metadata": {"labels": labels}, "spec": {"nodeSelector": {"gpu": "h100"}, "containers": [container]}},
        },
    }


def table(weights: dict[str, int], shed: float = 0.0) -> dict:
    pools = tuple(Pool(name=pool, setup=pool, address="x", port=8000, price=0.0) for pool in ("large", "small"))
    entry = ClassEntry(name="all", headers={}, weights=weights, shares={}, shed=shed, prices={}, ttft_s=None)
    found = RoutingTable(
        namespace="llm",
        plan="chat",
        generation=1,
        timeout_s=60,
        temperature=0.1,
        models=(ModelEntry(name="m", pools=pools, weights={}),),
        classes=(entry,),
    )
    metadata = names.metadata(PLAN, names.table_name("chat"), "router") | {"annotations": {names.ANNOTATION_TABLE: "d.0"}}
    return {"kind": "ConfigMap", "metadata": metadata, "data": {"table.json": found.model_dump_json(by_alias=True)}}


class Stored:
    """Stands for the plan where only its owner counts."""

    owner = PLAN
    key = KEY


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    node = Node("n1", {"gpu": "h100"}, {"nvidia.com/gpu": 4}, schedulable=True)
    yield Cluster((node,), lambda _pool: 60.0)


def test_pods_start_where_there_is_room_and_are_ready_after_their_cold_start(cluster):
    cluster.store(Stored, [deployment("large", 3)])
    cluster.advance(10.0)
    assert [bool(pod.node) for pod in cluster.pods.values()] == [True, True, False]
    assert cluster.ready("large") == []
    cluster.advance(59.0)
    assert cluster.ready("large") == []
    cluster.advance(61.0)
    assert len(cluster.ready("large")) == 2, "the third has no node"
    assert cluster.units() == 4


def test_what_leaves_holds_its_units_until_its_requests_have_ended(cluster):
    cluster.store(Stored, [deployment("large", 2)])
    cluster.advance(61.0)
    busy = dict.fromkeys(cluster.pods, True)
    cluster.busy = busy.__getitem__
    cluster.store(Stored, [deployment("large", 1)])
    cluster.advance(70.0)
    (leaving,) = [name for name, pod in cluster.pods.items() if pod.terminating]
    assert len(cluster.ready("large")) == 1
    assert cluster.units() == 4
    busy[leaving] = False
    cluster.advance(80.0)
    assert cluster.units() == 2


def test_a_pod_that_fails_is_started_anew(cluster):
    cluster.store(Stored, [deployment("large", 1)])
    cluster.advance(61.0)
    (name,) = cluster.ready("large")
    cluster.fail(name)
    cluster.advance(70.0)
    assert cluster.ready("large") == []
    cluster.advance(130.0)
    assert len(cluster.ready("large")) == 1


def requests(n: int, rate_rps: float, begin_s: float = 100.0) -> traffic.Requests:
    chance = np.random.default_rng(1)
    arrival_s = np.cumsum(chance.exponential(1 / rate_rps, n))
    return traffic.merged({"all": (arrival_s, chance.integers(10, 500, n), chance.integers(2, 60, n))}, begin_s)


def served(cluster: Cluster, weights: dict[str, int], shed: float = 0.0, n: int = 400) -> tuple[Engines, traffic.Requests]:
    cluster.store(Stored, [deployment("large", 1), deployment("small", 1), table(weights, shed)])
    asked = requests(n, 5.0)
    engines = Engines(KEY, cluster, {"large": REPLICA, "small": REPLICA}, asked, Settings(15.0), seed=3)
    cluster.busy = engines.busy
    for now_s in np.arange(10.0, 400.0, 10.0):
        engines.serve(float(now_s))
        cluster.advance(float(now_s))
    return engines, asked


def test_one_replica_serves_as_a_replay_of_its_requests_does(cluster):
    engines, asked = served(cluster, {"large": 1_000_000})
    outcome = engines.outcome()
    alone = replay(Workload(asked.arrival_s, asked.prompt_tokens, asked.output_tokens), REPLICA)
    np.testing.assert_array_equal(outcome.first_token_s, alone.first_token_s)
    np.testing.assert_array_equal(outcome.finished_s, alone.finished_s)


def test_requests_follow_the_weights_and_the_share_that_is_refused(cluster):
    engines, _ = served(cluster, {"large": 750_000, "small": 250_000}, shed=0.2, n=1200)
    pool = engines.outcome().pool
    refused = np.mean(pool == REFUSED)
    assert refused == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / len(pool)))
    assert np.mean(pool[pool >= 0] == 0) == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / len(pool) / 0.8))
    assert not np.any(pool == UNSERVED)


def test_a_pool_without_replicas_serves_nobody(cluster):
    cluster.store(Stored, [table({"large": 1_000_000})])
    engines = Engines(KEY, cluster, {"large": REPLICA}, requests(20, 5.0), Settings(15.0), seed=3)
    engines.serve(200.0)
    assert set(engines.outcome().pool) == {UNSERVED}


def test_readings_are_those_of_the_window_before_the_last_scrape(cluster):
    engines, asked = served(cluster, {"large": 1_000_000}, n=100_000 // 50)
    outcome, found = engines.outcome(), engines.readings()
    scraped_s = 390.0
    assert found.taken_s == scraped_s
    first = outcome.first_token_s
    inside = (first > scraped_s - reading.WINDOW_S) & (first <= scraped_s)
    large = found.pools["large"]
    assert large.ttft is not None
    assert large.ttft.count == inside.sum() > 200
    assert large.ttft.total == pytest.approx(np.sum(first[inside] - asked.arrival_s[inside]))
    assert large.rate_rps == pytest.approx(inside.sum() / reading.WINDOW_S)
    assert found.pools["small"].ttft.count == 0
    ended = (outcome.finished_s > scraped_s - reading.WINDOW_S) & (outcome.finished_s <= scraped_s)
    gaps = asked.output_tokens[ended] - 1
    assert large.inter_token.count == gaps.sum()
    assert large.inter_token.total == pytest.approx(np.sum(outcome.finished_s[ended] - first[ended]))
    window_s = found.classes["all"].window_s
    last = np.sum((asked.arrival_s >= scraped_s - window_s) & (asked.arrival_s < scraped_s)) / window_s
    assert found.classes["all"].rates_rps[-1] == pytest.approx(last)


def test_a_class_of_which_nothing_came_yet_has_no_history():
    arrivals = Arrivals(np.array([50.0, 130.0]))
    assert arrivals.history(50.0, 45.0, 30.0) is None
    assert arrivals.history(50.0, 75.0, 30.0) is None, "no window is whole"
    assert arrivals.history(50.0, 140.0, 30.0).rates_rps == (1 / 30, 0.0, 1 / 30)


def test_a_histogram_counts_an_observation_on_an_edge_below_it():
    found = reading.histogram(np.array([0.1, 0.1, 0.3, 9.0]), (0.1, 0.5, np.inf))
    assert found.counts == (2.0, 1.0, 1.0)
    assert found.total == pytest.approx(9.5)
