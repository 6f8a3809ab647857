"""The tools that break things break exactly what they say, and mend it again."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from testbed import faults
from testbed.bed import Bed
from testbed.cluster import Cluster, wait_until
from testbed.proxy import Fault, Proxy
from testbed.witness import Witness

CHUNK_S = 0.02
ASKED_S = 2000.0


class Upstream(BaseHTTPRequestHandler):
    """A small Prometheus and a small watch."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "watch" in query:
            self._stream()
        else:
            self._reply(self._result(query))

    def do_PATCH(self) -> None:
        self._reply(self.rfile.read(int(self.headers["Content-Length"])).upper())

    def _result(self, query: dict[str, list[str]]) -> bytes:
        if "end" in query:
            series = [{"metric": {"pod": "a"}, "values": [[float(query["start"][0]), "1"], [float(query["end"][0]), "2"]]}]
        else:
            at_s = float(query.get("time", ["0"])[0])
            series = [{"metric": {"pod": pod, "le": "1"}, "value": [at_s, str(at_s)]} for pod in ("a-1", "a-2", "b-1")]
        return json.dumps({"status": "success", "data": {"resultType": "vector", "result": series}}).encode()

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            for number in range(10_000):
                line = json.dumps({"type": "ADDED", "number": number}).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                time.sleep(CHUNK_S)  # the server's own pace: a watch is slow

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Proxy(f"http://127.0.0.1:{server.server_port}", host="127.0.0.1") as found:
        yield found
    server.shutdown()
    server.server_close()


def fetch(url: str, method: str = "GET", body: bytes | None = None, timeout_s: float = 5) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, data=body), timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def query(proxy: Proxy, **parameters: float) -> list[dict[str, Any]]:
    text = "&".join(f"{key}={value}" for key, value in ({"query": "up"} | parameters).items())
    path = "query_range" if "end" in parameters else "query"
    _, body = fetch(f"{proxy.url}/api/v1/{path}?{text}")
    found: list[dict[str, Any]] = json.loads(body)["data"]["result"]
    return found


def test_without_a_fault_everything_passes(proxy: Proxy) -> None:
    assert fetch(f"{proxy.url}/x", "PATCH", b"spec") == (200, b"SPEC")
    assert [entry["value"][1] for entry in query(proxy, time=ASKED_S)] == [str(ASKED_S)] * 3


def test_a_closed_port_refuses_and_opens_again(proxy: Proxy) -> None:
    with proxy.broken(faults.AWAY), pytest.raises(urllib.error.URLError, match="refused"):
        fetch(f"{proxy.url}/x")
    assert fetch(f"{proxy.url}/x")[0] == 200


def test_a_reset_connection_was_accepted(proxy: Proxy) -> None:
    with proxy.broken(faults.RESETTING), pytest.raises(OSError, match=r"reset|closed") as error:
        fetch(f"{proxy.url}/x")
    assert not isinstance(error.value, ConnectionRefusedError)


def test_a_hanging_server_accepts_and_never_answers(proxy: Proxy) -> None:
    with proxy.broken(faults.HANGING), pytest.raises(TimeoutError):
        fetch(f"{proxy.url}/x", timeout_s=0.3)
    assert fetch(f"{proxy.url}/x")[0] == 200


def test_only_requests_that_a_fault_concerns_are_answered_by_it(proxy: Proxy) -> None:
    with proxy.broken(faults.answering(429, methods=["PATCH"], path="/deployments/")):
        assert fetch(f"{proxy.url}/apis/deployments/a", "PATCH", b"x")[0] == 429
        assert fetch(f"{proxy.url}/apis/configmaps/a", "PATCH", b"x")[0] == 200
        assert fetch(f"{proxy.url}/apis/deployments/a")[0] == 200
    assert fetch(f"{proxy.url}/apis/deployments/a", "PATCH", b"x")[0] == 200


def test_an_answer_may_be_no_json(proxy: Proxy) -> None:
    with proxy.broken(faults.NOT_JSON):
        status, body = fetch(f"{proxy.url}/api/v1/query?query=up")
    assert status == 200
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(body)


