"""The chart as Helm renders it."""

import argparse
import json
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from servingplan.api.v1alpha1 import ModelServingPlan
from servingplan.controller.settings import Settings, add_arguments, from_arguments
from servingplan.latency.profile import EngineProfile
from servingplan.render import names, picker, router, vllm

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/servingplan"
CRD = "servingplan.io_modelservingplans.yaml"

MODES = {"cluster-wide": {}, "two-namespaces": {"watchNamespaces": ["team-a", "team-b"]}}
EXTRAS = ("serviceMonitor", "podMonitor", "rules", "dashboard")
EVERYTHING = {
    "image": {"repository": "registry.example/servingplan", "tag": "1.2.3", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "watchNamespaces": ["llm"],
    "extraArgs": ["--some-flag=a b"],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "serviceAccount": {"name": "decider", "annotations": {"a": "b"}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "platform"},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "networkPolicy": {"enabled": True},
    "metrics": {name: {"enabled": True, "labels": {"release": "monitoring"}} for name in EXTRAS},
}


def render(values: dict[str, Any], name: str = "servingplan") -> list[dict[str, Any]]:
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values, name=name, namespace="servingplan-system")
    manifests = (text for path, text in sorted(files.items()) if path.endswith(".yaml"))
    return [document for text in manifests for document in yaml.safe_load_all(text) if document]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [obj for obj in objects if obj["kind"] == kind]


def operator_pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = of_kind(objects, "Deployment")
    return deployment["spec"]["template"]["spec"]


