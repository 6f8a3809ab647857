"""``servingplan picker`` as it runs in a pod: its own process, the real decision, real Envoy."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from servingplan.api.routing_table import Engine, RoutingTable

CHAT = "/v1/chat/completions"
DEADLINE_S = 20.0


class Command:
    """A picker's process.

    Attributes:
        target: Where Envoy asks it.
        out: What it has written to standard output, and ``err`` to standard error.
    """

    def __init__(self, folder: Path, http_port: int, *flags: str) -> None:
        self.target, self._http_port = f"unix:{folder / 'picker.sock'}", http_port
        self._out, self._err = folder / "out", folder / "err"
        argv = [sys.executable, "-m", "servingplan", "picker", "--namespace=llm", "--plan=chat", f"--listen={self.target}"]
        files = [f"--table-file={folder / 'table.json'}", f"--endpoints-file={folder / 'endpoints.json'}"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen([*argv, f"--http-port={http_port}", *files, *flags], stdout=out, stderr=err)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def get(self, path: str) -> tuple[int, str]:
        assert self.process.poll() is None, self.err
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)


def with_engines(table: RoutingTable) -> RoutingTable:
    """The table, with a fast engine in every pool."""
    engine = Engine(alpha_s=0.01, beta_s=1e-5, gamma_s=1e-9, max_num_seqs=64, max_num_batched_tokens=2048)
    models = [
        model.model_copy(update={"pools": tuple(pool.model_copy(update={"engine": engine}) for pool in model.pools)})
        for model in table.models
    ]
    return table.model_copy(update={"models": tuple(models)})


@pytest.fixture
def pods(start_upstream):
    return {"chat-large": [start_upstream("large-0"), start_upstream("large-1")], "chat-small": [start_upstream("small-0")]}


@pytest.fixture
def command(tmp_path, table, pods, free_port):
    """Starts the command for the pods."""
    started: list[Command] = []

    def start(*flags: str, **picker: Any) -> Command:
        (tmp_path / "table.json").write_text(with_engines(table(**picker)).model_dump_json(by_alias=True))
        listed = {pool: [pod.address for pod in members] for pool, members in pods.items()}
        (tmp_path / "endpoints.json").write_text(json.dumps(listed))
        started.append(Command(tmp_path, free_port(), *flags))
        return started[-1]

    yield start
    for each in started:
        each.close()


def ask_many(router: Any, count: int, **body: Any) -> Counter[str]:
    seen: Counter[str] = Counter()

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            for number in range(count):
                sent = {"messages": [{"role": "user", "content": f"secret-{number}"}], **body}
                async with session.post(router.url + CHAT, json=sent) as answer:
                    seen[(await answer.json())["upstream"] if answer.status == 200 else str(answer.status)] += 1

    asyncio.run(run())
    return seen


def test_it_decides_writes_receipts_and_ends_when_told(command, pods, start_router, start_upstream, until):
    spare = start_upstream("spare")
    picker = command("--receipts", explain=True)
    until(picker.is_ready, "the picker is ready")
    addresses = [pod.address for members in pods.values() for pod in members]
    router = start_router(picker, addresses, spare.address)

    assert set(ask_many(router, 20, model="large.v1")) == {"large-0", "large-1"}, "the replicas of a model share its requests"
    assert set(ask_many(router, 5, model="small.v1")) == {"small-0"}
    assert ask_many(router, 2, model="unknown") == {"404": 2}
    until(lambda: picker.out.count("\n") >= 25, "the receipts are written")
    receipts = [json.loads(line) for line in picker.out.splitlines()]
    assert {receipt["terms"]["model"] for receipt in receipts} == {"large.v1", "small.v1"}
    assert {runner["model"] for receipt in receipts for runner in receipt["terms"]["runners_up"]} == {"large.v1"}
    until(lambda: "servingplan_picker_requests_in_flight 0.0" in picker.get("/metrics")[1], "nothing is in flight")
    assert "secret" not in picker.out + picker.err + picker.get("/metrics")[1]

    picker.process.send_signal(signal.SIGTERM)
    assert picker.process.wait(DEADLINE_S) == 0
    assert ask_many(router, 3) == {"spare": 3}


def test_a_spoilt_table_changes_nothing(command, pods, start_router, start_upstream, until, tmp_path):
    picker = command()
    until(picker.is_ready, "the picker is ready")
    router = start_router(
        picker, [pod.address for members in pods.values() for pod in members], start_upstream("spare").address
    )
    (tmp_path / "table.json").write_text('{"plan": "chat"')
    until(lambda: "servingplan_picker_table_refused 1.0" in picker.get("/metrics")[1], "the table is refused")
    assert set(ask_many(router, 3, model="small.v1")) == {"small-0"}


def test_killed_it_leaves_the_weights(command, pods, start_router, start_upstream, until):
    spare = start_upstream("spare")
    picker = command()
    until(picker.is_ready, "the picker is ready")
    router = start_router(picker, [pod.address for members in pods.values() for pod in members], spare.address)
    assert "spare" not in ask_many(router, 3)
    picker.process.kill()
    assert ask_many(router, 10) == {"spare": 10}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--listen", "nowhere"], "'nowhere' is neither unix:/path nor host:port"),
        (["--http-port", "99999"], "'99999' is no port"),
        (["--scrape-interval", "0"], "'0' is no number of seconds from 0.01 to 60"),
        (["--body-limit", "-1"], "'-1' is no number of bytes up to 1 GiB"),
        (["--namespace", ""], "--namespace is needed where POD_NAMESPACE is not set"),
        (["--endpoints-file", "x"], "--endpoints-file needs --table-file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_flags_that_cannot_be_used_are_refused(flags, said, capsys):
    from servingplan.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["picker", "--plan", "chat", "--namespace", "llm", *flags])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_an_address_that_cannot_be_had_is_one_sentence(command, tmp_path, until):
    picker = command("--listen=203.0.113.1:9")
    until(lambda: picker.process.poll() is not None, "it ends")
    assert picker.process.returncode == 1
    assert "cannot listen on 203.0.113.1:9" in picker.err
    assert "Traceback" not in picker.err
