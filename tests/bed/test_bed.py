"""The node agent and the services around it behave as a cluster's do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from testbed.bed import Bed, NodeSpec, Settings
from testbed.cluster import Cluster, wait_until

_SERVER = """
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("terminated", flush=True), sys.exit(0)))
print("started by", os.getuid(), flush=True)
os.chdir("/srv" if os.path.isdir("/srv") else "/")
http.server.ThreadingHTTPServer(("", 8000), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def server(**container: Any) -> dict[str, Any]:
    return {
        "name": "server",
        "image": "python:3.11",
        "command": ["python", "-c", _SERVER],
        "ports": [{"name": "http", "containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
        **container,
    }


def pod_spec(container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"containers": [container], "terminationGracePeriodSeconds": 5, **spec}


def pod(name: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec(container, **spec)}


def deployment(name: str, replicas: int, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec(container, **spec)},
        },
    }


def service(name: str, **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    body = {"selector": {"app": name}, "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def gone(bed: Cluster, namespace: str, name: str) -> bool:
    return bed.kubectl("get", "pod", name, "-n", namespace, check=False).returncode != 0


def wait_ready(bed: Cluster, namespace: str, name: str) -> dict[str, Any]:
    bed.kubectl("wait", "-n", namespace, f"pod/{name}", "--for=condition=Ready", "--timeout=20s")
    return bed.get("pod", name, "-n", namespace)


def logs(bed: Cluster, namespace: str, name: str) -> str:
    return bed.kubectl("logs", "-n", namespace, name).stdout


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def test_a_deployment_becomes_available_and_its_pods_answer_by_name(bed: Cluster, namespace: str) -> None:
    bed.apply(deployment("web", 2, server()), service("web"), namespace=namespace)
    bed.kubectl("wait", "-n", namespace, "deploy/web", "--for=condition=Available", "--timeout=20s")
    assert "Directory listing" in wait_until(lambda: fetch(f"http://web.{namespace}.svc/"), 10)


def test_a_headless_service_resolves_to_its_ready_pods(bed: Cluster, namespace: str) -> None:
    bed.apply(deployment("web", 2, server()), service("web", clusterIP="None"), namespace=namespace)
    bed.kubectl("wait", "-n", namespace, "deploy/web", "--for=condition=Available", "--timeout=20s")
    pods = bed.get("pods", "-n", namespace)["items"]

    def resolved() -> set[str]:
        return {str(info[4][0]) for info in socket.getaddrinfo(f"web.{namespace}", 8000, type=socket.SOCK_STREAM)}

    wait_until(lambda: resolved() == {pod["status"]["podIP"] for pod in pods}, 10)


def test_accelerators_run_out(bed: Cluster, namespace: str) -> None:
    wanted = {"limits": {"nvidia.com/gpu": "8"}}
    for name in ("one", "two", "three"):
        bed.apply(pod(name, server(resources=wanted)), namespace=namespace)

    def unschedulable() -> list[str]:
        conditions = [c for p in bed.get("pods", "-n", namespace)["items"] for c in p["status"].get("conditions", [])]
        return [c["message"] for c in conditions if c.get("reason") == "Unschedulable"]

    assert "Insufficient nvidia.com/gpu" in wait_until(unschedulable, 10)[0]


def test_a_mounted_config_map_is_renewed_at_once_when_the_pod_changes(bed: Cluster, namespace: str) -> None:
    def config(text: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "page"}, "data": {"page.txt": text}}

    mounts = {"volumeMounts": [{"name": "page", "mountPath": "/srv"}]}
    volumes = [{"name": "page", "configMap": {"name": "page"}}]
    bed.apply(config("old"), pod("web", server(**mounts), volumes=volumes), namespace=namespace)
    address = wait_ready(bed, namespace, "web")["status"]["podIP"]
    assert fetch(f"http://{address}:8000/page.txt") == "old"
    bed.apply(config("new"), namespace=namespace)
    assert fetch(f"http://{address}:8000/page.txt") == "old"
    bed.kubectl("annotate", "-n", namespace, "pod/web", "checksum=new")
    wait_until(lambda: fetch(f"http://{address}:8000/page.txt") == "new", 5)


def test_the_pre_stop_hook_delays_sigterm_and_the_pod_serves_meanwhile(bed: Cluster, namespace: str) -> None:
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "touch /tmp/called; while [ ! -e /tmp/go ]; do sleep 0.05; done"]}}}
    shared = {"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "tmp", "mountPath": "/srv"}]}
    volumes = [{"name": "tmp", "emptyDir": {}}]
    body = pod("web", server(lifecycle=hook, **shared), volumes=volumes, terminationGracePeriodSeconds=20)
    releaser = _SERVER.replace("http.server.SimpleHTTPRequestHandler", "Handler").replace(
        "http.server.Threading",
        "class Handler(http.server.SimpleHTTPRequestHandler):\n"
        "    def do_POST(self):\n        open('/tmp/go', 'w').close(); self.send_response(204); self.end_headers()\n"
        "http.server.Threading",
    )
    body["spec"]["containers"][0]["command"][2] = releaser
    bed.apply(body, namespace=namespace)
    address = wait_ready(bed, namespace, "web")["status"]["podIP"]
    bed.kubectl("delete", "pod", "web", "-n", namespace, "--wait=false")
    wait_until(lambda: "called" in fetch(f"http://{address}:8000/"), 10)
    assert "terminated" not in logs(bed, namespace, "web")
    urllib.request.urlopen(urllib.request.Request(f"http://{address}:8000/", method="POST"), timeout=5).close()
    wait_until(lambda: gone(bed, namespace, "web"), 10)


def test_a_container_deaf_to_sigterm_is_killed_after_the_grace_period(bed: Cluster, namespace: str) -> None:
    deaf = server(command=["python", "-c", _SERVER.replace("sys.exit(0)", "None")])
    bed.apply(pod("deaf", deaf, terminationGracePeriodSeconds=1), namespace=namespace)
    wait_ready(bed, namespace, "deaf")
    bed.kubectl("delete", "pod", "deaf", "-n", namespace, "--timeout=15s")


def test_a_service_account_token_acts_under_its_own_role(bed: Cluster, namespace: str) -> None:
    script = """
import json, os, ssl, urllib.error, urllib.request
root = "/var/run/secrets/kubernetes.io/serviceaccount"
tls = ssl.create_default_context(cafile=f"{root}/ca.crt")
token, space = open(f"{root}/token").read(), open(f"{root}/namespace").read()
base = "https://%s:%s/api/v1/namespaces/%s/" % (
    os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"], space)
for kind in ("configmaps", "secrets"):
    request = urllib.request.Request(base + kind, headers={"Authorization": "Bearer " + token})
    try:
        print(kind, urllib.request.urlopen(request, context=tls).status)
    except urllib.error.HTTPError as error:
        print(kind, error.code)
"""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }
    container = {"name": "ask", "image": "python:3.11", "command": ["python", "-c", script]}
    bed.apply(role, binding, pod("ask", container, restartPolicy="Never"), namespace=namespace)
    bed.kubectl("wait", "-n", namespace, "pod/ask", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=20s")
    assert logs(bed, namespace, "ask").split() == ["configmaps", "200", "secrets", "403"]


def test_a_container_runs_as_its_security_context_says(bed: Cluster, namespace: str) -> None:
    script = "id -u; touch /here 2>/dev/null || echo read-only; touch /tmp/there && echo tmp; grep CapEff /proc/self/status"
    container = {
        "name": "self",
        "image": "python:3.11",
        "command": ["sh", "-c", script],
        "securityContext": {
            "runAsUser": 1234,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    volumes = [{"name": "tmp", "emptyDir": {"medium": "Memory"}}]
    bed.apply(pod("self", container, volumes=volumes, restartPolicy="Never"), namespace=namespace)
    bed.kubectl("wait", "-n", namespace, "pod/self", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=20s")
    assert logs(bed, namespace, "self").split() == ["1234", "read-only", "tmp", "CapEff:", "0000000000000000"]


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        ({"name": "c", "image": "nobody/knows:1"}, "ErrImagePull"),
        ({"name": "c", "image": "python:3.11", "command": ["false"]}, "CrashLoopBackOff"),
        (
            {"name": "c", "image": "python:3.11", "securityContext": {"runAsNonRoot": True}},
            "CreateContainerConfigError",
        ),
    ],
    ids=["unknown image", "failing command", "root where none is allowed"],
)
def test_a_container_that_cannot_run_says_why(bed: Cluster, namespace: str, container: dict[str, Any], reason: str) -> None:
    bed.apply(pod("bad", container), namespace=namespace)

    def shown() -> bool:
        statuses = bed.get("pod", "bad", "-n", namespace)["status"].get("containerStatuses", [])
        return any(status["state"].get("waiting", {}).get("reason") == reason for status in statuses)

    wait_until(shown, 15, reason)


def test_a_job_completes_after_its_init_container(bed: Cluster, namespace: str) -> None:
    share = [{"name": "work", "mountPath": "/work-dir"}]
    first = {"name": "first", "image": "python:3.11", "command": ["sh", "-c", "echo x > /work-dir/f"], "volumeMounts": share}
    then = {"name": "then", "image": "python:3.11", "command": ["cat", "/work-dir/f"], "volumeMounts": share}
    template = {
        "initContainers": [first],
        "containers": [then],
        "volumes": [{"name": "work", "emptyDir": {}}],
        "restartPolicy": "Never",
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": {"template": {"spec": template}}}
    bed.apply(job, namespace=namespace)
    bed.kubectl("wait", "-n", namespace, "job/job", "--for=condition=Complete", "--timeout=20s")


def test_a_failing_liveness_probe_restarts_the_container(bed: Cluster, namespace: str) -> None:
    # A server that is not up yet cannot say that it was terminated.
    probe = {"exec": {"command": ["false"]}, "initialDelaySeconds": 3, "periodSeconds": 1, "failureThreshold": 1}
    bed.apply(pod("sick", server(livenessProbe=probe)), namespace=namespace)
    wait_until(lambda: bed.get("pod", "sick", "-n", namespace)["status"]["containerStatuses"][0]["restartCount"], 20)
    assert "terminated" in bed.kubectl("logs", "-n", namespace, "sick", "--previous").stdout


def test_pods_of_a_lost_node_are_replaced_elsewhere(node_control: Bed, namespace: str) -> None:
    bed = node_control
    selector = {"nvidia.com/gpu.product": "NVIDIA-L40S"}
    bed.apply(deployment("web", 1, server(), nodeSelector=selector), namespace=namespace)
    bed.kubectl("wait", "-n", namespace, "deploy/web", "--for=condition=Available", "--timeout=20s")
    lost = bed.get("pods", "-n", namespace)["items"][0]["spec"]["nodeName"]
    bed.kill_node(lost)
    try:

        def replaced() -> bool:
            ready = bed.get("deploy", "web", "-n", namespace)["status"].get("readyReplicas", 0)
            nodes = {item["spec"].get("nodeName") for item in bed.get("pods", "-n", namespace)["items"]}
            return ready == 1 and nodes - {lost, None} != set()

        wait_until(replaced, 60, "a replacement")
    finally:
        bed.revive_node(lost)
        bed.kubectl("wait", f"node/{lost}", "--for=condition=Ready", "--timeout=30s")


def test_prometheus_scrapes_an_annotated_pod(node_control: Bed, namespace: str) -> None:
    page = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "page"}, "data": {"metrics.txt": "answer 42\n"}}
    body = pod(
        "exporter",
        server(volumeMounts=[{"name": "page", "mountPath": "/srv"}]),
        volumes=[{"name": "page", "configMap": {"name": "page"}}],
    )
    body["metadata"]["annotations"] = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "8000",
        "prometheus.io/path": "/metrics.txt",
    }
    node_control.apply(page, body, namespace=namespace)
    wait_ready(node_control, namespace, "exporter")
    query = f"http://prometheus.monitoring.svc:9090/api/v1/query?query=answer{{namespace=%22{namespace}%22}}"
    found = wait_until(lambda: json.loads(fetch(query))["data"]["result"], 20)
    assert found[0]["value"][1] == "42"
    assert found[0]["metric"]["pod"] == "exporter"


