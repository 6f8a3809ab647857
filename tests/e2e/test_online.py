"""A plan whose routers ask a picker for every request, and go without one again."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from testbed.cluster import wait_until
from testbed.load import LoadClass

CODE = {"x-request-class": "code"}
SMALL = {"prompt_tokens": 24, "output_tokens": 4}
SECRET = "the colour of my cat is magenta"
RECEIPT = "x-servingplan-decision"


def ask(url, said, **headers):
    """Status, headers and body of one plain request."""
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": said}], "max_tokens": 4}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.load(error)


def test_a_picker_decides_says_why_and_leaves_no_trace_when_it_is_no_longer_wanted(apply, gentle_plan, load):
    gentle_plan["spec"]["router"] = {"policy": "Online", "explain": True}
    plan = apply(gentle_plan)
    plan.wait()

    def explained():
        status, headers, _ = ask(plan.url, SECRET, **{"x-servingplan-explain": "true"})
        assert status == 200
        return headers[RECEIPT]

    receipt = wait_until(explained, 60, "a decision of the picker")
    addresses = {pod["status"]["podIP"] for pod in plan.pods()}
    assert any(address in receipt for address in addresses), receipt
    assert RECEIPT not in ask(plan.url, SECRET)[1], "nobody asked for it"

    classes = [LoadClass("code", headers=CODE, **SMALL), LoadClass("chat", **SMALL)]
    records = load(plan.url, classes, 60, count=600, stream=True, seed=1).result()
    assert all(record.answered for record in records), [record for record in records if not record.answered][:3]
    for pod in plan.pods("router"):
        said = plan.cluster.kubectl("logs", "-n", plan.namespace, pod["metadata"]["name"], "-c", "picker").stdout
        assert SECRET not in said
        with urllib.request.urlopen(f"http://{pod['status']['podIP']}:9903/metrics", timeout=5) as page:
            metrics = page.read().decode()
        assert "servingplan_picker_decisions_total" in metrics
        assert SECRET not in metrics

    def known():
        routes = {route["class"]: route for route in plan.body()["status"]["routes"]}
        return {name: (routes[name]["picked"]["shares"], float(routes[name]["distance"])) for name in ("code", "chat")}

    for shares, distance in wait_until(known, 60, "the operator knows what the pickers choose").values():
        assert sum(map(float, shares.values())) == pytest.approx(1.0, abs=0.02)
        assert 0.0 <= distance <= 1.0

    plan.patch(
        [{"op": "remove", "path": "/spec/router/explain"}, {"op": "replace", "path": "/spec/router/policy", "value": "Weights"}]
    )

    def alone():
        pods = [pod for pod in plan.pods("router") if "deletionTimestamp" not in pod["metadata"]]
        assert pods
        assert all([container["name"] for container in pod["spec"]["containers"]] == ["envoy"] for pod in pods)
        selector = f"servingplan.io/plan={plan.name}"
        assert not plan.cluster.get("serviceaccounts,rolebindings", "-n", plan.namespace, "-l", selector)["items"]
        return True

    wait_until(alone, 120, "Envoy alone, and no account")
    plan.wait()
    assert not any("picked" in route or "distance" in route for route in plan.body()["status"]["routes"])
    assert ask(plan.url, SECRET)[0] == 200