@pytest.mark.parametrize(
    ("fault", "pods", "values"),
    [
        (faults.values_of("NaN"), ["a-1", "a-2", "b-1"], ["NaN"] * 3),
        (faults.without("pod", "^a-"), ["b-1"], [str(ASKED_S)]),
        (faults.without_label("pod"), [None] * 3, [str(ASKED_S)] * 3),
    ],
    ids=["NaN", "some pods", "no label"],
)
def test_what_prometheus_answers_is_altered(proxy: Proxy, fault: Fault, pods: list[Any], values: list[str]) -> None:
    with proxy.broken(fault):
        found = query(proxy, time=ASKED_S)
    assert [entry["metric"].get("pod") for entry in found] == pods
    assert [entry["value"] for entry in found] == [[ASKED_S, value] for value in values]


def test_the_times_of_samples_are_known_whatever_their_values(proxy: Proxy) -> None:
    with proxy.broken(faults.values_of("NaN")):
        assert {entry["value"][1] for entry in query(proxy, time=2e9)} == {"2000000000.0"}


def test_a_hanging_watch_goes_on_where_it_stopped(proxy: Proxy) -> None:
    with urllib.request.urlopen(f"{proxy.url}/pods?watch=1", timeout=5) as stream:
        assert json.loads(stream.readline())["number"] == 0
        proxy.set(faults.HANGING)
        received: list[int] = []
        reader = threading.Thread(target=lambda: received.extend(json.loads(stream.readline())["number"] for _ in range(40)))
        reader.start()
        reader.join(0.5)
        assert len(received) < 10, "what was under way may still arrive"
        proxy.set(None)
        reader.join(10)
        assert received == list(range(1, 41))


def test_a_watch_can_be_cut_or_expire(proxy: Proxy) -> None:
    with urllib.request.urlopen(f"{proxy.url}/pods?watch=1", timeout=5) as stream:
        stream.readline()
        with proxy.broken(faults.EXPIRED_WATCHES):
            *_, last = stream.read().splitlines()
    assert json.loads(last)["object"]["code"] == 410
    with urllib.request.urlopen(f"{proxy.url}/pods?watch=1", timeout=5) as stream:
        stream.readline()
        with proxy.broken(faults.AWAY), pytest.raises((OSError, http.client.HTTPException)):
            stream.read()


@pytest.fixture
def inside(node_control: Bed) -> Bed:
    return node_control


def test_the_api_server_can_be_away_for_one_client_alone(inside: Bed, namespace: str) -> None:
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "editor"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }
    inside.apply(binding, namespace=namespace)
    token = inside.kubectl("create", "token", "default", "-n", namespace).stdout.strip()
    with faults.api_proxy(inside) as proxy:
        environment = {entry["name"]: entry["value"] for entry in faults.api_environment(proxy)}
        server = f"https://{environment['KUBERNETES_SERVICE_HOST']}:{environment['KUBERNETES_SERVICE_PORT']}"

        def kubectl(*arguments: str) -> subprocess.CompletedProcess[str]:
            login = ("--server", server, "--token", token, "-n", namespace, "--request-timeout=3s")
            return inside.kubectl(*login, *arguments, check=False)

        assert kubectl("get", "pods").returncode == 0
        with proxy.broken(faults.AWAY):
            assert "refused" in kubectl("get", "pods").stderr
            inside.kubectl("get", "pods", "-n", namespace)
        annotate = ("annotate", "configmap", "kube-root-ca.crt", "a=b")
        with proxy.broken(faults.answering(500, methods=["PATCH"])):
            refused = kubectl(*annotate)
            assert "injected 500" in refused.stderr
        assert kubectl(*annotate).returncode == 0


