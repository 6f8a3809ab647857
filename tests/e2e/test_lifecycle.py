"""What a plan leaves behind, and what the operator's comings and goings change: nothing."""

from __future__ import annotations

import json
import urllib.request

from testbed.cluster import wait_until

SYSTEM = "servingplan-system"
CONTROLLER = "deployment/servingplan-controller"
CLUSTER_ROLE = "servingplan-system-servingplan-controller"


def versions(plan):
    """Resource versions of the plan and of everything it owns."""
    objects = [plan.body(), *plan.children()]
    return {(o["kind"], o["metadata"]["name"]): o["metadata"]["resourceVersion"] for o in objects}


def settled(plan):
    """The versions, once they have stood still for a moment."""
    last = {}

    def still():
        nonlocal last
        previous, last = last, versions(plan)
        return last == previous

    wait_until(still, 30, "nothing is written any more")
    return last


def untouched(body):
    """Whether the plan carries nothing that it was not given."""
    metadata = body["metadata"]
    ours = [key for key in metadata.get("annotations", {}) if not key.startswith("kubectl.kubernetes.io/")]
    return "finalizers" not in metadata and ours == []


def is_gone(plan):
    return wait_until(lambda: not plan.children(), 60, "all children gone") is True


def test_a_deleted_plan_takes_every_child_with_it_and_was_never_written_to(apply, gentle_plan):
    plan = apply(gentle_plan)
    plan.wait()
    events = [event["reason"] for event in plan.cluster.get("events", "-n", plan.namespace)["items"]]
    assert (events.count("Planned"), events.count("Serving")) == (1, 1), "news is told once"
    kinds = {child["kind"] for child in plan.children()}
    assert kinds == {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "ReplicaSet", "Pod"}
    body = plan.body()
    assert untouched(body)
    # The API server adds its defaults, the operator nothing.
    assert body["spec"]["slo"] == gentle_plan["spec"]["slo"] | {"scope": "Route"}
    plan.cluster.kubectl("delete", "msp", plan.name, "-n", plan.namespace, "--timeout=10s")
    assert is_gone(plan)


def test_a_restarted_operator_writes_nothing(apply, gentle_plan):
    plan = apply(gentle_plan)
    plan.wait()
    plan.wait("MetricsAvailable")
    before, told = settled(plan), plan.body()["status"]
    plan.cluster.kubectl("rollout", "restart", CONTROLLER, "-n", SYSTEM)
    plan.cluster.kubectl("rollout", "status", CONTROLLER, "-n", SYSTEM, "--timeout=60s")
    # Ready means that one pass over the world was completed, and so everything would have been written by now.
    assert plan.body()["status"] == told
    assert versions(plan) == before


def test_a_plan_serves_and_can_be_deleted_while_the_operator_is_away(apply, gentle_plan, request):
    plan = apply(gentle_plan)
    plan.wait()
    request.getfixturevalue("without_operator")
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}).encode()
    call = urllib.request.Request(f"{plan.url}/v1/chat/completions", data=body, headers={"content-type": "application/json"})
    with urllib.request.urlopen(call, timeout=10) as answer:
        assert answer.status == 200
    plan.cluster.kubectl("delete", "msp", plan.name, "-n", plan.namespace, "--timeout=10s")
    assert is_gone(plan)


