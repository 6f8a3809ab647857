"""The picker on the cluster of the control loop: it hears what a picker hears, and what is counted is what happened."""

from __future__ import annotations

import numpy as np
import pytest

from servingplan.api.routing_table import WEIGHT_TOTAL, ClassEntry, Engine, ModelEntry, Picker, Pool, RoutingTable
from servingplan.controller.world import Node
from servingplan.render import names
from servingplan.render.vllm import COMPONENT
from servingplan.sim.engine import StepCost
from servingplan.sim.replay import Replica
from together import measure
from together.online import CHOICE_WINDOW_S, Counts, Picked
from together.service import CLASS_HEADER, CLASSES, KEY, MODELS, NAMESPACE, PLAN, SLO_S
from together.trace import Asked
from virtual.cluster import Cluster
from virtual.drive import Tick
from virtual.engines import REFUSED, Engines
from virtual.reading import Settings
from virtual.traffic import Requests

OWNER = names.Owner(NAMESPACE, PLAN, "uid-together")
REPLICA = Replica(StepCost(5e-3, 0.0, 1e-5, 1e-8), kv_blocks=4000, max_num_seqs=8, prefix_caching=False)
TRUTH = {model.pool: REPLICA for model in MODELS}
BEGIN_S, UNTIL_S = 100.0, 340.0


class Stored:
    """Stands for the plan where only its owner counts."""

    owner = OWNER
    key = KEY


