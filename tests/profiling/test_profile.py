"""The command against the simulated vLLM: a real process on loopback, with small levels."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from servingplan.api.v1alpha1 import Profile

from .conftest import Outcome, simulator

ALPHA_MS, BETA_MS, GAMMA_MS = 5.0, 0.04, 0.0004
COST = [f"--sim-alpha-ms={ALPHA_MS}", f"--sim-beta-us={1e3 * BETA_MS}", f"--sim-gamma-ns={1e6 * GAMMA_MS}"]
QUICK = ["--lengths", "64:40,2000:40", "--concurrency", "1,2,4", "--max-duration", "8"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with simulator(*COST, "--max-num-batched-tokens=1024", "--max-model-len=4096") as started:
        yield started.url


def read(path: Path) -> Profile:
    return Profile.model_validate(yaml.safe_load(path.read_text()))


def test_a_few_seconds_recover_the_coefficients_and_the_limits(
    profile: Callable[..., Outcome], server: str, tmp_path: Path
) -> None:
    target = tmp_path / "profile.yaml"
    outcome = profile("--endpoint", server, "--model", "qwen", "-o", str(target), *QUICK)
    assert outcome.status == 0, outcome.err
    found = read(target)
    assert found.coefficients is not None
    assert float(found.coefficients.alpha_ms) == pytest.approx(ALPHA_MS, rel=0.05)
    # A few requests on a busy machine: bench/profiling takes the time it takes to be exact.
    assert float(found.coefficients.beta_ms) == pytest.approx(BETA_MS, rel=0.25)
    assert float(found.coefficients.gamma_ms) == pytest.approx(GAMMA_MS, rel=0.20)
    assert found.max_num_batched_tokens == 1024
    page = urllib.request.urlopen(server + "/metrics").read().decode()
    assert f'kv_cache_size_tokens="{found.kv_tokens}"' in page
    assert target.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert outcome.out == ""


def test_a_rate_is_measured_until_requests_pile_up(profile: Callable[..., Outcome], server: str, tmp_path: Path) -> None:
    target = tmp_path / "profile.yaml"
    outcome = profile(
        "--endpoint", server, "--model", "qwen", "-o", str(target),
        "--rate", "4,60,90", "--lengths", "1000:16", "--max-duration", "6",
    )  # fmt: skip
    assert outcome.err.startswith("4 requests/s, 1000 prompt")
    assert "at 60 requests/s requests pile up" in outcome.err
    assert "90 requests/s, 1000 prompt" not in outcome.err


def test_what_a_log_shows_is_yaml_and_no_request_stays_behind(server: str) -> None:
    command = [sys.executable, "-m", "servingplan.profiling", "--endpoint", server, "--model", "qwen"]
    ended = subprocess.run(
        [*command, "--lengths", "64:24", "--concurrency", "1,4", "--max-duration", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert Profile.model_validate(yaml.safe_load(ended.stdout)).coefficients is not None
    page = urllib.request.urlopen(server + "/metrics").read().decode()
    running = next(line for line in page.splitlines() if line.startswith("vllm:num_requests_running{"))
    assert running.endswith(" 0.0")


@pytest.mark.parametrize("dies", [False, True], ids=["interrupt", "server dies"])
def test_an_early_end_leaves_what_was_measured(tmp_path: Path, dies: bool) -> None:
    target = tmp_path / "profile.yaml"
    command = [sys.executable, "-m", "servingplan.profiling", "--model", "qwen", "-o", str(target)]
    loads = ["--lengths", "64:40", "--concurrency", "1,2,4,8", "--max-duration", "8"]
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(simulator(*COST))
        measuring = subprocess.Popen([*command, *loads, "--endpoint", started.url], stderr=subprocess.PIPE, text=True)
        process = stack.enter_context(measuring)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("2 clients, 64"):
                break
        if dies:
            started.process.kill()
        else:
            process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(30) == (1 if dies else 130), rest
    assert "Traceback" not in rest
    assert not dies or started.url in rest
    assert read(target).coefficients is not None
    assert "cut short" in target.read_text()


def test_a_queue_for_slots_ends_the_ladder_and_tells_max_num_seqs(profile: Callable[..., Outcome], tmp_path: Path) -> None:
    target = tmp_path / "profile.yaml"
    with simulator("--sim-alpha-ms=5", "--sim-beta-us=40", "--sim-gamma-ns=1", "--max-num-seqs=3") as started:
        outcome = profile(
            "--endpoint", started.url, "--model", "qwen", "-o", str(target),
            "--lengths", "64:24", "--concurrency", "1,2,12,24", "--max-duration", "8",
        )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "at 12 clients requests wait for a slot of the engine" in outcome.err
    assert "24 clients" not in outcome.err
    assert read(target).max_num_seqs == 3
