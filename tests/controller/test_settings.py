"""Flags of the operator, and what is said of those that cannot be used."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from servingplan.controller.settings import LeaseSettings, PrometheusSettings, Settings, add_arguments, from_arguments


def settings(*argv: str) -> Settings:
    parser = argparse.ArgumentParser(prog="servingplan controller")
    add_arguments(parser)
    return from_arguments(parser.parse_args(argv))


@pytest.fixture(autouse=True)
def _no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    monkeypatch.delenv("POD_NAME", raising=False)


def test_without_flags_it_is_alone_and_asks_no_prometheus() -> None:
    found = settings()
    assert found.lease is None
    assert found.prometheus == PrometheusSettings()
    assert (found.tick_s, found.cycle_s, found.dwell_s, found.health_port) == (10, 60, 900, 8081)


def test_every_flag_arrives(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("user", "password", "ca")}
    for file in files.values():
        file.write_text("x")
    found = settings(
        "--vllm-image=v:1",
        "--router-image=r:1",
        "--namespace=a",
        "--namespace=b",
        "--prometheus-url=https://prometheus:9090/",
        f"--prometheus-username-file={files['user']}",
        f"--prometheus-password-file={files['password']}",
        f"--prometheus-ca-file={files['ca']}",
        "--prometheus-timeout-seconds=2",
        "--scrape-interval-seconds=30",
        "--tick-seconds=5",
        "--cycle-seconds=20",
        "--dwell-seconds=0",
        "--leader-elect",
        "--leader-elect-namespace=system",
        "--lease-name=lease",
        "--identity=me",
        "--health-port=9000",
        "--log-level=debug",
    )
    assert found == Settings(
        vllm_image="v:1",
        router_image="r:1",
        namespaces=("a", "b"),
        prometheus=PrometheusSettings(
            url="https://prometheus:9090",
            username_file=str(files["user"]),
            password_file=str(files["password"]),
            ca_file=str(files["ca"]),
            timeout_s=2,
            scrape_interval_s=30,
        ),
        tick_s=5,
        cycle_s=20,
        dwell_s=0,
        lease=LeaseSettings("system", "lease", "me"),
        health_port=9000,
        log_level="debug",
    )


def test_the_pod_says_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAMESPACE", "system")
    monkeypatch.setenv("POD_NAME", "controller-x")
    assert settings("--leader-elect").lease == LeaseSettings("system", "servingplan-controller", "controller-x")
    assert settings("--no-leader-elect").lease is None


REFUSED = [
    (["--tick-seconds=fast"], "argument --tick-seconds: 'fast' is no number of seconds from 0.1 to 300"),
    (["--tick-seconds=0"], "argument --tick-seconds: '0' is no number of seconds from 0.1 to 300"),
    (["--cycle-seconds=nan"], "argument --cycle-seconds: 'nan' is no number"),
    (["--tick-seconds=20", "--cycle-seconds=10"], "--cycle-seconds 10 is less than --tick-seconds 20"),
    (["--dwell-seconds=-1"], "argument --dwell-seconds: '-1' is no number"),
    (["--prometheus-url=prometheus:9090"], "argument --prometheus-url: 'prometheus:9090' begins with neither"),
    (["--prometheus-token-file=/nowhere"], "argument --prometheus-token-file: '/nowhere' cannot be read: No such file"),
    (["--prometheus-username-file=/dev/null"], "--prometheus-username-file and --prometheus-password-file are given together"),
    (["--prometheus-password-file=/dev/null"], "--prometheus-username-file and --prometheus-password-file are given together"),
    (
        [f"--prometheus-{name}-file=/dev/null" for name in ("username", "password", "token")],
        "--prometheus-token-file and --prometheus-username-file exclude each other",
    ),
    (["--leader-elect"], "--leader-elect-namespace is needed with --leader-elect"),
    (["--health-port=0"], "argument --health-port: '0' is no port"),
    (["--resync-seconds=5"], "unrecognized arguments: --resync-seconds=5"),
]


@pytest.mark.parametrize(("argv", "sentence"), REFUSED, ids=[" ".join(argv) for argv, _ in REFUSED])
def test_a_flag_that_cannot_be_used_is_refused_by_name(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        settings(*argv)
    assert refusal.value.code == 2
    assert sentence in capsys.readouterr().err
