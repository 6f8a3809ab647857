"""From one plan to the next, closed: what is decided comes true, and is seen."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from cluster import Cluster
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from worlds import H100, L40S, manifest, node, plan

from servingplan.api.routing_table import WEIGHT_TOTAL
from servingplan.render import names

LARGE, SMALL = ("large", "tp2"), ("small", "l40s")
KEY = "llm/chat"
LARGE_POOL, SMALL_POOL = (names.pool_name("chat", *key) for key in (LARGE, SMALL))


def condition(cluster, kind, at=0):
    return next(entry for entry in cluster.plans[at].status["conditions"] if entry["type"] == kind)


def limited(h100, l40s, rate=20.0, **spec):
    """The plan with so many units of each kind."""
    body = manifest(requestClasses=[{"name": "chat", "rate": rate}], **spec)
    body["spec"]["accelerators"][0]["limit"] = h100
    body["spec"]["accelerators"][1]["limit"] = l40s
    return body


def units(cluster, resource_nodes):
    """Units that pods hold, those on their way out included."""
    return sum(sum(pod.requests.values()) for pod in cluster.pods if pod.node in resource_nodes)


def test_weights_move_step_by_step_and_only_to_what_is_ready():
    models = manifest()["spec"]["models"]
    models[0]["setups"][0]["maxReplicas"] = 0
    cluster = Cluster([plan(manifest(models=models))])
    cluster.rest()
    cluster.change(manifest())
    shares = []
    for _ in range(40):
        cluster.look(5.0)
        weights = cluster.weights("chat")
        shares.append(weights.get(LARGE_POOL, 0) / WEIGHT_TOTAL)
        ready = {pod.pool for pod in cluster.pods if pod.serves}
        assert set(weights) <= ready
    assert shares[-1] == 1.0
    assert max(b - a for a, b in pairwise(shares)) <= 0.25 + 1e-6
    assert sum(0 < share < 1 for share in shares) >= 3


def test_weights_wait_until_routers_know_where_to_send_them():
    models = manifest()["spec"]["models"]
    models[0]["setups"][0]["maxReplicas"] = 0
    cluster = Cluster([plan(manifest(models=models))], found_in_s=12.0)
    cluster.look(5.0)
    while condition(cluster, "Ready")["status"] != "True":
        cluster.look(5.0)
    assert SMALL_POOL in cluster.known
    cluster.change(manifest())
    while LARGE_POOL not in cluster.weights("chat"):
        assert set(cluster.weights("chat")) == {SMALL_POOL}
        cluster.look(5.0)
    assert LARGE_POOL in cluster.known
    cluster.rest()
    assert cluster.weights("chat") == {LARGE_POOL: WEIGHT_TOTAL}


def test_what_is_no_longer_ready_loses_its_weight_at_once():
    cluster = Cluster([plan(limited(4, 4, rate=60.0))])
    cluster.rest()
    assert set(cluster.weights("chat")) == {LARGE_POOL, SMALL_POOL}
    cluster.pods = [replace(pod, ready=pod.pool != LARGE_POOL) for pod in cluster.pods]
    cluster.starts_in_s = {LARGE_POOL: 1e9}
    cluster.look(1.0)
    assert set(cluster.weights("chat")) == {SMALL_POOL}


def test_a_replica_that_does_not_start_is_given_up_and_tried_again():
    cluster = Cluster([plan(limited(8, 4, rate=4.0))], starts_in_s={LARGE_POOL: 1e9})
    for _ in range(45):
        cluster.look(5.0)
    lost = next(entry for entry in cluster.plans[0].status["allocations"] if entry["setup"] == "tp2")
    assert lost["givenUp"]["attempts"] == 1
    assert condition(cluster, "Ready")["reason"] == "PodsNotStarting"
    assert "large/tp2 is given up" in condition(cluster, "Ready")["message"]
    for _ in range(20):
        cluster.look(5.0)
    assert cluster.decisions[KEY][-1].ready[SMALL] > 0, "others cover"
    assert cluster.weights("chat") == {SMALL_POOL: WEIGHT_TOTAL}
    cluster.starts_in_s = {}
    for _ in range(400):
        cluster.look(5.0)
    end = cluster.decisions[KEY][-1]
    assert end.ready[LARGE] > 0
    assert not any("givenUp" in entry for entry in cluster.plans[0].status["allocations"])
    assert condition(cluster, "Ready")["status"] == "True"


def test_attempts_come_at_longer_and_longer_intervals():
    models = manifest()["spec"]["models"]
    models[1]["setups"][0]["maxReplicas"] = 0
    cluster = Cluster([plan(limited(8, 4, rate=4.0, models=models))], starts_in_s={LARGE_POOL: 1e9})
    given_up_at = []
    for _ in range(800):
        cluster.look(5.0)
        entries = {entry["setup"]: entry for entry in cluster.plans[0].status["allocations"]}
        attempts = entries.get("tp2", {}).get("givenUp", {}).get("attempts", 0)
        if attempts > len(given_up_at):
            given_up_at.append(cluster.now_s)
    gaps = [b - a for a, b in pairwise(given_up_at)]
    assert len(gaps) >= 3
    assert all(later > earlier for earlier, later in pairwise(gaps))


def test_a_lost_node_is_covered_by_others_at_once():
    nodes = (node("n1", H100, 8), node("n2", L40S, 4))
    cluster = Cluster([plan(limited(8, 4, rate=10.0))], changes={"nodes": nodes})
    cluster.rest()
    assert cluster.decisions[KEY][-1].ready[SMALL] == 0
    cluster.changes = {"nodes": (replace(nodes[0], schedulable=False), nodes[1])}
    cluster.look(1.0)
    assert cluster.decisions[KEY][-1].target[SMALL] > 0
    assert cluster.decisions[KEY][-1].cause.value == "ShortOfCapacity"


def test_accelerators_that_come_back_are_used_again_but_not_within_the_dwell():
    nodes = (node("n1", H100, 8), node("n2", L40S, 4))
    cluster = Cluster([plan(limited(8, 4, rate=10.0))], changes={"nodes": nodes})
    cluster.rest()
    cluster.changes = {"nodes": (replace(nodes[0], schedulable=False), nodes[1])}
    for _ in range(20):
        cluster.look(5.0)
    cluster.changes = {"nodes": nodes}
    changed = cluster.decisions[KEY][-1].target
    for _ in range(20):
        cluster.look(5.0)
        assert cluster.decisions[KEY][-1].target[SMALL] == changed[SMALL], "what grew stays for a dwell"
    for _ in range(300):
        cluster.look(5.0)
    assert cluster.decisions[KEY][-1].ready[LARGE] > 0
    assert cluster.decisions[KEY][-1].ready[SMALL] == 0


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(
    st.lists(
        st.tuples(st.sampled_from([2, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from([2, 20, 60])), min_size=2, max_size=3
    ),
    st.sampled_from([5.0, 40.0]),
)
def test_no_move_ever_exceeds_a_limit_or_cuts_a_route(steps, cold_s):
    cluster = Cluster([plan(limited(*steps[0]))], cold_s=cold_s)
    for h100, l40s, rate in steps:
        body = limited(h100, l40s, rate)
        before = limits_of(cluster)
        cluster.change(body)
        allowed = (max(h100, before[0]), max(l40s, before[1]))
        for _ in range(50):
            served = any(pod.serves for pod in cluster.pods)
            cluster.look(5.0)
            assert units(cluster, {"n1"}) <= allowed[0]
            assert units(cluster, {"n2"}) <= allowed[1]
            stays = {pod.pool for pod in cluster.pods if pod.serves}
            assert set(cluster.weights("chat")) <= {pod.pool for pod in cluster.pods if pod.ready}
            assert bool(cluster.weights("chat")) or not served or not stays


def limits_of(cluster):
    """Units that pods hold now: a lower limit takes them back, which takes its time."""
    return units(cluster, {"n1"}), units(cluster, {"n2"})


class TestRecommend:
    """Nothing happens before it is approved, and then exactly that."""

    def cluster(self, **spec):
        return Cluster([plan(manifest(mode="Recommend", **spec))])

    def approve(self, cluster, identity):
        cluster.plans[0] = replace(cluster.plans[0], approval=identity)

    def test_nothing_runs_until_it_is_approved(self):
        cluster = self.cluster()
        for _ in range(5):
            cluster.look(10.0)
        assert cluster.pods == []
        ready = condition(cluster, "Ready")
        proposal = cluster.plans[0].status["proposal"]
        assert ready["reason"] == "AwaitingApproval"
        assert proposal["id"] in ready["message"]
        assert {(entry["model"], entry["before"], entry["after"] > 0) for entry in proposal["setups"]} == {("large", 0, True)}

    def test_exactly_what_was_approved_is_done(self):
        cluster = self.cluster()
        cluster.look(10.0)
        proposal = cluster.plans[0].status["proposal"]
        self.approve(cluster, proposal["id"])
        end = cluster.rest()
        assert {key: count for key, count in end.ready.items() if count} == {
            (entry["model"], entry["setup"]): entry["after"] for entry in proposal["setups"]
        }
        status = cluster.plans[0].status
        assert status["approval"]["id"] == proposal["id"]
        assert "proposal" not in status
        assert condition(cluster, "Ready")["status"] == "True"
        assert f"proposal {proposal['id']} was approved" in status["history"][0]["reason"]

    def test_an_approval_of_another_proposal_is_refused_with_the_reason(self):
        cluster = self.cluster()
        cluster.look(10.0)
        old = cluster.plans[0].status["proposal"]["id"]
        cluster.change(manifest(mode="Recommend", requestClasses=[{"name": "chat", "rate": 70}]))
        cluster.look(10.0)
        assert cluster.plans[0].status["proposal"]["id"] != old
        self.approve(cluster, old)
        cluster.look(10.0)
        assert "is stale" in cluster.plans[0].status["approval"]["refused"]
        assert cluster.pods == []

    def test_a_proposal_keeps_its_name_while_the_world_is_the_same(self):
        cluster = self.cluster()
        found = set()
        for _ in range(10):
            cluster.look(10.0)
            found.add((cluster.plans[0].status["proposal"]["id"], cluster.plans[0].status["proposal"]["time"]))
        assert len(found) == 1

    def test_a_plan_of_another_mode_beside_it_is_carried_out(self):
        cluster = Cluster([plan(manifest(mode="Recommend")), plan(manifest("other"))])
        for _ in range(20):
            cluster.look(10.0)
        assert {pod.plan for pod in cluster.pods} == {"other"}


@pytest.mark.parametrize("seconds", [1.0, 10.0, 60.0])
def test_a_quiet_plan_is_written_once(seconds):
    cluster = Cluster([plan()])
    cluster.rest()
    cluster.look(seconds)
    first = cluster.plans[0].status
    for _ in range(20):
        cluster.look(seconds)
        assert cluster.plans[0].status == first


def test_a_restart_loses_nothing():
    def end(restarted):
        cluster = Cluster([plan(limited(8, 4, rate=4.0))], starts_in_s={LARGE_POOL: 1e9})
        for _ in range(60):
            cluster.look(5.0)
            if restarted:
                # All that a new process has is what the API server has.
                cluster = replace(cluster, decisions={})
        return cluster.plans[0].status

    assert end(restarted=True) == end(restarted=False)
