"""The router's Deployment, Service and PodDisruptionBudget."""

from __future__ import annotations

from typing import Any

import yaml

from servingplan.api import v1alpha1
from servingplan.render.names import Owner
from servingplan.render.router import router

OWNER = Owner(namespace="llm", name="chat", uid="42")


def objects(**spec: Any) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in router(OWNER, v1alpha1.Router.model_validate(spec), "envoyproxy/envoy:v1")}


def pod(**spec: Any) -> dict[str, Any]:
    return objects(**spec)["Deployment"]["spec"]["template"]


def test_every_object_is_named_labelled_and_owned():
    made = objects()
    assert made.keys() == {"Deployment", "Service", "PodDisruptionBudget"}
    for each in made.values():
        assert each["metadata"]["name"] == "chat-router"
        assert each["metadata"]["namespace"] == "llm"
        assert each["metadata"]["ownerReferences"][0]["uid"] == "42"


def test_one_replica_has_no_disruption_budget_because_it_would_block_every_drain():
    assert "PodDisruptionBudget" not in objects(replicas=1)


def test_the_selectors_select_the_pods():
    made = objects()
    labels = pod()["metadata"]["labels"]
    for selector in (
        made["Deployment"]["spec"]["selector"]["matchLabels"],
        made["Service"]["spec"]["selector"],
        made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_an_overlay_reaches_the_pod_but_never_its_selector():
    overlay = {
        "metadata": {"labels": {"servingplan.io/plan": "other", "team": "a"}},
        "spec": {"containers": [{"name": "envoy", "image": "mirror/envoy:v1"}], "priorityClassName": "high"},
    }
    merged = pod(template=overlay)
    assert merged["metadata"]["labels"]["servingplan.io/plan"] == "chat"
    assert merged["metadata"]["labels"]["team"] == "a"
    assert merged["spec"]["priorityClassName"] == "high"
    assert merged["spec"]["containers"][0] == pod()["spec"]["containers"][0] | {"image": "mirror/envoy:v1"}


def test_the_longest_answer_fits_in_the_grace_period():
    assert pod(timeoutSeconds=600)["spec"]["terminationGracePeriodSeconds"] == 630


def test_the_bootstrap_stands_in_the_arguments_and_reads_where_the_table_is_mounted():
    (container,) = pod()["spec"]["containers"]
    bootstrap = yaml.safe_load(container["args"][1])
    source = bootstrap["dynamic_resources"]["cds_config"]["path_config_source"]
    (mount,) = container["volumeMounts"]
    assert source == {"path": "/etc/envoy/xds/cds.yaml", "watched_directory": {"path": mount["mountPath"]}}
    assert pod()["spec"]["volumes"] == [{"name": "routing", "configMap": {"name": "chat-routing"}}]


def test_the_pod_runs_without_privileges():
    spec = pod()["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_service_is_as_the_plan_asks():
    spec = {"service": {"type": "LoadBalancer", "port": 8000, "annotations": {"a": "b"}}}
    service = objects(**spec)["Service"]
    assert service["metadata"]["annotations"] == {"a": "b"}
    assert service["spec"]["type"] == "LoadBalancer"
    assert [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [(8000, "http")]