def operator_roles(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The roles for plans that are bound to the operator, as opposed to those that are there for users."""
    return [role for role in bound_roles(objects) if role not in lease_roles(objects)]


def lease_roles(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The roles by which operators elect a leader."""
    return [role for role in bound_roles(objects) if any("leases" in rule["resources"] for rule in role["rules"])]


def bound_roles(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bound = {
        (b["roleRef"]["kind"], b["metadata"].get("namespace"), b["roleRef"]["name"])
        for b in objects
        if b["kind"].endswith("Binding")
    }
    return [r for r in objects if (r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"]) in bound]


def grants(role: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


def test_lint_finds_nothing() -> None:
    report = helm.lint(CHART, strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("values", [*MODES.values(), EVERYTHING], ids=[*MODES, "everything-set"])
def test_every_object_has_a_name_of_its_own_and_the_release_s_labels(values: dict[str, Any]) -> None:
    objects = render(values)
    keys = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(keys) == len(set(keys))
    assert {o["metadata"]["labels"]["app.kubernetes.io/instance"] for o in objects} == {"servingplan"}


def test_everything_that_can_be_set_arrives_in_the_pod() -> None:
    objects = render(EVERYTHING)
    pod = operator_pod(objects)
    (container,) = pod["containers"]
    assert container["image"] == "registry.example/servingplan:1.2.3"
    assert container["args"][-2:] == ["--namespace=llm", "--some-flag=a b"]
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in container["env"]
    assert pod["serviceAccountName"] == "decider"
    for key in ("imagePullSecrets", "priorityClassName", "nodeSelector", "tolerations", "affinity"):
        assert pod[key] == EVERYTHING[key]


def test_the_image_is_of_the_chart_s_own_version() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert operator_pod(render({}))["containers"][0]["image"] == f"servingplan:{version}"


def test_two_operators_stand_apart_and_one_leads() -> None:
    objects = render({})
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    (spread,) = operator_pod(objects)["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert spread["labelSelector"]["matchLabels"] == selector
    (budget,) = of_kind(objects, "PodDisruptionBudget")
    assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": selector}}
    assert not of_kind(render({"replicas": 1}), "PodDisruptionBudget"), "one alone could never be evicted"


def test_the_lease_that_the_operator_is_told_of_is_the_one_it_may_write() -> None:
    objects = render(MODES["two-namespaces"], name="gpu-planner")
    (role,) = lease_roles(objects)
    settings = operator_settings(objects)
    assert settings.lease is not None
    assert (role["kind"], role["metadata"]["namespace"]) == ("Role", "servingplan-system")
    assert [(rule["verbs"], rule.get("resourceNames")) for rule in role["rules"]] == [
        (["get", "update"], [settings.lease.name]),
        (["create"], None),
    ]


def operator_settings(objects: list[dict[str, Any]]) -> Settings:
    """What the operator makes of its arguments."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    (container,) = operator_pod(objects)["containers"]
    command, *arguments = container["args"]
    assert command == "controller"
    return from_arguments(parser.parse_args([*arguments, "--leader-elect-namespace=servingplan-system"]))


def test_the_operator_understands_its_arguments() -> None:
    values = {
        "prometheus": {"url": "https://prometheus/", "timeoutSeconds": 2.5, "scrapeIntervalSeconds": 30},
        "tickSeconds": 0.5,
        "cycleSeconds": 20,
        "dwellSeconds": 86400,
        "watchNamespaces": ["a", "b"],
    }
    found = operator_settings(render(values))
    assert (found.prometheus.url, found.prometheus.timeout_s, found.prometheus.scrape_interval_s) == (
        "https://prometheus",
        2.5,
        30,
    )
    assert (found.tick_s, found.cycle_s, found.dwell_s, found.namespaces) == (0.5, 20, 86400, ("a", "b"))


@pytest.mark.parametrize(
    ("auth", "keys"),
    [
        ({"method": "basic"}, ["username", "password"]),
        ({"method": "bearer", "ca": True}, ["token", "ca.crt"]),
        ({"ca": True}, ["ca.crt"]),
        ({}, []),
    ],
)
def test_what_prometheus_asks_for_is_mounted_and_nothing_else(auth: dict[str, Any], keys: list[str]) -> None:
    pod = operator_pod(render({"prometheus": {"auth": {"existingSecret": "prometheus-auth"} | auth}}))
    (container,) = pod["containers"]
    mounted = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    if not keys:
        assert mounted == []
        return
    (secret,) = mounted
    assert secret == {
        "secretName": "prometheus-auth",
        "defaultMode": 0o440,
        "items": [{"key": key, "path": key} for key in keys],
    }
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "prometheus"]
    assert mount["readOnly"]
    flags = dict(argument.split("=", 1) for argument in container["args"] if argument.endswith(tuple(keys)))
    assert flags == {f"--prometheus-{key.removesuffix('.crt')}-file": f"{mount['mountPath']}/{key}" for key in keys}
    assert "prometheus-auth" not in json.dumps(container["env"])


def test_model_servers_and_routers_are_monitored_where_they_say_they_can_be() -> None:
    owner = names.Owner("llm", "chat", "uid")
    monitors = {
        m["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]: m
        for m in of_kind(render(EVERYTHING), "PodMonitor")
    }
    (plan,) = [d for d in yaml.safe_load_all((ROOT / "manifests/plan.yaml").read_text()) if d["kind"] == "ModelServingPlan"]
    spec = ModelServingPlan.model_validate(plan).spec
    pool = vllm.Pool(owner, spec.models[0], spec.models[0].setups[0], spec.accelerators[0], EngineProfile())
    server = vllm.deployment(pool, 1, vllm.VllmSettings(image="vllm:1"), surge=True)
    beside = picker.PickerSettings("servingplan:1", "picker")
    online = spec.router.model_copy(update={"policy": "Online"})
    envoy = next(o for o in router.router(owner, online, "envoy:1", beside) if o["kind"] == "Deployment")
    for component, deployment in (("model-server", server), ("router", envoy)):
        monitor, template = monitors[component]["spec"], deployment["spec"]["template"]
        labels = template["metadata"]["labels"]
        assert monitor["selector"]["matchLabels"].items() <= labels.items()
        assert monitor["namespaceSelector"] == {"matchNames": ["llm"]}
        endpoint, *further = monitor["podMetricsEndpoints"]
        ports = {p["name"]: str(p["containerPort"]) for c in template["spec"]["containers"] for p in c["ports"]}
        assert {each["port"] for each in further} <= ports.keys()
        annotations = template["metadata"]["annotations"]
        assert ports[endpoint["port"]] == annotations["prometheus.io/port"]
        assert endpoint["path"] == annotations["prometheus.io/path"]


def test_what_is_for_the_prometheus_operator_is_made_only_when_asked_for() -> None:
    kinds = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    assert not kinds & {o["kind"] for o in render({})}
    made = [o for o in render(EVERYTHING) if o["kind"] in kinds or o["metadata"]["name"].endswith("-dashboard")]
    assert {o["kind"] for o in made} == kinds | {"ConfigMap"}
    assert {o["metadata"]["labels"]["release"] for o in made} == {"monitoring"}
    (service,) = of_kind(render(EVERYTHING), "Service")
    (monitor,) = of_kind(render(EVERYTHING), "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [e["port"] for e in monitor["spec"]["endpoints"]] == [p["name"] for p in service["spec"]["ports"]]


def test_the_operator_s_pods_say_where_they_are_scraped_unless_told_not_to() -> None:
    def annotations(values: dict[str, Any]) -> dict[str, str]:
        (deployment,) = of_kind(render(values), "Deployment")
        return deployment["spec"]["template"]["metadata"].get("annotations", {})

    (container,) = operator_pod(render({}))["containers"]
    assert annotations({})["prometheus.io/port"] == str(container["ports"][0]["containerPort"])
    assert annotations({"podAnnotations": {"prometheus.io/scrape": "false"}})["prometheus.io/scrape"] == "false"
    assert annotations({"metrics": {"annotations": False}}) == {}


@pytest.mark.parametrize("values", [*MODES.values(), EVERYTHING], ids=[*MODES, "everything-set"])
def test_the_operator_s_pod_satisfies_the_restricted_pod_security_standard(values: dict[str, Any]) -> None:
    pod = operator_pod(render(values))
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all({"emptyDir", "secret"} & volume.keys() for volume in pod["volumes"])
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert not any("hostPort" in port for port in container["ports"])


@pytest.mark.parametrize("values", MODES.values(), ids=MODES)
def test_the_pickers_run_the_operator_s_image_under_the_one_role_that_it_may_bind(values: dict[str, Any]) -> None:
    objects = render(values)
    found = operator_settings(objects)
    assert found.picker_image == operator_pod(objects)["containers"][0]["image"]
    (role,) = [role for role in of_kind(objects, "ClusterRole") if role["metadata"]["name"] == found.picker_role]
    assert grants(role) == {("discovery.k8s.io", "endpointslices", verb) for verb in ("list", "watch")}
    bindable = [rule for role in operator_roles(objects) for rule in role["rules"] if "bind" in rule["verbs"]]
    assert bindable
    for rule in bindable:
        assert (rule["resources"], rule["verbs"], rule["resourceNames"]) == (["clusterroles"], ["bind"], [found.picker_role])
    written = {(r, v) for role in operator_roles(objects) for _, r, v in grants(role) if r in {"roles", "clusterroles"}}
    assert written == {("clusterroles", "bind")}, "an operator that writes roles could give more than it has"


@pytest.mark.parametrize("values", MODES.values(), ids=MODES)
def test_no_role_holds_a_wildcard_or_a_secret(values: dict[str, Any]) -> None:
    roles = [*of_kind(render(values), "ClusterRole"), *of_kind(render(values), "Role")]
    for group, resource, verb in set().union(*map(grants, roles)):
        assert "*" not in group + resource + verb
        assert resource != "secrets"


def test_the_operator_may_write_a_plan_s_status_and_nothing_else_of_it() -> None:
    (role,) = operator_roles(render({}))
    plans = {(resource, verb) for group, resource, verb in grants(role) if group == "servingplan.io"}
    assert plans == {
        ("modelservingplans", "list"),
        ("modelservingplans", "watch"),
        ("modelservingplans/status", "patch"),
        ("modelservingplans/finalizers", "update"),
    }


def test_with_namespaces_given_only_nodes_are_read_beyond_them() -> None:
    objects = render(MODES["two-namespaces"])
    (cluster_role,) = [role for role in operator_roles(objects) if role["kind"] == "ClusterRole"]
    assert grants(cluster_role) == {("", "nodes", "list"), ("", "nodes", "watch")}
    assert {role["metadata"]["namespace"] for role in operator_roles(objects) if role["kind"] == "Role"} == {
        "team-a",
        "team-b",
    }


def test_both_modes_grant_the_same_within_a_namespace() -> None:
    (everywhere,) = operator_roles(render({}))
    scoped = operator_roles(render(MODES["two-namespaces"]))
    assert len(scoped) == 3
    assert set().union(*map(grants, scoped)) == grants(everywhere)


@pytest.mark.parametrize("values", [*MODES.values(), EVERYTHING], ids=[*MODES, "everything-set"])
def test_every_binding_speaks_of_the_pod_s_own_service_account(values: dict[str, Any]) -> None:
    objects = render(values)
    account = {"kind": "ServiceAccount", "name": operator_pod(objects)["serviceAccountName"], "namespace": "servingplan-system"}
    bindings = [o for o in objects if o["kind"].endswith("Binding")]
    assert all(binding["subjects"] == [account] for binding in bindings)
    assert [o["metadata"]["name"] for o in of_kind(objects, "ServiceAccount")] == [account["name"]]


def test_roles_and_the_account_can_be_left_to_somebody_else() -> None:
    objects = render({"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "mine"}})
    assert {o["kind"] for o in objects} == {"Deployment", "Service", "PodDisruptionBudget"}
    assert operator_pod(objects)["serviceAccountName"] == "mine"


@pytest.mark.parametrize("name", ["a", "gpu-planner", "r" * 53])
def test_names_stay_valid_for_any_release_name(name: str) -> None:
    for obj in render(MODES["two-namespaces"], name=name):
        assert len(obj["metadata"]["name"]) <= (63 if obj["kind"] in {"Deployment", "Service", "ServiceAccount"} else 253)


WRONG_VALUES = [
    ({"imge": {}}, "'imge' not allowed"),
    ({"image": {"tag": 1}}, "'/image/tag': got number, want string"),
    ({"image": {"pullPolicy": "sometimes"}}, "'/image/pullPolicy': value must be one of 'Always'"),
    ({"vllm": {"image": "vllm/vllm-openai"}}, "'/vllm/image': 'vllm/vllm-openai' does not match"),
    ({"router": {"image": "envoy", "replicas": 2}}, "'/router': additional properties 'replicas' not allowed"),
    ({"prometheus": {"url": "prometheus:9090"}}, "'/prometheus/url': 'prometheus:9090' does not match"),
    ({"watchNamespaces": "llm"}, "'/watchNamespaces': got string, want array"),
    ({"watchNamespaces": ["My_Team"]}, "'/watchNamespaces/0': 'My_Team' does not match"),
    ({"watchNamespaces": ["a", "a"]}, "'/watchNamespaces': items at 0 and 1 are equal"),
    ({"tickSeconds": "30"}, "'/tickSeconds': got string, want number"),
    ({"tickSeconds": 0}, "'/tickSeconds': minimum: got 0, want 0.1"),
    ({"replicas": -1}, "'/replicas': minimum: got -1, want 0"),
    ({"prometheus": {"auth": {"method": "basic"}}}, "'/prometheus/auth/method': value must be 'none'"),
    ({"prometheus": {"auth": {"ca": True}}}, "'/prometheus/auth/ca': value must be false"),
    ({"metrics": {"rules": True}}, "'/metrics/rules': got boolean, want object"),
    ({"logLevel": "loud"}, "'/logLevel': value must be one of 'debug'"),
    ({"serviceAccount": {"create": "yes"}}, "'/serviceAccount/create': got string, want boolean"),
    ({"nodeSelector": {"gpu": True}}, "'/nodeSelector/gpu': got boolean, want string"),
    ({"extraArgs": "--a"}, "'/extraArgs': got string, want array"),
]


@pytest.mark.parametrize(("values", "sentence"), WRONG_VALUES, ids=[str(values) for values, _ in WRONG_VALUES])
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(helm.HelmValuesError, match=r"servingplan:\n- at ") as refusal:
        render(values)
    assert sentence in str(refusal.value)


def test_every_value_is_known_to_the_schema_and_described() -> None:
    with helm.Chart.load(CHART) as chart:
        values, schema = chart.values, chart.schema
    assert schema is not None
    assert values.keys() == schema["properties"].keys() - {"global"}
    for name, prop in schema["properties"].items():
        leaves = prop["properties"].values() if prop.get("additionalProperties") is False else [prop]
        assert all(leaf.get("description") for leaf in leaves), name


def test_the_chart_carries_the_definition_that_the_models_give() -> None:
    assert (CHART / "crds" / CRD).read_text() == (ROOT / "crds" / CRD).read_text(), "run hack/generate"


def test_the_notes_name_what_stays_behind() -> None:
    with helm.Chart.load(CHART) as chart:
        notes = chart.render({}, name="servingplan", namespace="servingplan-system")["servingplan/templates/NOTES.txt"]
    assert "kubectl delete modelservingplans --all" in notes
    assert "kubectl delete customresourcedefinition modelservingplans.servingplan.io" in notes
