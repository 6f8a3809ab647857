"""Whatever is wrong with a server ends in one sentence with its cause and the cure, and no traceback."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from .conftest import TOKEN, Outcome, models, stream, thread_server

Profile = Callable[..., Outcome]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def test_nobody_listens(profile: Profile) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        outcome = profile("--endpoint", f"http://127.0.0.1:{held.getsockname()[1]}", "--model", "qwen")
    assert outcome.status == 1
    assert "cannot reach http://127.0.0.1" in outcome.sentence
    assert "is --endpoint right" in outcome.sentence


def test_an_address_that_is_none(profile: Profile) -> None:
    assert "give --endpoint such as http://" in profile("--endpoint", "my-model:8000", "--model", "qwen").sentence


async def html(_: web.Request) -> web.Response:
    return web.Response(text="<html><body>It works!</body></html>", content_type="text/html")


async def other_json(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def missing(_: web.Request) -> web.Response:
    return web.Response(status=404, text="Not Found")


async def broken(_: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "CUDA out of memory", "code": 500}}, status=500)


async def denied(_: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "Incorrect API key sk-secret"}}, status=401)


@pytest.mark.parametrize(
    ("handler", "part"),
    [
        (html, "does not answer as an OpenAI server does, but with '<html>"),
        (other_json, "does not answer as an OpenAI server does"),
        (missing, "/v1/models does not exist (HTTP 404): give --endpoint the root"),
        (broken, "failed (HTTP 500, CUDA out of memory)"),
        (denied, "denies access (HTTP 401): name the variable that holds the key by --api-key-env"),
    ],
    ids=["html", "json", "404", "500", "401"],
)
def test_what_is_no_openai_server_or_a_sick_one(profile: Profile, handler: Handler, part: str) -> None:
    with thread_server(web.get("/v1/models", handler)) as url:
        outcome = profile("--endpoint", url, "--model", "qwen")
    assert outcome.status == 1
    assert part in outcome.sentence


def test_a_wrong_model_is_told_the_right_ones(profile: Profile) -> None:
    with thread_server(web.get("/v1/models", models)) as url:
        outcome = profile("--endpoint", url + "/v1/", "--model", "llama")
    assert outcome.status == 1
    assert "does not serve 'llama' but qwen: give --model one of those" in outcome.sentence


async def in_one_piece(_: web.Request) -> web.Response:
    return web.json_response({"choices": [{"text": "hello"}]})


async def no_tokens(request: web.Request) -> web.StreamResponse:
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}}
    return await stream(request, [json.dumps(usage), "[DONE]"])


async def too_short(request: web.Request) -> web.StreamResponse:
    return await stream(request, [TOKEN, TOKEN.replace("null", '"stop"'), "[DONE]"])


async def cut_off(request: web.Request) -> web.StreamResponse:
    return await stream(request, [TOKEN] * 3, cut=True)


async def ended_early(request: web.Request) -> web.StreamResponse:
    return await stream(request, [TOKEN] * 3)


async def error_in_stream(request: web.Request) -> web.StreamResponse:
    return await stream(request, [TOKEN, json.dumps({"error": {"message": "engine dead"}})])


async def too_long(_: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "maximum context length is 100 tokens"}}, status=400)


async def shed(_: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "queue full"}}, status=429)


@pytest.mark.parametrize(
    ("handler", "part"),
    [
        (in_one_piece, "answered with application/json although a stream was asked for"),
        (no_tokens, "without a single token"),
        (too_short, "ended an answer after 2 of 128 tokens (stop): it must heed ignore_eos"),
        (cut_off, "broke after 3 tokens"),
        (ended_early, "broke after 3 tokens"),
        (error_in_stream, "engine dead"),
        (too_long, "refuses the request (HTTP 400): maximum context length is 100 tokens"),
        (shed, "sheds requests (HTTP 429, queue full)"),
        (broken, "/v1/completions failed (HTTP 500, CUDA out of memory)"),
        (missing, "/v1/completions does not exist (HTTP 404)"),
    ],
)
def test_completions_that_cannot_be_measured(profile: Profile, handler: Handler, part: str) -> None:
    with thread_server(web.get("/v1/models", models), web.post("/v1/completions", handler)) as url:
        outcome = profile("--endpoint", url, "--model", "qwen")
    assert outcome.status == 1
    assert part in outcome.sentence


def test_a_silent_server_is_given_up(profile: Profile) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        return await stream_then_wait(request)

    with thread_server(web.get("/v1/models", models), web.post("/v1/completions", never)) as url:
        outcome = profile("--endpoint", url, "--model", "qwen", "--silence", "0.3")
    assert "sent nothing for 0.3 s" in outcome.sentence


async def stream_then_wait(request: web.Request) -> web.StreamResponse:
    import asyncio

    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(60)
    return response


def test_lengths_beyond_the_context_are_refused_before_anything_is_sent(profile: Profile) -> None:
    with thread_server(web.get("/v1/models", models)) as url:
        outcome = profile("--endpoint", url, "--model", "qwen", "--lengths", "4000:200")
    assert "4250 tokens with the spread of outputs, the model takes 4096" in outcome.sentence


def test_an_output_that_cannot_be_written_fails_before_the_measurement(profile: Profile, tmp_path: Path) -> None:
    where = ["--endpoint", "http://127.0.0.1:9", "--model", "qwen", "-o"]
    assert "No such file or directory" in profile(*where, str(tmp_path / "nowhere" / "p.yaml")).sentence
    assert "it is a directory" in profile(*where, str(tmp_path)).sentence


def test_the_api_key_comes_from_the_environment_and_is_never_shown(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    async def guarded(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return await denied(request)

    with thread_server(web.get("/v1/models", guarded)) as url:
        unset = profile("--endpoint", url, "--model", "qwen", "--api-key-env", "PROFILE_KEY")
        assert "PROFILE_KEY is empty or not set" in unset.sentence
        monkeypatch.setenv("PROFILE_KEY", "sk-secret")
        refused = profile("--endpoint", url, "--model", "qwen", "--api-key-env", "PROFILE_KEY")
    assert seen == ["Bearer sk-secret"]
    assert "is the key in $PROFILE_KEY the right one?" in refused.sentence
    assert "sk-secret" not in refused.err


@pytest.mark.parametrize(
    ("text", "part"),
    [("{", "is not YAML"), ("maxNumSeqs: 3\n", "is no profile (give coefficients or points"), (None, "cannot read")],
)
def test_a_believed_profile_that_is_none(profile: Profile, tmp_path: Path, text: str | None, part: str) -> None:
    path = tmp_path / "believed.yaml"
    if text is not None:
        path.write_text(text)
    outcome = profile("--endpoint", "http://127.0.0.1:9", "--model", "qwen", "--believed", str(path))
    assert part in outcome.sentence


@pytest.mark.parametrize(
    "arguments",
    [["--concurrency", "0"], ["--rate", "x"], ["--lengths", "1"], ["--max-duration", "-1"], ["--max-num-seqs", "1.5"]],
)
def test_flags_are_checked(profile: Profile, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        profile("--endpoint", "http://x", "--model", "qwen", *arguments)
    assert ended.value.code == 2
    assert "must be" in capsys.readouterr().err
