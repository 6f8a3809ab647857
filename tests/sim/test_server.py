"""The simulated vLLM as its clients, its scraper and its kubelet see it: a real process on loopback."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

REAL_PAGE = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "vllm-0.32.0-metrics.txt"
START = "import sys; from servingplan.sim.cli import main; sys.exit(main(sys.argv[1:]))"
DEADLINE_S = 30.0

FAST = ["--sim-speed=20"]
SLOW = ["--sim-alpha-ms=100", "--sim-beta-us=1", "--sim-gamma-ns=1"]


@dataclass(frozen=True)
class Simulator:
    process: subprocess.Popen[bytes]
    url: str

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=DEADLINE_S) as answer:
            return answer.read().decode()

    def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def chat(self, text: str = "Why is the sky blue?", **body: Any) -> tuple[int, dict[str, Any]]:
        return self.post("/v1/chat/completions", messages=[{"role": "user", "content": text}], **body)

    def value(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.get("/metrics"))
        samples = [s for family in families for s in family.samples if s.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"gave up waiting until {what}"
        time.sleep(0.01)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def simulator(*flags: str, wait: bool = True, **environment: str) -> Iterator[Simulator]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        sys.executable,
        "-c",
        START,
        "Qwen/Qwen3-32B",
        "--tensor-parallel-size=2",
        "--host=127.0.0.1",
        f"--port={port}",
    ]
    process = subprocess.Popen([*arguments, *flags], env={**os.environ, **environment}, stderr=subprocess.PIPE)
    try:
        if wait:
            wait_for(lambda: listening(port) or process.poll() is not None, "the port is open")
        yield Simulator(process, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    with simulator("--served-model-name", "qwen", "chat", *FAST, "--max-model-len=4096") as started:
        yield started


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in answer.content:
        if line.strip():
            assert line.startswith(b"data: ")
            yield line.removeprefix(b"data: ").decode().strip()


async def stream(url: str, **body: Any) -> list[str]:
    async with aiohttp.ClientSession(url) as session, session.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        return [event async for event in events(answer)]


HELLO = [{"role": "user", "content": "hello"}]


def test_it_answers_to_every_served_name_and_signs_with_the_first(server: Simulator) -> None:
    cards = json.loads(server.get("/v1/models"))["data"]
    assert [(card["id"], card["root"], card["max_model_len"]) for card in cards] == [
        ("qwen", "Qwen/Qwen3-32B", 4096),
        ("chat", "Qwen/Qwen3-32B", 4096),
    ]
    for name in ("qwen", "chat"):
        status, answer = server.chat(model=name, max_tokens=3, ignore_eos=True)
        assert (status, answer["model"], answer["system_fingerprint"]) == (200, "qwen", socket.gethostname())
        assert answer["choices"][0]["message"]["content"] == f"qwen {socket.gethostname()} token1 token2"
        assert answer["usage"]["completion_tokens"] == 3


def test_an_unknown_model_is_not_found_in_vllms_words(server: Simulator) -> None:
    status, answer = server.chat(model="nope")
    message = "The model `nope` does not exist. Valid aliases: qwen, chat"
    assert status == 404
    assert answer == {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}}


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("/v1/completions", {"prompt": [1] * 4096}, "maximum context length is 4096 tokens"),
        ("/v1/completions", {"prompt": [1] * 4000, "max_tokens": 200}, "too large: 200"),
        ("/v1/completions", {"prompt": [1], "max_tokens": 0}, "at least 1"),
        ("/v1/completions", {"prompt": [1], "max_tokens": "many"}, "whole number"),
        ("/v1/completions", {"prompt": {}}, "prompt must be"),
        ("/v1/completions", {"prompt": [1], "n": 3}, "more than one choice"),
        ("/v1/chat/completions", {"messages": []}, "at least one message"),
        ("/v1/chat/completions", {"messages": ["hello"]}, "must be an object"),
    ],
)
def test_a_bad_request_is_refused_with_what_is_wrong(server: Simulator, path: str, body: dict[str, Any], part: str) -> None:
    status, answer = server.post(path, **body)
    assert status == 400
    assert (answer["error"]["type"], answer["error"]["code"]) == ("BadRequestError", 400)
    assert part in answer["error"]["message"]


def test_tokens_are_counted_from_characters_or_taken_from_the_list(server: Simulator) -> None:
    def prompt_tokens(prompt: Any) -> int:
        return server.post("/v1/completions", prompt=prompt, max_tokens=1)[1]["usage"]["prompt_tokens"]

    assert prompt_tokens("x" * 400) == 100
    assert prompt_tokens(list(range(77))) == 77


def test_output_length_is_drawn_repeatably_between_the_limits(server: Simulator) -> None:
    def tokens(**body: Any) -> tuple[int, str]:
        answer = server.post("/v1/completions", prompt="x", **body)[1]
        return answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]

    assert tokens(max_tokens=7, ignore_eos=True) == (7, "length")
    drawn = tokens(max_tokens=4000, seed=5)
    assert drawn == tokens(max_tokens=4000, seed=5)
    assert drawn[1] == "stop"
    assert tokens(max_tokens=4000, seed=5, min_tokens=drawn[0] + 9) == (drawn[0] + 9, "stop")
    assert tokens(max_tokens=drawn[0] - 1, seed=5) == (drawn[0] - 1, "length")


def test_a_stream_ends_with_its_reason_its_usage_and_done(server: Simulator) -> None:
    got = asyncio.run(
        stream(server.url, messages=HELLO, stream=True, max_tokens=5, ignore_eos=True, stream_options={"include_usage": True})
    )
    *chunks, usage, done = got
    parsed = [json.loads(chunk) for chunk in chunks]
    assert done == "[DONE]"
    assert parsed[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in parsed)
    assert text == f"qwen {socket.gethostname()} token1 token2 token3 token4"
    assert [chunk["choices"][0]["finish_reason"] for chunk in parsed] == [None] * 5 + ["length"]
    assert json.loads(usage)["choices"] == []
    assert json.loads(usage)["usage"]["completion_tokens"] == 5


def test_a_text_completion_streams_texts(server: Simulator) -> None:
    async def texts() -> str:
        body = {"prompt": "hello", "stream": True, "max_tokens": 3, "ignore_eos": True}
        async with aiohttp.ClientSession(server.url) as session, session.post("/v1/completions", json=body) as answer:
            chunks = [json.loads(event) async for event in events(answer) if event != "[DONE]"]
        return "".join(chunk["choices"][0]["text"] for chunk in chunks)

    assert asyncio.run(texts()) == f"qwen {socket.gethostname()} token1 token2"


def test_a_repeated_prompt_hits_the_prefix_cache(server: Simulator) -> None:
    before = server.value("vllm:prefix_cache_hits_total")
    prompt = "a question long enough for several blocks " * 20
    cached = [server.chat(prompt, max_tokens=1)[1]["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
    assert cached[0] == 0
    assert cached[1] >= 160
    assert server.value("vllm:prefix_cache_hits_total") - before == cached[1]


def test_metrics_count_what_was_served(server: Simulator) -> None:
    def counted() -> list[float]:
        names = ("request_prompt_tokens_sum", "generation_tokens_total", "time_to_first_token_seconds_count",
                 "inter_token_latency_seconds_count", "e2e_request_latency_seconds_count")  # fmt: skip
        return [server.value(f"vllm:{name}", model_name="qwen", engine="0") for name in names] + [
            server.value("vllm:request_success_total", finished_reason="length")
        ]

    before = counted()
    for _ in range(3):
        server.post("/v1/completions", prompt=[1] * 50, max_tokens=10, ignore_eos=True)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [150, 30, 3, 27, 3, 3]
    assert server.value("vllm:num_requests_running") == 0
    assert server.value("vllm:kv_cache_usage_perc") == 0


def test_the_metrics_page_has_vllms_families_types_labels_and_buckets(server: Simulator) -> None:
    if not REAL_PAGE.exists():
        pytest.skip(f"needs {REAL_PAGE}")

    def shape(page: str) -> dict[str, tuple[str, dict[str, set[frozenset[str]]], frozenset[str]]]:
        return {
            family.name: (
                family.type,
                {s.name: {frozenset(t.labels) for t in family.samples if t.name == s.name} for s in family.samples},
                frozenset(s.labels["le"] for s in family.samples if "le" in s.labels),
            )
            for family in text_string_to_metric_families(page)
            if family.name.startswith("vllm:")
        }

    ours, real = shape(server.get("/metrics")), shape(REAL_PAGE.read_text())
    # Its labels mirror a configuration object that changes with every release; what is read from it is checked by name.
    ours_config, real_config = ours.pop("vllm:cache_config_info"), real.pop("vllm:cache_config_info")
    assert ours_config[0] == real_config[0]
    assert (
        {"num_gpu_blocks", "block_size", "engine"}
        <= next(iter(ours_config[1]["vllm:cache_config_info"]))
        <= next(iter(real_config[1]["vllm:cache_config_info"]))
    )
    # The real page's model has another context length, which sets the edges of token counts.
    lengths = {name for name in real if name.endswith("_tokens") and real[name][0] == "histogram"}
    for name in lengths:
        assert real[name][2] - {"+Inf"} < ours[name][2]
        ours[name], real[name] = (*ours[name][:2], frozenset()), (*real[name][:2], frozenset())
    assert ours == real


def test_the_small_routes_answer(server: Simulator) -> None:
    assert server.get("/health") == server.get("/ping") == ""
    assert json.loads(server.get("/version"))["version"].startswith("0.32")


def test_the_environment_and_vllms_spellings_are_understood() -> None:
    flags = ("--max_model_len=1000", "--dtype", "bfloat16", "--served-model-name", "a", "--no-enable-prefix-caching")
    with simulator(*flags, SIM_SPEED="20", SIM_ACCELERATOR="NVIDIA-A100-SXM4-80GB") as started:
        assert json.loads(started.get("/v1/models"))["data"][0]["max_model_len"] == 1000
        config = next(line for line in started.get("/metrics").splitlines() if line.startswith("vllm:cache_config_info{"))
        assert 'enable_prefix_caching="False"' in config


def test_weights_that_leave_no_room_for_the_longest_sequence_stop_the_start() -> None:
    with simulator(wait=False, SIM_ACCELERATOR="NVIDIA-L4") as started:
        _, errors = started.process.communicate(timeout=DEADLINE_S)
    assert started.process.returncode == 1
    assert b"less than the longest sequence" in errors


def test_starting_costs_no_numeric_library() -> None:
    code = "import sys, servingplan.sim.cli, servingplan.sim.server; sys.exit(bool({'numpy', 'numba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_port_stays_closed_for_the_cold_start() -> None:
    started_s = time.monotonic()
    with simulator(wait=False, SIM_COLD_START_S="1.5") as started:
        port = int(started.url.rsplit(":", 1)[1])
        wait_for(lambda: listening(port), "the port is open")
        assert time.monotonic() - started_s >= 1.5
        assert started.get("/health") == ""


def test_sigterm_during_the_cold_start_ends_at_once() -> None:
    with simulator(wait=False, SIM_COLD_START_S="600") as started:
        assert started.process.stderr is not None
        started.process.stderr.readline()  # its first line comes when the signal handlers are about to be set
        wait_for(lambda: _catches_sigterm(started.process.pid), "SIGTERM is handled")
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(DEADLINE_S) == 0


def _catches_sigterm(pid: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & (1 << (signal.SIGTERM - 1)))


def test_headers_come_before_the_first_token() -> None:
    async def until_headers_and_token(url: str) -> tuple[float, float]:
        body = {"messages": HELLO, "stream": True, "max_tokens": 2, "ignore_eos": True}
        sent_s = time.monotonic()
        async with aiohttp.ClientSession(url) as session, session.post("/v1/chat/completions", json=body) as answer:
            headers_s = time.monotonic() - sent_s
            await anext(events(answer))
            return headers_s, time.monotonic() - sent_s

    with simulator("--sim-alpha-ms=1500") as started:
        headers_s, token_s = asyncio.run(until_headers_and_token(started.url))
    assert headers_s < 1.5 <= token_s


def test_a_client_that_leaves_frees_its_slot_and_its_blocks() -> None:
    async def leave(url: str, *, streaming: bool) -> None:
        body = {"messages": HELLO, "stream": streaming, "max_tokens": 5000, "ignore_eos": True}
        async with aiohttp.ClientSession(url) as session:
            asking = asyncio.create_task(session.post("/v1/chat/completions", json=body).__aenter__())
            await asyncio.to_thread(wait_for, lambda: started.value("vllm:num_requests_running") == 1, "it runs")
            if streaming:
                (await asking).close()
            asking.cancel()

    with simulator(*SLOW) as started:
        for streaming in (True, False):
            asyncio.run(leave(started.url, streaming=streaming))
            wait_for(lambda: started.value("vllm:num_requests_running") == 0, "the request is gone")
            assert started.value("vllm:kv_cache_usage_perc") == 0
        assert started.value("vllm:request_success_total") == 0
        status, _ = started.chat(max_tokens=2)
        assert status == 200


async def _begin(session: aiohttp.ClientSession, **body: Any) -> tuple[aiohttp.ClientResponse, AsyncIterator[str]]:
    answer = await session.post("/v1/chat/completions", json={"messages": HELLO, "stream": True, "ignore_eos": True, **body})
    got = events(answer)
    await anext(got)
    return answer, got


def test_a_drain_finishes_what_runs_aborts_what_comes_and_ends_when_idle() -> None:
    async def drained(simulated: Simulator) -> tuple[list[str], dict[str, Any], str]:
        async with aiohttp.ClientSession(simulated.url) as session:
            _, got = await _begin(session, max_tokens=10)
            simulated.process.send_signal(signal.SIGTERM)
            while True:
                async with session.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1}) as late:
                    answer = await late.json()
                if answer["choices"][0]["finish_reason"] == "abort":
                    break
            async with session.get("/health") as health:
                assert health.status == 200
            return [event async for event in got], answer, simulated.url

    with simulator(*SLOW, "--shutdown-timeout=60") as started:
        finished, late, _ = asyncio.run(drained(started))
        assert started.process.wait(DEADLINE_S) == 0
    assert finished[-1] == "[DONE]"
    assert json.loads(finished[-2])["choices"][0] == {
        "index": 0, "delta": {"content": " token9"}, "logprobs": None, "finish_reason": "length"
    }  # fmt: skip
    assert late["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("flags", [(), ("--shutdown-timeout=0.3",)])
def test_what_the_shutdown_timeout_does_not_cover_is_aborted(flags: tuple[str, ...]) -> None:
    async def aborted(simulated: Simulator) -> list[str]:
        async with aiohttp.ClientSession(simulated.url) as session:
            _, got = await _begin(session, max_tokens=5000)
            simulated.process.send_signal(signal.SIGTERM)
            return [event async for event in got]

    with simulator(*SLOW, *flags) as started:
        *_, last, done = asyncio.run(aborted(started))
        assert started.process.wait(DEADLINE_S) == 0
    assert (json.loads(last)["choices"][0]["finish_reason"], done) == ("abort", "[DONE]")


def test_an_idle_server_ends_at_once_on_sigterm() -> None:
    with simulator(*FAST, "--shutdown-timeout=600") as started:
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(DEADLINE_S) == 0


def test_requests_together_take_hardly_longer_than_one() -> None:
    async def together(url: str, n: int) -> float:
        body = {"prompt": [1] * 20, "max_tokens": 10, "ignore_eos": True}
        async with aiohttp.ClientSession(url) as session:

            async def ask() -> None:
                async with session.post("/v1/completions", json=body) as answer:
                    assert answer.status == 200
                    await answer.read()

            begun_s = time.monotonic()
            await asyncio.gather(*(ask() for _ in range(n)))
            return time.monotonic() - begun_s

    with simulator(*SLOW) as started:
        asyncio.run(together(started.url, 16))
        steps = started.value("vllm:iteration_tokens_total_count")
    assert steps <= 13, "16 x 10 tokens one after the other would be 160 steps"
