"""The picker beside the router: what its pod runs, and what it may read."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from servingplan.api import v1alpha1
from servingplan.render.names import Owner
from servingplan.render.picker import HTTP_PORT, PickerSettings
from servingplan.render.router import router

OWNER = Owner(namespace="llm", name="chat", uid="42")
SETTINGS = PickerSettings(image="servingplan:1", cluster_role="servingplan-system-servingplan-picker")
PREDICTOR = {"configMapKeyRef": {"name": "scores", "key": "predictor.npz"}}


def objects(settings: PickerSettings | None = SETTINGS, **spec: Any) -> dict[str, dict[str, Any]]:
    wanted = v1alpha1.Router.model_validate({"policy": "Online"} | spec)
    return {each["kind"]: each for each in router(OWNER, wanted, "envoy:1", settings)}


def pod(**spec: Any) -> dict[str, Any]:
    return objects(**spec)["Deployment"]["spec"]["template"]["spec"]


def containers(**spec: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    envoy, picker = pod(**spec)["containers"]
    assert (envoy["name"], picker["name"]) == ("envoy", "picker")
    return envoy, picker


def filters(envoy: dict[str, Any]) -> list[str]:
    (listener, _) = yaml.safe_load(envoy["args"][1])["static_resources"]["listeners"]
    return [each["name"] for each in listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]]


@pytest.mark.parametrize(
    "made", [objects(policy="Weights"), objects(None)], ids=["policy Weights", "operator without an image"]
)
def test_without_a_picker_the_pod_is_envoy_alone_and_has_no_account(made: dict[str, dict[str, Any]]) -> None:
    assert made.keys() == {"Deployment", "Service", "PodDisruptionBudget"}
    spec = made["Deployment"]["spec"]["template"]["spec"]
    (envoy,) = spec["containers"]
    assert spec["serviceAccountName"] == "default", "left out, the API server would keep the account that is gone"
    assert [volume["name"] for volume in spec["volumes"]] == ["routing"]
    assert [name.rpartition(".")[2] for name in filters(envoy)] == ["json_to_metadata", "match_delegate", "router"]


def test_the_account_comes_before_the_pods_that_run_under_it() -> None:
    kinds = list(objects())
    assert kinds.index("ServiceAccount") < kinds.index("Deployment") > kinds.index("RoleBinding")
    assert pod()["serviceAccountName"] == objects()["ServiceAccount"]["metadata"]["name"]


def test_the_account_may_do_what_the_one_role_says_in_the_plan_s_own_namespace() -> None:
    binding = objects()["RoleBinding"]
    assert binding["metadata"]["namespace"] == "llm"
    assert binding["metadata"]["ownerReferences"][0]["uid"] == "42"
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("ClusterRole", SETTINGS.cluster_role)
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "chat-router", "namespace": "llm"}]


def test_another_role_is_another_binding_because_a_binding_cannot_change_its_role() -> None:
    other = objects(PickerSettings("servingplan:1", "another"))
    assert other["RoleBinding"]["metadata"]["name"] != objects()["RoleBinding"]["metadata"]["name"]


def test_only_the_picker_holds_a_token_and_only_envoy_the_port_of_clients() -> None:
    envoy, picker = containers()
    assert pod()["automountServiceAccountToken"] is False
    assert objects()["ServiceAccount"]["automountServiceAccountToken"] is False
    (volume,) = [volume for volume in pod()["volumes"] if "projected" in volume]
    mounted = [
        container["name"] for container in (envoy, picker) for m in container["volumeMounts"] if m["name"] == volume["name"]
    ]
    assert mounted == ["picker"]
    assert "http" not in {port["name"] for port in picker["ports"]}


def test_both_meet_at_one_socket() -> None:
    envoy, picker = containers()
    mounts = [[m for m in each["volumeMounts"] if m["name"] == "picker"] for each in (envoy, picker)]
    assert mounts[0] == mounts[1] != []
    (folder,) = {m["mountPath"] for m in mounts[0]}
    (listen,) = [argument for argument in picker["args"] if argument.startswith("--listen=")]
    clusters = yaml.safe_load(envoy["args"][1])["static_resources"]["clusters"]
    (asked,) = [each for each in clusters if each["name"] == "router/picker"]
    (endpoint,) = asked["load_assignment"]["endpoints"][0]["lb_endpoints"]
    path = endpoint["endpoint"]["address"]["pipe"]["path"]
    assert listen == f"--listen=unix:{path}"
    assert path.startswith(f"{folder}/")


def test_the_picker_has_no_privilege_and_no_probe_that_would_take_envoy_with_it() -> None:
    envoy, picker = containers()
    assert picker["securityContext"] == envoy["securityContext"]
    assert pod()["securityContext"]["runAsNonRoot"]
    assert not {"readinessProbe", "livenessProbe", "startupProbe"} & picker.keys()
    assert picker["resources"]["limits"].keys() == {"memory"}
    assert {"name": "OPENBLAS_NUM_THREADS", "value": "1"} in picker["env"]


def test_the_picker_reads_the_table_that_envoy_reads() -> None:
    envoy, picker = containers()
    (volume,) = [volume["name"] for volume in pod()["volumes"] if volume.get("configMap", {}).get("name") == "chat-routing"]
    folders = [m["mountPath"] for m in picker["volumeMounts"] if m["name"] == volume]
    assert [argument for argument in picker["args"] if argument.startswith("--table-file=")] == [
        f"--table-file={folders[0]}/table.json"
    ]
    assert volume in {m["name"] for m in envoy["volumeMounts"]}


def test_the_grace_period_holds_the_longest_answer_and_the_end_of_the_picker() -> None:
    alone = objects(policy="Weights", timeoutSeconds=600)["Deployment"]["spec"]["template"]["spec"]
    assert pod(timeoutSeconds=600)["terminationGracePeriodSeconds"] == alone["terminationGracePeriodSeconds"] + 20
    (_, picker) = containers()
    assert "--drain-seconds=20" in picker["args"]
    script = picker["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "downstream_rq_active" in script
    assert "healthcheck/fail" not in script


def test_a_predictor_is_mounted_under_its_key_and_may_be_missing() -> None:
    (_, picker) = containers(predictor=PREDICTOR)
    (volume,) = [volume for volume in pod(predictor=PREDICTOR)["volumes"] if volume["name"] == "predictor"]
    items = [{"key": "predictor.npz", "path": "predictor.npz"}]
    assert volume["configMap"] == {"name": "scores", "items": items, "optional": True}
    assert [m["mountPath"] for m in picker["volumeMounts"] if m["name"] == "predictor"] == ["/etc/servingplan/predictor"]
    assert "predictor" not in {volume["name"] for volume in pod()["volumes"]}


def test_an_overlay_reaches_the_picker() -> None:
    overlay = {"spec": {"containers": [{"name": "picker", "resources": {"limits": {"memory": "2Gi"}}}]}}
    (_, picker) = containers(template=overlay)
    assert picker["resources"]["limits"] == {"memory": "2Gi"}
    assert picker["resources"]["requests"] == containers()[1]["resources"]["requests"]


@pytest.fixture
def kept(tmp_path: Path):
    """Runs a command under the loop that keeps a picker running; the command writes its pid to ``pids``."""
    started = []

    def run(what: str) -> tuple[subprocess.Popen[bytes], Path]:
        (_, picker) = containers()
        pids = tmp_path / "pids"
        pids.touch()
        command = [*picker["command"], "bash", "-c", f"echo $$ >> {pids}; {what}"]
        assert str(HTTP_PORT) in command[2]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return started[-1], pids

    yield run
    for process in started:
        process.kill()
        process.wait(10)


def first(condition: Any, deadline_s: float = 20) -> Any:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    return pytest.fail("not within the deadline")


def test_a_picker_that_ends_is_started_again_and_its_container_goes_on(kept: Any) -> None:
    process, pids = kept("exec sleep 60")
    (one,) = first(lambda: pids.read_text().split())
    subprocess.run(["kill", "-KILL", one], check=True)
    first(lambda: len(pids.read_text().split()) == 2)
    assert process.poll() is None
    subprocess.run(["kill", "-KILL", pids.read_text().split()[1]], check=True)


def test_a_picker_that_is_told_to_end_gets_the_time_it_needs(kept: Any, tmp_path: Path) -> None:
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    wait = "while :; do sleep 0.05; done"
    process, pids = kept(f"trap 'sleep 0.3; touch {ended}; exit' TERM; touch {ready}; {wait}")
    first(ready.exists)
    process.terminate()
    assert process.wait(20) == 0
    assert ended.exists()
    assert len(pids.read_text().split()) == 1