def deployment(pool: str, replicas: int) -> dict:
    container = {"name": "vllm", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    spec = {"nodeSelector": {}, "containers": [container]}
    labels = names.labels(OWNER, COMPONENT) | {names.LABEL_POOL: pool}
    return {
        "kind": "Deployment",
        "metadata": names.metadata(OWNER, pool, COMPONENT),
        "spec": {"replicas": replicas, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def config(weights: dict[str, int], picker: Picker | None) -> dict:
    engine = Engine(alpha_s=5e-3, beta_s=1e-5, gamma_s=1e-8, max_num_seqs=8, max_num_batched_tokens=2048)
    models = tuple(
        ModelEntry(name=model.name, pools=(Pool(name=model.pool, setup="s", address="x", engine=engine),)) for model in MODELS
    )
    entries = tuple(
        ClassEntry(name=name, headers={CLASS_HEADER: name} if at else {}, weights=weights, ttft_s=SLO_S[name])
        for at, name in enumerate(CLASSES)
    )
    table = RoutingTable(namespace=NAMESPACE, plan=PLAN, generation=1, models=models, classes=entries, picker=picker)
    metadata = names.metadata(OWNER, names.table_name(PLAN), "router") | {"annotations": {names.ANNOTATION_TABLE: "d.0"}}
    return {"kind": "ConfigMap", "metadata": metadata, "data": {"table.json": table.model_dump_json(by_alias=True)}}


def asked(rate_rps: float = 20.0, count: int = 2000) -> Asked:
    """Each request is answered well by one model of the first two and badly by the others, as the estimator says."""
    chance = np.random.default_rng(1)
    arrival_s = BEGIN_S + np.cumsum(chance.exponential(1 / rate_rps, count))
    output = chance.integers(2, 60, (count, len(MODELS)))
    good = chance.integers(0, 2, count)
    quality = np.where(np.arange(len(MODELS)) == good[:, None], 0.9, 0.1)
    requests = Requests(arrival_s, chance.integers(0, 2, count), chance.integers(10, 300, count), output[:, 0], CLASSES)
    return Asked(requests, quality, output, quality, output.astype(float))


def served(plant: Engines, cluster: Cluster) -> Engines:
    cluster.busy = plant.busy
    for now_s in np.arange(10.0, UNTIL_S, 10.0):
        plant.serve(float(now_s))
        cluster.advance(float(now_s))
    return plant


def cluster_of(weights: dict[str, int], picker: Picker | None, replicas: int = 2) -> Cluster:
    cluster = Cluster((Node("n1", {}, {"nvidia.com/gpu": 8}, schedulable=True),), lambda _pool: 60.0)
    cluster.store(Stored, [*(deployment(model.pool, replicas) for model in MODELS), config(weights, picker)])
    return cluster


def picked(work: Asked, picker: Picker | None, replicas: int = 2) -> Picked:
    cluster = cluster_of({MODELS[0].pool: 700_000, MODELS[2].pool: WEIGHT_TOTAL - 700_000}, picker, replicas)
    plant = Picked(KEY, cluster, TRUTH, work, Settings(15.0), 3, reports=True)
    served(plant, cluster)
    return plant


def test_without_a_picker_in_the_table_it_is_the_router_by_weights() -> None:
    work = asked()
    cluster = cluster_of({MODELS[0].pool: 700_000, MODELS[2].pool: WEIGHT_TOTAL - 700_000}, None)
    plain = served(Engines(KEY, cluster, TRUTH, work.requests, Settings(15.0), 3, work.outputs()), cluster).outcome()
    found = picked(work, None).outcome()
    np.testing.assert_array_equal(found.pool, plain.pool)
    np.testing.assert_array_equal(found.finished_s, plain.finished_s)


def test_requests_go_where_they_are_answered_well_and_the_ledger_returns_to_zero() -> None:
    work = asked()
    plant = picked(work, Picker(per_dollar=0.0, per_second=0.001))
    model = measure.models_of(plant.outcome())
    assert np.mean(work.quality[np.arange(len(work)), model] > 0.5) > 0.99
    assert np.all(np.isfinite(plant.outcome().finished_s))
    assert len(plant.brain) == 0
    assert set(plant.brain.in_flight().values()) == {0.0}


def test_the_controller_is_told_what_was_chosen() -> None:
    work = asked()
    plant = picked(work, Picker(per_dollar=0.0, per_second=0.001))
    found, model = plant.readings(), measure.models_of(plant.outcome())
    scraped_s = found.taken_s
    recent = (work.requests.arrival_s > scraped_s - CHOICE_WINDOW_S) & (work.requests.arrival_s <= scraped_s)
    for kind, name in enumerate(CLASSES):
        mine = recent & (work.requests.kind == kind)
        assert found.chosen[name].requests == mine.sum()
        assert found.chosen[name].shares[MODELS[0].name] == pytest.approx(np.mean(model[mine] == 0))
        assert found.chosen[name].gains[MODELS[0].name] == pytest.approx(0.8, abs=0.1)


def test_what_no_replica_can_begin_in_time_is_refused() -> None:
    work = asked(rate_rps=400.0, count=4000)
    outcome = picked(work, Picker(per_dollar=0.0, per_second=0.001), replicas=1).outcome()
    late_s = outcome.ttft_s[outcome.pool >= 0]
    assert 0.1 < np.mean(outcome.pool == REFUSED) < 0.95
    assert np.mean(late_s <= max(SLO_S.values())) > 0.95


def test_counts_are_those_of_the_time_between() -> None:
    before = Counts({"a": 3.0}, {("a", "a"): 1.0})
    after = Counts({"a": 5.0, "b": 2.0}, {("a", "a"): 1.5, ("b", "a"): 0.5})
    assert after.since(before) == Counts({"a": 2.0, "b": 2.0}, {("a", "a"): 0.5, ("b", "a"): 0.5})


def test_a_minute_is_kept_when_so_many_of_its_requests_are_in_time() -> None:
    minute, kind = np.repeat([0, 1, 2], 20), np.zeros(60, int)
    within = np.ones(60, bool)
    within[[0, 20, 21]] = False
    found = measure.windows(minute, kind, within, np.ones(60, bool))
    assert found["recall"].tolist() == [True, False, True]
    assert found["solve"].tolist() == []


def tick(now_s: float, shares: list[float]) -> Tick:
    weights = {name: {model.pool: share for model, share in zip(MODELS, shares, strict=True)} for name in CLASSES}
    return Tick(now_s, {}, {}, {}, {}, {}, weights, {}, {}, {}, {}, 0, 0.0)


def test_the_distance_is_from_the_table_in_force_and_leaves_refused_requests_out() -> None:
    arrival_s = np.concatenate([np.linspace(0, 59, 10), np.linspace(60, 119, 10)])
    model = np.array([0] * 5 + [1] * 4 + [-1] + [0] * 10)
    ticks = [tick(-10.0, [0.5, 0.5, 0.0]), tick(60.0, [0.2, 0.3, 0.5])]
    apart, _ = measure.distances(np.zeros(20, int), np.repeat([0, 1], 10), model, arrival_s, ticks)
    assert apart == pytest.approx([5 / 9 - 0.5, 0.8])