def _processes_mentioning(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and str(os.getpid()) != entry.parent.name:
            found.append(line)
    return found


def test_a_bed_killed_outright_leaves_no_process(tmp_path: Path) -> None:
    settings = Settings(nodes=(), scrape_interval_s=0)
    bed = Bed([NodeSpec("only")], settings, tmp_path / "bed")
    bed.start()
    try:
        bed.wait_ready()
        sleeper = f"sleep 1000 # {tmp_path}"
        bed.apply(pod("sleeper", {"name": "c", "image": "python:3.11", "command": ["sh", "-c", sleeper + "; true"]}))
        wait_ready(bed, "default", "sleeper")
        assert len(_processes_mentioning(str(tmp_path))) > 5
        os.kill(bed.pid, signal.SIGKILL)
        wait_until(lambda: not _processes_mentioning(str(tmp_path)), 10, "no process left")
    finally:
        bed.stop()


def test_a_bed_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from testbed.bed import *; "
        "bed = Bed([NodeSpec('only')], Settings(nodes=(), scrape_interval_s=0), pathlib.Path(sys.argv[1])); "
        "bed.start(); bed.wait_ready()"
    )
    hack = Path(__file__).resolve().parents[2] / "hack"
    folder = tmp_path / "bed"
    subprocess.run([sys.executable, "-c", script, str(folder)], env=os.environ | {"PYTHONPATH": str(hack)}, check=True)
    wait_until(lambda: not _processes_mentioning(str(folder)), 10, "no process left")
