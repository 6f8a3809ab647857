"""The plugin on a real API server. The test writes the status, so no operator is needed."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.cluster import wait_until

RECOMMEND = {"mode": "Recommend"}
APPROVE = "servingplan.io/approve"


@contextmanager
def operator(desk: Any, **status: Any) -> Iterator[None]:
    """Stands in for the operator: writes a status once the proposal is approved."""
    failed: list[BaseException] = []

    def answer() -> None:
        try:
            wait_until(lambda: APPROVE in desk.get()["metadata"].get("annotations", {}), 30, "approval")
            desk.patch("chat", {"status": status}, "--subresource=status")
        except (AssertionError, RuntimeError) as error:
            failed.append(error)

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    thread.join()
    assert not failed


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_the_proposal_that_was_shown_is_approved(desk: Any, bodies: Any) -> None:
    desk.plan(spec=RECOMMEND, proposal=bodies.PROPOSAL)
    with operator(desk, proposal=None, approval={"id": "7f3a21", "time": now()}):
        ended = desk("approve", "chat", "7f3a21")
    assert (ended.status, ended.err) == (0, "")
    assert "load of class chat 14.6 to 21 requests/s" in ended.out
    assert "Proposal 7f3a21 is approved, and the operator carries it out." in ended.out
    stands = desk.get()
    assert stands["metadata"]["annotations"][APPROVE] == "7f3a21"
    assert stands["spec"]["mode"] == "Recommend"
    assert desk("approve", "chat", "7f3a21").out == "Proposal 7f3a21 is approved already, and stands.\n"


def test_a_stale_proposal_is_not(desk: Any, bodies: Any) -> None:
    desk.plan(spec=RECOMMEND, proposal=bodies.PROPOSAL)
    ended = desk("approve", "chat", "000000")
    assert ended.status == 1
    assert "proposal 000000 is stale: 7f3a21 replaced it" in ended.err
    assert APPROVE not in desk.get()["metadata"].get("annotations", {})


def test_a_proposal_for_an_earlier_spec_is_not(desk: Any, bodies: Any) -> None:
    desk.plan(spec=RECOMMEND, proposal=bodies.PROPOSAL)
    desk.patch("chat", {"spec": {"tolerateNodes": 1}})
    ended = desk("approve", "chat", "7f3a21")
    assert ended.status == 1
    assert "it follows generation 1 of the spec, which is at 2 now" in ended.err
    assert APPROVE not in desk.get()["metadata"].get("annotations", {})


def test_a_refusal_is_passed_on(desk: Any, bodies: Any) -> None:
    desk.plan(spec=RECOMMEND, proposal=bodies.PROPOSAL)
    with operator(desk, approval={"id": "", "time": now(), "refused": "proposal 7f3a21 was withdrawn"}):
        ended = desk("approve", "chat", "--yes")
    assert ended.status == 1
    assert ended.err == "the operator does not follow the approval: proposal 7f3a21 was withdrawn\n"
    assert APPROVE not in desk.get()["metadata"].get("annotations", {}), "nothing is left that could be followed later"


def test_an_operator_that_is_away_is_not_waited_for_for_ever(desk: Any, bodies: Any) -> None:
    desk.plan(spec=RECOMMEND, proposal=bodies.PROPOSAL)
    ended = desk("approve", "chat", "7f3a21", "--timeout", "1s")
    assert ended.status == 1
    assert "has not answered within 1 s; the approval of 7f3a21 stands" in ended.err
    assert desk("approve", "chat", "7f3a21", "--timeout", "0").status == 0


def test_nobody_to_ask_approves_nothing(desk: Any, bodies: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.plan(spec=RECOMMEND, proposal=bodies.PROPOSAL)
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        ended = desk("approve", "chat")
    assert ended.status == 2
    assert "give the proposal, 7f3a21, or --yes" in ended.err
    assert APPROVE not in desk.get()["metadata"].get("annotations", {})


@pytest.mark.parametrize("mode", ["Auto", "Recommend"])
def test_a_plan_pauses_and_goes_on_as_it_was(desk: Any, mode: str) -> None:
    desk.plan(spec={"mode": mode})
    assert desk("pause", "msp/chat").out.startswith(f"Plan {desk.namespace}/chat is paused")
    assert desk.get()["spec"]["mode"] == "Paused"
    assert "paused already" in desk("pause", "chat").out
    ended = desk("resume", "chat")
    assert f"goes on in mode {mode}, as before the pause" in ended.out
    stands = desk.get()
    assert stands["spec"]["mode"] == mode
    assert "servingplan.io/mode-before-pause" not in stands["metadata"].get("annotations", {})
    assert "is not paused" in desk("resume", "chat").out


def test_history_comes_with_events(desk: Any) -> None:
    uid = desk.plan()["metadata"]["uid"]
    about = {"kind": "ModelServingPlan", "name": "chat", "namespace": desk.namespace, "uid": uid}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "chat-1"},
        "involvedObject": about,
        "type": "Normal",
        "reason": "Planned",
        "message": "load of class chat 11 to 14.6 requests/s",
        "lastTimestamp": now(),
    }
    other = event | {"metadata": {"name": "other-1"}, "involvedObject": about | {"name": "other"}, "reason": "No"}
    desk.cluster.apply(event, other, namespace=desk.namespace)
    ended = desk("history", "chat")
    assert ended.status == 0
    assert "+1 qwen3-32b/h100-tp2 (2 to 3)" in ended.out
    assert "Planned  load of class chat 11 to 14.6 requests/s" in ended.out
    assert "No " not in ended.out


def test_explain_says_what_stands_and_what_binds(desk: Any, bodies: Any) -> None:
    desk.plan(spec=RECOMMEND, proposal=bodies.PROPOSAL)
    ended = desk("explain", "chat", "--alone")
    assert ended.status == 0, ended.err
    for part in (
        "The SLO is kept, as measured",
        "Proposal 7f3a21",
        f"kubectl servingplan approve chat 7f3a21 -n {desk.namespace}",
        "Solved anew:",
        "class chat, 14.6 requests/s".capitalize(),
        "What more would buy, each solved again:",
    ):
        assert part in ended.out, part
    assert "Solved anew" not in desk("explain", "chat", "--no-solve").out


def test_plan_solves_what_stands_on_the_cluster(desk: Any) -> None:
    desk.plan()
    desk.plan("second")
    ended = desk("plan", "chat", "--alone", "-o", "json", "--rate", "chat=2", "--rate", "code=1")
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    assert found["feasible"] is True
    assert {entry["setup"]: entry["replicas"] for entry in found["standing"]["allocations"]}["h100-tp2"] == 3
    assert sum(entry["rate"] for entry in found["allocations"]) == pytest.approx(3)
    as_yaml = desk("plan", "chat", "--alone", "-o", "yaml", "--rate", "chat=2", "--rate", "code=1").out
    assert yaml.safe_load(as_yaml)["name"] == "chat"
    together = desk("plan", "chat", "-o", "json", "--rate", "chat=2", "--rate", "code=1", "--time-limit", "60")
    assert together.status in {0, 1}, together.err
    assert f"{desk.namespace}/second" in together.err
    assert {plan["name"] for plan in json.loads(together.out)["plans"]} >= {"chat", "second"}


def test_plan_says_what_given_replicas_would_do(desk: Any) -> None:
    desk.plan()
    ended = desk("plan", "chat", "--replicas", "qwen3-32b/h100-tp2=1", "--rate", "chat=100")
    assert ended.status == 1, "not everything is served"
    assert "NOT FEASIBLE" in ended.out
    assert "What stands of" in ended.out
    assert desk("plan", "chat", "--rate", "nobody=1", "--gpus", "h100=8").status == 2


def test_a_profile_that_is_not_there(desk: Any, bodies: Any) -> None:
    models = json.loads(json.dumps(bodies.SPEC["models"]))
    del models[0]["setups"][0]["profile"]
    models[0]["setups"][0]["profileFrom"] = {"configMapKeyRef": {"name": "profiles", "key": "large"}}
    desk.plan(spec={"models": models})
    ended = desk("plan", "chat", "--alone")
    assert ended.status == 1
    assert ended.err == f"plan {desk.namespace}/chat names the ConfigMap profiles for a profile, which is not there\n"


def test_no_such_plan_names_those_that_there_are(desk: Any) -> None:
    assert desk("pause", "chat").err == f"there is no plan chat in namespace {desk.namespace}\n"
    desk.plan("code")
    ended = desk("pause", "chat")
    assert (ended.status, ended.err) == (1, f"there is no plan chat in namespace {desk.namespace}; there is code\n")


@pytest.fixture
def reader(desk: Any, kubeconfig_for: Callable[..., str]) -> str:
    """A kubeconfig of somebody who may look at plans and nothing else."""
    rule = {"apiGroups": ["servingplan.io"], "resources": ["modelservingplans"], "verbs": ["get", "list"]}
    desk.cluster.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "reader"}, "rules": [rule]},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": desk.namespace}],
        },
        namespace=desk.namespace,
    )
    token = desk.cluster.kubectl("create", "token", "reader", "-n", desk.namespace).stdout.strip()
    given = yaml.safe_load(desk.cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
    return kubeconfig_for(given.pop("server"), user={"token": token}, cluster=given)


def test_rights_that_are_missing_are_named(desk: Any, reader: str, bodies: Any) -> None:
    desk.plan(spec=RECOMMEND, proposal=bodies.PROPOSAL)

    def by_reader(*arguments: str) -> Any:
        return desk.run(*arguments, "-n", desk.namespace, "--kubeconfig", reader)

    who = f"system:serviceaccount:{desk.namespace}:reader"
    plans = f"modelservingplans.servingplan.io in namespace {desk.namespace}"
    for command in (("pause", "chat"), ("approve", "chat", "7f3a21")):
        ended = by_reader(*command)
        assert (ended.status, ended.err) == (1, f"{who} may not patch {plans}\n")
    ended = by_reader("plan", "chat", "--alone")
    assert ended.err.startswith(f"{who} may not list nodes of the cluster, so it cannot be counted which GPUs are free")
    assert by_reader("plan", "chat", "--gpus", "h100=8", "--gpus", "l40s=8", "--time-limit", "30").status == 0
    assert "Events may not be read here." in by_reader("history", "chat").out
    shown = by_reader("top", "chat", "--once")
    assert (shown.status, shown.err) == (0, "")
    assert "of 16 there" not in shown.out, "nodes may not be read"
    assert "h100 ██████ 6/6" in shown.out


@pytest.fixture
def as_plugin(desk: Any, tmp_path: Path) -> dict[str, str]:
    """An environment in which kubectl finds the plugin."""
    script = tmp_path / "kubectl-servingplan"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m servingplan.plugin "$@"\n')
    script.chmod(0o755)
    environment = desk.cluster.environment()
    return environment | {"PATH": f"{tmp_path}{os.pathsep}{environment['PATH']}"}


def test_kubectl_finds_the_plugin(desk: Any, as_plugin: dict[str, str]) -> None:
    desk.plan()
    kubectl = shutil.which("kubectl", path=as_plugin["PATH"])
    assert kubectl is not None
    argv = [kubectl, "servingplan", "top", "--once", "-n", desk.namespace]
    ended = subprocess.run(argv, env=as_plugin, text=True, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"{desk.namespace}/chat" in ended.stdout
    assert "\x1b" not in ended.stdout, "no terminal, no colours"
    assert max(map(len, ended.stdout.splitlines())) <= 120
    argv[2:4] = ["history", "nobody"]
    ended = subprocess.run(argv, env=as_plugin, text=True, capture_output=True, check=False)
    assert ended.returncode == 1
    assert "there is no plan nobody" in ended.stderr


class Terminal:
    """The plugin on a terminal of its own."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (30, 100))
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            argv, env=environment | {"TERM": "xterm-256color"}, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        self.slave = slave
        self.said = ""

    def until(self, text: str, timeout_s: float = 30) -> None:
        """Reads until the screen has shown a text since the last call."""
        end_s, since = time.monotonic() + timeout_s, len(self.said)
        while text not in self.said[since:]:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end_s - time.monotonic()))
            assert ready, f"{text!r} did not appear in {self.said[since:]!r}"
            self.said += os.read(self.master, 65536).decode(errors="replace")

    def send(self, keys: str) -> None:
        """Presses keys."""
        os.write(self.master, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Another size, as a terminal says it."""
        termios.tcsetwinsize(self.master, (rows, columns))
        self.process.send_signal(signal.SIGWINCH)

    def end(self) -> int:
        """The exit status."""
        self.until("\x1b[?1049l")
        status = self.process.wait(timeout=20)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is as it was"
        return status

    def close(self) -> None:
        """Ends what is still there."""
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(desk: Any) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        argv = [sys.executable, "-m", "servingplan.plugin", *arguments, "-n", desk.namespace]
        started.append(Terminal(argv, desk.cluster.environment()))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.mark.parametrize("leave", ["q", "\x03", "terminate"], ids=["q", "ctrl-c", "terminated"])
def test_top_leaves_the_terminal_as_it_was(desk: Any, terminal: Callable[..., Terminal], leave: str) -> None:
    desk.plan()
    found = terminal("top", "chat", "--every", "0.2")
    found.until("\x1b[?1049h")
    found.until("q quit")
    if leave == "terminate":
        found.process.terminate()
    elif leave == "q":
        found.send(leave)
    else:
        # The terminal is no controlling one here, so it would not turn the key into a signal.
        found.process.send_signal(signal.SIGINT)
    assert found.end() == 0


def test_top_follows_the_plans(desk: Any, terminal: Callable[..., Terminal]) -> None:
    desk.plan()
    desk.plan("code")
    found = terminal("top", "--every", "0.2")
    found.until(" 2 plans")
    found.until("↑↓ choose")
    assert f"{desk.namespace}/chat" in found.said
    found.send("\x1b[B")
    found.until(f" {desk.namespace}/code ")
    desk.report("code", demand=[{"class": "chat", "observed": "77.7", "planned": "80", "routed": "80"}])
    found.until("77.7/s")
    found.until("LAST MINUTES")
    found.resize(20, 60)
    found.until("q quit")
    found.until("q quit")
    last = found.said.rpartition("\x1b[H")[2]
    assert len(last.splitlines()) <= 21
    found.send("q")
    assert found.end() == 0


def test_approval_is_asked_for_on_a_terminal(desk: Any, bodies: Any, terminal: Callable[..., Terminal]) -> None:
    desk.plan(spec=RECOMMEND, proposal=bodies.PROPOSAL)
    found = terminal("approve", "chat", "--timeout", "0")
    found.until("Approve proposal 7f3a21? [y/N] ")
    found.send("n\n")
    found.until("Nothing is approved.")
    assert found.process.wait(timeout=20) == 1
    assert APPROVE not in desk.get()["metadata"].get("annotations", {})
    found = terminal("approve", "chat", "--timeout", "0")
    found.until("Approve proposal 7f3a21? [y/N] ")
    found.send("y\n")
    found.until("is approved")
    assert found.process.wait(timeout=20) == 0
    assert desk.get()["metadata"]["annotations"][APPROVE] == "7f3a21"