def test_a_routing_table_spoilt_by_hand_is_refused_by_envoy_and_mended_by_the_operator(apply, gentle_plan, request):
    plan = apply(gentle_plan)
    plan.wait()
    good = plan.tables()
    cluster = request.getfixturevalue("without_operator")
    name = f"{plan.name}-routing"
    spoilt = {"data": {"rds.yaml": "resources: [{nonsense"}}
    cluster.kubectl("patch", "configmap", name, "-n", plan.namespace, "--type=merge", "-p", json.dumps(spoilt))
    for pod in plan.pods("router"):
        cluster.kubectl("annotate", "pod", pod["metadata"]["name"], "-n", plan.namespace, "spoilt=yes")

    def refused():
        for pod in plan.pods("router"):
            with urllib.request.urlopen(f"http://{pod['status']['podIP']}:9902/stats/prometheus", timeout=5) as page:
                lines = page.read().decode().splitlines()
            counts = [float(line.split()[-1]) for line in lines if "rds_update_failure" in line and not line.startswith("#")]
            assert sum(counts) > 0, pod["metadata"]["name"]
        return True

    wait_until(refused, 20, "refusal in the metrics of every router")
    assert plan.tables() == good
    cluster.kubectl("scale", CONTROLLER, "-n", SYSTEM, "--replicas=1")
    wait_until(lambda: "nonsense" not in plan.cluster.get("cm", name, "-n", plan.namespace)["data"]["rds.yaml"], 60, "mended")
    plan.wait("RoutingSynced")
    assert plan.tables() == good

    def told():
        events = plan.cluster.get("events", "-n", plan.namespace)["items"]
        return [e for e in events if e["reason"] == "DriftCorrected" and name in e["message"]]

    wait_until(told, 10, "an event that says so")


def test_a_child_changed_or_deleted_by_hand_comes_back(apply, gentle_plan):
    plan = apply(gentle_plan)
    plan.wait()
    deployment = plan.body()["status"]["allocations"][0]["deployment"]
    wanted = plan.cluster.get("deployment", deployment, "-n", plan.namespace)["spec"]["replicas"]
    plan.cluster.kubectl("scale", f"deployment/{deployment}", "-n", plan.namespace, f"--replicas={wanted + 1}")
    wait_until(
        lambda: plan.cluster.get("deployment", deployment, "-n", plan.namespace)["spec"]["replicas"] == wanted,
        10,
        "replicas set back",
    )
    plan.cluster.kubectl("delete", f"deployment/{plan.name}-router", "-n", plan.namespace)
    plan.wait()


def test_a_single_router_has_no_disruption_budget(apply, gentle_plan):
    plan = apply(gentle_plan)
    plan.wait()
    plan.patch([{"op": "add", "path": "/spec/router", "value": {"replicas": 1}}])
    wait_until(lambda: "PodDisruptionBudget" not in {child["kind"] for child in plan.children()}, 20, "budget gone")
    plan.wait()


def test_a_paused_plan_holds_what_runs(apply, gentle_plan):
    plan = apply(gentle_plan)
    plan.wait()
    before = plan.body()["status"]["allocations"]
    plan.patch(
        [
            {"op": "add", "path": "/spec/mode", "value": "Paused"},
            {"op": "replace", "path": "/spec/models/0/quality/default", "value": "0.1"},
        ]
    )
    plan.wait(reason="Paused", status="Unknown")
    assert plan.body()["status"]["allocations"] == before
    plan.patch([{"op": "replace", "path": "/spec/mode", "value": "Auto"}])
    plan.wait()


def test_an_uninstalled_operator_leaves_plans_serving(apply, gentle_plan, operator, install):
    plan = apply(gentle_plan)
    plan.wait()
    before = {child["metadata"]["uid"] for child in plan.children()}
    operator.helm.uninstall("servingplan", SYSTEM)
    try:
        wait_until(lambda: not operator.get("pods", "-n", SYSTEM)["items"], 60, "operator gone")
        assert {child["metadata"]["uid"] for child in plan.children()} == before
        assert plan.tables()
        assert plan.body()["spec"]
    finally:
        install(operator)
    plan.wait()
    assert {child["metadata"]["uid"] for child in plan.children()} == before


def test_an_operator_of_one_namespace_serves_it_with_rights_in_it_alone(
    apply, gentle_plan, operator, namespace, install, values
):
    install(operator, upgrade=values | {"watchNamespaces": [namespace]})
    try:
        roles = [role["metadata"]["name"] for role in operator.get("roles", "-n", namespace)["items"]]
        assert roles == [CLUSTER_ROLE]
        (cluster_wide,) = [role for role in operator.get("clusterroles")["items"] if role["metadata"]["name"] == CLUSTER_ROLE]
        assert {resource for rule in cluster_wide["rules"] for resource in rule["resources"]} == {"nodes"}
        plan = apply(gentle_plan)
        plan.wait()
        assert plan.tables()
    finally:
        install(operator, upgrade=values)