def busy(name: str) -> dict[str, Any]:
    container = {
        "name": "server",
        "image": "python:3.11",
        "command": ["python", "-m", "http.server", "8000"],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def status_of(bed: Bed, namespace: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = bed.get("pod", name, "-n", namespace)["status"]["containerStatuses"][0]
    return found


def test_a_container_can_be_killed_and_stopped_and_kept_crashing(inside: Bed, namespace: str) -> None:
    inside.apply(busy("victim"), namespace=namespace)
    inside.kubectl("wait", "-n", namespace, "pod/victim", "--for=condition=Ready", "--timeout=20s")
    pod = inside.get("pod", "victim", "-n", namespace)
    address = pod["status"]["podIP"]
    with faults.stopped(faults.container_pid(inside, pod, "server")), pytest.raises(TimeoutError):
        fetch(f"http://{address}:8000/", timeout_s=0.3)
    assert fetch(f"http://{address}:8000/")[0] == 200
    killed = faults.kill_container(inside, pod, "server")
    wait_until(lambda: status_of(inside, namespace, "victim")["restartCount"] == 1, 10, "restarted")
    wait_until(lambda: faults.container_pid(inside, pod, "server") != killed, 10, "another process")
    with faults.crash_looping(inside, namespace, "victim", "server"):

        def backs_off() -> bool:
            return status_of(inside, namespace, "victim")["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"

        wait_until(backs_off, 20, "CrashLoopBackOff")
    inside.kubectl("wait", "-n", namespace, "pod/victim", "--for=condition=Ready", "--timeout=30s")


def test_parts_of_the_bed_are_found_by_name(inside: Bed) -> None:
    pids = {name: faults.component_pid(inside, name) for name in ("etcd", "kube-apiserver", "prometheus", "kube-scheduler")}
    assert len(set(pids.values())) == 4
    assert all(Path(f"/proc/{pid}").exists() for pid in pids.values())
    with pytest.raises(LookupError):
        faults.component_pid(inside, "kube-nothing")
    with faults.stopped(pids["etcd"]), pytest.raises(RuntimeError):
        inside.kubectl("get", "nodes", "--request-timeout=1s")
    wait_until(lambda: inside.kubectl("get", "nodes", "--request-timeout=2s", check=False).returncode == 0, 20, "etcd is back")


EXPORTER = """
import http.server
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"vllm:inter_token_latency_seconds_sum 1\\nvllm:kv_cache_usage_perc 0.5\\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8000), Page).serve_forever()
"""


def test_another_prometheus_stores_series_under_old_names_or_not_at_all(inside: Bed, namespace: str, tmp_path: Path) -> None:
    body = busy("exporter")
    body["metadata"]["annotations"] = {"prometheus.io/scrape": "true", "prometheus.io/port": "8000"}
    body["spec"]["containers"][0]["command"] = ["python", "-c", EXPORTER]
    inside.apply(body, namespace=namespace)
    new, old = "vllm:inter_token_latency_seconds_sum", "vllm:time_per_output_token_seconds_sum"
    with faults.prometheus_proxy() as proxy:

        def stored(name: str) -> list[Any]:
            bare = name.removeprefix("timestamp(").removesuffix(")")
            selector = f"{bare}{{namespace=%22{namespace}%22}}"
            url = f"{proxy.url}/api/v1/query?query={name.replace(bare, selector)}"
            found: list[Any] = json.loads(fetch(url)[1])["data"]["result"]
            return found

        wait_until(lambda: stored(new), 20, "scraped")
        with faults.other_prometheus(inside, proxy, tmp_path / "old", faults.renamed(faults.OLD_NAMES)):
            wait_until(lambda: stored(old), 20, "old names")
            assert not stored(new)
            assert stored("vllm:gpu_cache_usage_perc")
        assert stored(new)
        assert not stored(old)
        with faults.other_prometheus(inside, proxy, tmp_path / "none", [faults.dropped("pod", "exporter")]):
            wait_until(lambda: stored("up"), 20, "the pod is a target")
            assert not stored(new)
        with faults.other_prometheus(inside, proxy, tmp_path / "empty", scrapes=False):
            assert not stored("up")
        with faults.other_prometheus(inside, proxy, tmp_path / "frozen", scrapes=False, remembers=True):
            last_s = newest(stored, new)
            wait_until(lambda: time.time() > last_s + 3, 10, "time passes")
            assert newest(stored, new) == last_s
        wait_until(lambda: newest(stored, new) > last_s, 10, "the bed's own goes on")


def newest(stored: Callable[[str], list[Any]], name: str) -> float:
    """Time of the newest sample."""
    (entry,) = stored(f"timestamp({name})")
    return float(entry["value"][1])


@pytest.fixture
def crd(bed: Cluster) -> None:
    root = Path(__file__).parents[2]
    bed.kubectl("apply", "--server-side", "-f", str(root / "crds"))
    # `kubectl wait` gives up on a definition that has no conditions yet.
    wait_until(lambda: bed.kubectl("get", "msp", "-A", check=False).returncode == 0, 60, "plans can be listed")


def deployment(pool: str, replicas: int, units: int) -> dict[str, Any]:
    labels = {"servingplan.io/plan": "p", "servingplan.io/pool": pool}
    pod = busy("x")["spec"]
    pod["containers"][0]["resources"] = {"requests": {"nvidia.com/gpu": units}, "limits": {"nvidia.com/gpu": units}}
    pod["nodeSelector"] = {"nvidia.com/gpu.product": "NVIDIA-L40S"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": pool, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def table(weight: int) -> dict[str, Any]:
    entry = {"name": "chat", "weights": {"p-a": weight}}
    text = json.dumps({"classes": [entry], "models": [{"name": "m", "weights": {"p-a": 1}}]})
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "p-routing"}, "data": {"table.json": text}}


@pytest.mark.usefixtures("crd")
def test_a_witness_misses_no_version_and_knows_what_stood_when(inside: Bed, namespace: str, tmp_path: Path) -> None:
    with Witness(inside, namespace, tmp_path / "client") as witness:
        inside.apply(deployment("p-a", 1, 2), table(1), namespace=namespace)
        inside.kubectl("wait", "-n", namespace, "deploy/p-a", "--for=condition=Available", "--timeout=20s")
        before_s = time.time()
        for weight in (2, 3, 4):
            inside.apply(table(weight), namespace=namespace)
        inside.kubectl("scale", "deploy/p-a", "-n", namespace, "--replicas=0")
        wait_until(lambda: list(witness.moments("p"))[-1].units.get("NVIDIA-L40S", 0) == 0, 20, "the pod is gone")
        moments = list(witness.moments("p"))
    assert max(moment.units.get("NVIDIA-L40S", 0) for moment in moments) == 2
    weights = list(dict.fromkeys(m.weights["chat"]["p-a"] for m in moments if m.weights))
    assert weights == [1, 2, 3, 4], "every version, once each and in order"
    assert moments[-1].asked == {"p-a": 0}
    assert moments[-1].weighted == {"p-a"}
    assert any(moment.ready.get("p-a") == 1 for moment in moments)
    assert not witness.held("p", before_s, lambda moment: moment.asked)
    assert witness.held("p", time.time(), lambda moment: moment.asked)


def test_a_lease_is_stolen(inside: Bed, namespace: str) -> None:
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "leader"},
        "spec": {"holderIdentity": "one", "leaseDurationSeconds": 12, "leaseTransitions": 0},
    }
    inside.apply(lease, namespace=namespace)
    assert faults.steal_lease(inside, namespace, "leader", "thief") == "one"
    assert inside.get("lease", "leader", "-n", namespace)["spec"]["holderIdentity"] == "thief"


def test_a_stopped_process_goes_on(tmp_path: Path) -> None:
    counter = "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.01)"
    with subprocess.Popen([sys.executable, "-c", counter], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with faults.stopped(process.pid):

            def state() -> str:
                return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]

            wait_until(lambda: state() == "T", 5, "stopped")
        wait_until(lambda: state() != "T", 5, "going on")
        os.kill(process.pid, 9)
