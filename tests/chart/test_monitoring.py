"""Alerts and dashboard ask for series that the operator has: a real Prometheus evaluates them for a plan in trouble."""

from __future__ import annotations

import http.server
import json
import re
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from servingplan.controller.telemetry import Telemetry
from testbed import tools
from testbed.cluster import wait_until

FILES = Path(__file__).parents[2] / "charts/servingplan/files"
RULES = yaml.safe_load((FILES / "rules.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}

POOL = {"model": "m", "setup": "s"}
TROUBLE: dict[str, Any] = {
    "conditions": [
        {"type": kind, "status": "True" if kind == "Stalled" else "False", "reason": "Bad"}
        for kind in ("Ready", "Stalled", "Feasible", "RoutingSynced", "MetricsAvailable", "SLOMet")
    ],
    "allocations": [
        {
            **POOL,
            "replicas": 3,
            "ready": 1,
            "predicted": {"ttftMean": "0.2", "ttftP95": "0.5"},
            "observed": {"ttftMean": "0.3", "ttftP95": "0.7"},
            "givenUp": {"attempts": 2},
            "calibration": {
                "logStep": ["0.1", "0.2", "0.3"],
                "margin": {"ttft.p95": "0.1"},
                "drifting": True,
                "applied": {"step": ["1", "1", "1"], "ttft": ["1"], "margin": {"ttft.p95": "0.1"}},
            },
        }
    ],
    "routes": [{"class": "chat", "weights": {"m": "0.9"}, "shed": "0.1"}],
    "objective": {"quality": "0.83", "costPerHour": "11.7", "gap": "0.02"},
    "demand": [{"class": "chat", "observed": "20", "planned": "26", "routed": "21"}],
    "router": {"ready": 2},
    "accelerators": {"h100": 6},
}


class Operator(Telemetry):
    """What an operator in trouble exposes; every scrape finds more of it."""

    def __init__(self) -> None:
        self.leading = True
        super().__init__(leads=lambda: self.leading)
        self.plan("llm/chat", TROUBLE, asked={("m", "s"): 2}, bounds={("chat", "ttft.p95"): 0.6})
        self.sampled("llm/chat", 4.0)

    def page(self) -> bytes:
        for _ in range(10):
            self.passed("failed", 0.1)
            self.error("kube")
            self.wrote("Deployment")
            self.decided("llm/chat", "ShortOfCapacity")
            for kind in ("plan", "weights", "hold"):
                self.solved(kind, 0.1)
        return super().page()


@contextmanager
def exposed(telemetry: Telemetry) -> Iterator[str]:
    """Address at which Prometheus finds the metrics."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(telemetry.page())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@dataclass(frozen=True)
class Prometheus:
    url: str

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        return self.get("query", query=expr)["result"]


@pytest.fixture(scope="module")
def operators() -> tuple[Operator, Operator]:
    return Operator(), Operator()


@pytest.fixture(scope="module")
def prometheus(operators: tuple[Operator, Operator], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with exposed(operators[0]) as first, exposed(operators[1]) as second, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        targets = [
            {"targets": [address], "labels": {"namespace": "servingplan-system", "pod": f"controller-{number}"}}
            for number, address in enumerate((first, second))
        ]
        scrape = {"job_name": "pods", "honor_labels": True, "static_configs": targets}
        every = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        config = {"global": every, "scrape_configs": [scrape]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        argv = [
            str(tools.find().prometheus),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with subprocess.Popen(argv, stderr=(folder / "log").open("wb")) as process:
            found = Prometheus(f"http://127.0.0.1:{port}")

            def scraped_thrice() -> bool:
                try:
                    series = found.query("count_over_time(servingplan_leader[1m])")
                except OSError:
                    assert process.poll() is None, (folder / "log").read_text()
                    return False
                return len(series) == 2 and all(float(each["value"][1]) >= 3 for each in series)

            try:
                wait_until(scraped_thrice, 30, "two operators scraped three times")
                yield found
            finally:
                process.kill()


def filled_in(expr: str) -> str:
    return expr.replace("$namespace", "llm").replace("$plan", "chat")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_waits_a_while_and_says_how_bad_it_is(rule: dict[str, Any]) -> None:
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"[1-9][0-9]?m", rule["for"])
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() <= {"summary", "description"}


@pytest.mark.parametrize("rule", RULES[1:], ids=lambda rule: rule["alert"])
def test_every_alert_sees_its_trouble_and_names_it(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    found = prometheus.query(rule["expr"])
    assert found, rule["expr"]
    texts = " ".join(rule["annotations"].values())
    named = {word.split("}}")[0].strip() for word in texts.split("$labels.")[1:]}
    assert named <= found[0]["metric"].keys(), "an annotation would name nothing"


def test_an_absent_leader_is_noticed_and_a_present_one_is_not(
    prometheus: Prometheus, operators: tuple[Operator, Operator]
) -> None:
    rule = RULES[0]
    assert rule["alert"] == "ServingplanNoLeader"
    assert prometheus.query(rule["expr"]) == []
    for operator in operators:
        operator.leading = False
    try:
        wait_until(lambda: prometheus.query(rule["expr"]), 30, "alert")
    finally:
        for operator in operators:
            operator.leading = True


@pytest.mark.parametrize("title", PANELS)
def test_every_panel_shows_something(prometheus: Prometheus, title: str) -> None:
    for target in PANELS[title]["targets"]:
        found = prometheus.query(filled_in(target["expr"]))
        assert found, target["expr"]
        assert "NaN" not in {sample["value"][1] for sample in found}


def test_the_dashboard_offers_the_namespaces_and_plans_that_there_are(prometheus: Prometheus) -> None:
    assert prometheus.get("label/namespace/values", **{"match[]": "servingplan_condition"}) == ["llm"]
    asked = {entry["name"]: entry["query"]["query"] for entry in DASHBOARD["templating"]["list"][1:]}
    assert asked == {
        "namespace": "label_values(servingplan_condition, namespace)",
        "plan": 'label_values(servingplan_condition{namespace="$namespace"}, plan)',
    }


def test_panels_have_ids_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(PANELS) == len(DASHBOARD["panels"])
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
