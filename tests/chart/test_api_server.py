"""What an API server says of the examples, the chart and the model servers."""

import argparse
import json
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from servingplan.api.v1alpha1 import ModelServingPlan, Router
from servingplan.latency.profile import EngineProfile
from servingplan.profiling.cli import add_profile
from servingplan.render import names, picker, router, vllm
from testbed.bed import Bed
from testbed.cluster import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "manifests").glob("*.yaml"))


@pytest.fixture(scope="module")
def server(bed: Bed) -> Bed:
    """An API server that knows plans."""
    bed.kubectl("apply", "--server-side", "--filename", str(ROOT / "crds"))
    # `kubectl wait` gives up on a definition that has no conditions yet.
    wait_until(lambda: bed.kubectl("get", "msp", "-A", check=False).returncode == 0, 60, "plans can be listed")
    return bed


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def accepted(server: Bed, objects: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What the server would store of these objects, checked as strictly as it can."""
    file = folder / "objects.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    stored = json.loads(
        server.kubectl(
            "apply", "--server-side", "--dry-run=server", "--validate=strict", "--output=json", "--filename", str(file)
        ).stdout
    )
    return stored["items"] if stored["kind"] == "List" else [stored]


def holds(stored: Any, given: Any) -> bool:
    """Whether nothing of what was given is missing; the server adds defaults."""
    if isinstance(given, dict):
        return isinstance(stored, dict) and all(key in stored and holds(stored[key], given[key]) for key in given)
    if isinstance(given, list):
        return len(stored) == len(given) and all(map(holds, stored, given))
    return bool(stored == given)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_taken_whole(server: Bed, path: Path, tmp_path: Path) -> None:
    given = documents(path)
    for obj in given:
        # A namespace that an example brings along is not there after a dry run.
        obj["metadata"].pop("namespace", None)
    stored = accepted(server, given, tmp_path)
    assert all(map(holds, stored, given))


CHART_VALUES = {
    "cluster-wide": {},
    "one-namespace": {"watchNamespaces": ["default"]},
    # What the Prometheus operator takes is not known to a bare API server.
    "everything-that-is-kubernetes-own": {
        "networkPolicy": {"enabled": True},
        "metrics": {"dashboard": {"enabled": True}},
        "prometheus": {"auth": {"existingSecret": "prometheus-auth", "method": "basic", "ca": True}},
    },
}


@pytest.mark.parametrize("values", CHART_VALUES.values(), ids=CHART_VALUES)
def test_every_object_of_the_chart_is_taken_whole(server: Bed, values: dict[str, Any], tmp_path: Path) -> None:
    with helm.Chart.load(ROOT / "charts/servingplan") as chart:
        files = chart.render(values, name="dry-run", namespace="default")
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    objects = [document for text in texts for document in yaml.safe_load_all(text) if document]
    stored = accepted(server, objects, tmp_path)
    assert all(map(holds, stored, objects))


def test_the_profiling_job_is_taken_whole_and_says_what_the_command_understands(server: Bed, tmp_path: Path) -> None:
    (job,) = documents(ROOT / "manifests/profiling/job.yaml")
    (stored,) = accepted(server, [job], tmp_path)
    assert holds(stored, job)
    parser = argparse.ArgumentParser()
    add_profile(parser.add_subparsers(dest="command"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert parser.parse_args(container["args"]).model == "llama-3.1-8b"


def test_model_servers_run_in_a_namespace_that_enforces_the_restricted_standard(server: Bed, tmp_path: Path) -> None:
    (plan,) = documents(ROOT / "manifests/plan.yaml")
    spec = ModelServingPlan.model_validate(plan).spec
    owner = names.Owner(namespace="restricted-models", name="chat", uid="00000000-0000-0000-0000-000000000001")
    pool = vllm.Pool(owner, spec.models[0], spec.models[0].setups[0], spec.accelerators[0], EngineProfile())
    template = vllm.deployment(pool, 1, vllm.VllmSettings(image="vllm/vllm-openai:v0.32.0"), surge=True)["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
    pod["metadata"] = template["metadata"] | {"name": "model-server", "namespace": owner.namespace}
    server.kubectl("create", "namespace", owner.namespace)
    try:
        server.kubectl("label", "namespace", owner.namespace, "pod-security.kubernetes.io/enforce=restricted")
        (stored,) = accepted(server, [pod], tmp_path)
    finally:
        server.kubectl("delete", "namespace", owner.namespace)
    assert holds(stored["spec"]["containers"], pod["spec"]["containers"])


@pytest.mark.parametrize("policy", ["Online", "Weights"])
def test_everything_of_a_router_is_taken_whole_and_its_pod_meets_the_restricted_standard(
    server: Bed, policy: str, tmp_path: Path
) -> None:
    owner = names.Owner(namespace="default", name="chat", uid="00000000-0000-0000-0000-000000000001")
    where = {"configMapKeyRef": {"name": "scores", "key": "predictor.npz"}}
    spec = Router.model_validate({"policy": policy} | ({"predictor": where} if policy == "Online" else {}))
    objects = router.router(owner, spec, "envoyproxy/envoy:v1.40.0", picker.PickerSettings("servingplan:1", "view"))
    stored = accepted(server, objects, tmp_path)
    assert all(map(holds, stored, objects))
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": {**template["spec"], "serviceAccountName": "default"}}
    pod["metadata"] = template["metadata"] | {"name": "router"}
    namespace = f"restricted-router-{policy.lower()}"
    server.kubectl("create", "namespace", namespace)
    try:
        server.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        pod["metadata"]["namespace"] = namespace
        wait_until(
            lambda: server.kubectl("get", "serviceaccount", "default", "-n", namespace).returncode == 0, 30, "an account"
        )
        (taken,) = accepted(server, [pod], tmp_path)
    finally:
        server.kubectl("delete", "namespace", namespace)
    assert holds(taken["spec"]["containers"], pod["spec"]["containers"])
