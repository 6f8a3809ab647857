"""Plans that compete for accelerators, and accelerators that run out."""

from __future__ import annotations

import copy
import threading
from collections import Counter

import pytest

from testbed.cluster import wait_until


def units_in_use(cluster):
    """Requested GPUs by node, of pods that have not ended."""
    used = Counter()
    for pod in cluster.get("pods", "-A")["items"]:
        if pod["status"]["phase"] not in {"Succeeded", "Failed"} and pod["spec"].get("nodeName"):
            for container in pod["spec"]["containers"]:
                used[pod["spec"]["nodeName"]] += int(
                    container.get("resources", {}).get("requests", {}).get("nvidia.com/gpu", 0)
                )
    return used


def allocatable(cluster):
    """GPUs by node."""
    nodes = cluster.get("nodes")["items"]
    return {n["metadata"]["name"]: int(n["status"]["allocatable"].get("nvidia.com/gpu", 0)) for n in nodes}


@pytest.fixture
def watched_units(operator):
    """Samples of the units in use and wanted, taken all through the test; the most of each."""
    most = {"used": Counter(), "asked": 0}
    done = threading.Event()

    def sample():
        while not done.wait(0.5):
            most["used"] |= units_in_use(operator)
            deployments = operator.get("deployments", "-A", "-l", "servingplan.io/setup")["items"]
            asked = 0
            for deployment in deployments:
                requests = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
                asked += deployment["spec"]["replicas"] * int(requests["nvidia.com/gpu"])
            most["asked"] = max(most["asked"], asked)

    thread = threading.Thread(target=sample)
    thread.start()
    yield most
    done.set()
    thread.join()


def test_two_plans_in_two_namespaces_share_the_gpus_without_exceeding_them(apply, gentle_plan, operator, watched_units):
    spec = gentle_plan["spec"]
    spec["accelerators"] = [spec["accelerators"][1] | {"limit": 8}]
    for model in spec["models"]:
        model["setups"] = [setup for setup in model["setups"] if setup["accelerator"] == "l40s"]
    spec["models"] = [model for model in spec["models"] if model["setups"]]
    for entry in spec["requestClasses"]:
        entry["rate"] = 12
    one = apply(gentle_plan)
    wait_until(lambda: one.condition("Feasible"), 30, "first plan decided")
    operator.kubectl("create", "namespace", "e2e-other")
    other_body = copy.deepcopy(gentle_plan)
    other_body["metadata"]["name"] = "other"
    other = apply(other_body, "e2e-other")
    try:
        for plan in (one, other):
            wait_until(lambda plan=plan: plan.body()["status"]["allocations"], 30, "allocations")

        def settled():
            for plan in (one, other):
                for allocation in plan.body()["status"]["allocations"]:
                    assert allocation["ready"] == allocation["replicas"], allocation
            return True

        wait_until(settled, 90, "both plans have what they want")
        room = allocatable(operator)
        units = sum(a["units"] for plan in (one, other) for a in plan.body()["status"]["allocations"])
        assert 0 < units <= sum(room.values())
        assert min(sum(a["units"] for a in plan.body()["status"]["allocations"]) for plan in (one, other)) > 0
        assert all(watched_units["used"][node] <= room[node] for node in room)
        assert watched_units["asked"] <= sum(room.values())
    finally:
        # A namespace that goes with its pods is looked at again only minutes later, for the sake of their grace periods.
        operator.kubectl("delete", "msp", "--all", "-n", "e2e-other")
        wait_until(lambda: not other.pods(), 60, "pods of the other plan gone")
        operator.kubectl("delete", "namespace", "e2e-other", "--wait=false")


def test_a_pod_that_finds_no_gpu_is_named_and_the_rest_serves(apply, gentle_plan, operator):
    spec = gentle_plan["spec"]
    spec["accelerators"] = [spec["accelerators"][1] | {"limit": 8}]
    spec["requestClasses"] = [{"name": "chat", "rate": 1}]
    small = next(model for model in spec["models"] if model["name"] == "llama-3.1-8b")
    small["setups"] = [setup | {"minReplicas": 2} for setup in small["setups"] if setup["accelerator"] == "l40s"]
    small["quality"] = {"default": 0.5}
    large = copy.deepcopy(small) | {"name": "large"}
    large["setups"][0] |= {"name": "l40s-tp4", "count": 4, "minReplicas": 0}
    spec["models"] = [small, large]
    plan = apply(gentle_plan)
    plan.wait()
    nodes = {pod["spec"]["nodeName"] for pod in plan.pods()}
    assert len(nodes) == 2, "the scheduler spreads the small replicas, so that no node has four units left"
    plan.patch([{"op": "replace", "path": "/spec/models/1/setups/0/minReplicas", "value": 1}])
    ready = plan.wait(reason="PodsNotStarting", status="False")
    pending = next(pod for pod in plan.pods() if not pod["spec"].get("nodeName"))
    assert pending["metadata"]["name"] in ready["message"]
    assert "Insufficient nvidia.com/gpu" in ready["message"]
    assert plan.shares()["chat"] == {"llama-3.1-8b": 1.0}


def test_more_load_than_the_gpus_carry_is_said_with_the_gpus_short(apply, gentle_plan):
    for entry in gentle_plan["spec"]["requestClasses"]:
        entry["rate"] = 900
    plan = apply(gentle_plan)
    found = plan.wait("Feasible", "Infeasible", "False")
    assert "GPUs short" in found["message"]
    assert plan.condition("Ready")["status"] == "False"
    assert any(float(route["shed"]) > 0 for route in plan.body()["status"]["routes"])
