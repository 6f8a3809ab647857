"""Every failure is one sentence on standard error, and an exit status that says whose it is."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMANDS = [["explain", "chat"], ["approve", "chat", "x"], ["pause", "chat"], ["history", "chat"], ["top", "chat"], ["top"]]


def status(code: int, message: str, **details: Any) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message, "details": details}


def one_sentence(text: str) -> str:
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text.strip()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (
            404,
            "404 page not found\n",
            "the cluster does not know modelservingplans.servingplan.io: install servingplan",
        ),
        (401, status(401, "Unauthorized"), "log in again"),
        (500, status(500, "etcd is sad"), "500 etcd is sad"),
        (200, "<html>a proxy</html>", "it is no API server"),
        (
            403,
            status(403, 'forbidden: User "eve" cannot get resource "modelservingplans" in API group "servingplan.io"'),
            "eve may not",
        ),
    ],
    ids=["no definition", "no login", "broken", "no API server", "no rights"],
)
def test_what_the_server_says_becomes_a_sentence(
    run: Any, answering: Callable[..., Any], command: list[str], code: int, body: Any, said: str
) -> None:
    ended = run(*command, "--kubeconfig", answering(code, body).kubeconfig)
    assert ended.status == 1
    assert said in one_sentence(ended.err)
    assert ended.out == ""


def test_missing_rights_name_verb_resource_and_namespace(run: Any, answering: Callable[..., Any]) -> None:
    given = answering(403, status(403, 'forbidden: User "eve" cannot get resource'))
    assert run("explain", "chat", "--kubeconfig", given.kubeconfig).err == (
        "eve may not get modelservingplans.servingplan.io in namespace llm\n"
    )
    assert run("top", "-A", "--kubeconfig", given.kubeconfig).err == (
        "eve may not list modelservingplans.servingplan.io of the cluster\n"
    )


def test_a_server_that_is_away(run: Any, kubeconfig_for: Callable[..., str]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens there
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        ended = run("explain", "chat", "--kubeconfig", kubeconfig_for(url))
    assert ended.status == 1
    assert one_sentence(ended.err).startswith(f"the API server {url} does not answer: ")
    assert "refused" in ended.err
    assert "object at 0x" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "chat", "--kubeconfig", "/not/there"], "there is no kubeconfig /not/there"),
        (["explain", "chat", "--context", "elsewhere"], "elsewhere"),
        (["explain"], "NAME"),
        (["explain", "nodes/a"], "give the name of a plan, such as chat or msp/chat"),
        (["approve", "chat", "--timeout", "soon"], "write a time such as 30s or 2m"),
        (["dance", "chat"], "dance"),
    ],
)
def test_what_is_asked_for_wrongly(run: Any, kubeconfig_for: Callable[..., str], arguments: list[str], said: str) -> None:
    given = [] if "--kubeconfig" in arguments else ["--kubeconfig", kubeconfig_for("http://127.0.0.1:9")]
    ended = run(*arguments, *given)
    assert ended.status == 2
    assert said in ended.err


def test_no_kubeconfig_at_all(run: Any, tmp_path: Path) -> None:
    code = "import sys; from servingplan.plugin.cli import main; sys.exit(main(['top']))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(tmp_path), "PATH": ""},
        text=True,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "no cluster to ask" in one_sentence(ended.stderr)


def test_top_without_rich_says_what_to_install(kubeconfig_for: Callable[..., str]) -> None:
    code = "import sys; sys.modules['rich'] = None; from servingplan.plugin.cli import main; sys.exit(main(sys.argv[1:]))"
    given = ["top", "--kubeconfig", kubeconfig_for("http://127.0.0.1:9")]
    ended = subprocess.run([sys.executable, "-c", code, *given], text=True, capture_output=True, check=False)
    assert ended.returncode == 1
    assert one_sentence(ended.stderr) == "top needs the package rich: install servingplan[cli]"


def test_flags_stand_before_and_behind_the_command(run: Any, answering: Callable[..., Any]) -> None:
    given = answering(404, status(404, "not found", name="chat"))
    for text in ("-n web history msp/chat", "history chat --namespace web", "history -n web chat"):
        run(*text.split(), "--kubeconfig", given.kubeconfig)
        assert given.paths[-2].startswith("/apis/servingplan.io/v1alpha1/namespaces/web/modelservingplans/chat")
    run("history", "chat", "--kubeconfig", given.kubeconfig)
    assert "/namespaces/llm/" in given.paths[-1], "the context's own"
