"""What the operator is told at its start."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from servingplan.options import seconds


@dataclass(frozen=True, slots=True)
class PrometheusSettings:
    """How Prometheus is reached. Files are read anew for every connection, because Secrets are renewed in place.

    Attributes:
        url: Its base URL; empty for nowhere.
        username_file: File that holds the user name of basic authentication; None without.
        password_file: File that holds its password; there is one where there is a user name.
        bearer_token_file: File that holds a bearer token; None without, and never beside a user name.
        ca_file: File of certificates that sign the server's; None for those that the system trusts.
        timeout_s: Longest wait for an answer.
        scrape_interval_s: Time between two samples of a series, by which stale ones are told.
    """

    url: str = ""
    username_file: str | None = None
    password_file: str | None = None
    bearer_token_file: str | None = None
    ca_file: str | None = None
    timeout_s: float = 5.0
    scrape_interval_s: float = 15.0


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Where leaders are elected.

    Attributes:
        namespace: Namespace of the Lease.
        name: Its name.
        identity: Name of this process among the candidates, to which something unique is added.
    """

    namespace: str
    name: str
    identity: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Flags of ``servingplan controller``.

    Attributes:
        picker_image: Image of the pickers, the operator's own; empty for none, so that every plan is served by its weights.
        picker_role: Name of the ClusterRole that lets a picker read EndpointSlices.
        namespaces: Namespaces to watch; empty for all.
        prometheus: Where metrics are read.
        tick_s: Between two passes: reading metrics, and weights for what is ready.
        cycle_s: Between two cycles of learning and planning.
        dwell_s: Least time between a change of a setup's replicas and the opposite one.
        lease: Where leaders are elected; None where this operator is the only one.
    """

    vllm_image: str
    router_image: str
    prometheus: PrometheusSettings = PrometheusSettings()
    tick_s: float = 10.0
    cycle_s: float = 60.0
    dwell_s: float = 900.0
    namespaces: tuple[str, ...] = ()
    health_port: int = 8081
    log_level: str = "info"
    picker_image: str = ""
    picker_role: str = "servingplan-picker"
    lease: LeaseSettings | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    add = parser.add_argument
    add("--vllm-image", default="vllm/vllm-openai:v0.32.0", help="image of the model servers")
    add("--router-image", default="envoyproxy/envoy:v1.40.0", help="image of the routers")
    add("--picker-image", default="", help="image of the pickers, the operator's own; without it plans go by their weights")
    add("--picker-role", default="servingplan-picker", help="ClusterRole that lets a picker read EndpointSlices")
    add("--namespace", action="append", default=[], help="watch this namespace only; may be repeated")
    add("--prometheus-url", type=_url, default="", help="where metrics are read; empty for nowhere")
    add("--prometheus-username-file", type=_file, help="file with the user name of basic authentication")
    add("--prometheus-password-file", type=_file, help="file with its password")
    add("--prometheus-token-file", type=_file, help="file with a bearer token")
    add("--prometheus-ca-file", type=_file, help="certificates that sign that of Prometheus, instead of the system's")
    add("--prometheus-timeout-seconds", type=seconds(0.1, 60), default=5.0, help="longest wait for an answer of Prometheus")
    add("--scrape-interval-seconds", type=seconds(0.1, 300), default=15.0, help="how often Prometheus scrapes")
    add("--tick-seconds", type=seconds(0.1, 300), default=10.0, help="between two readings, and new weights")
    add("--cycle-seconds", type=seconds(0.1, 3600), default=60.0, help="between two cycles of learning and planning")
    add("--dwell-seconds", type=seconds(0, 86400), default=900.0, help="least time before a change of replicas is undone")
    add("--leader-elect", action=argparse.BooleanOptionalAction, default=False, help="write only while holding a Lease")
    add("--leader-elect-namespace", default=os.environ.get("POD_NAMESPACE", ""), help="namespace of the Lease ($POD_NAMESPACE)")
    add("--lease-name", default="servingplan-controller", help="name of the Lease")
    add("--identity", default="", help="name among the candidates ($POD_NAME, or the host's name)")
    add("--health-port", type=_port, default=8081, help="port of /healthz, /readyz and /metrics")
    add("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    # What no flag can be told alone is refused in the same words as what one can.
    parser.set_defaults(refuse=parser.error)


def from_arguments(arguments: argparse.Namespace) -> Settings:
    """The settings that the flags say.

    Raises:
        SystemExit: Flags contradict each other; the message, on standard error, names them.
    """
    _check(arguments)
    return Settings(
        vllm_image=arguments.vllm_image,
        router_image=arguments.router_image,
        prometheus=PrometheusSettings(
            url=arguments.prometheus_url,
            username_file=arguments.prometheus_username_file,
            password_file=arguments.prometheus_password_file,
            bearer_token_file=arguments.prometheus_token_file,
            ca_file=arguments.prometheus_ca_file,
            timeout_s=arguments.prometheus_timeout_seconds,
            scrape_interval_s=arguments.scrape_interval_seconds,
        ),
        tick_s=arguments.tick_seconds,
        cycle_s=arguments.cycle_seconds,
        dwell_s=arguments.dwell_seconds,
        namespaces=tuple(arguments.namespace),
        health_port=arguments.health_port,
        log_level=arguments.log_level,
        picker_image=arguments.picker_image,
        picker_role=arguments.picker_role,
        lease=_lease(arguments) if arguments.leader_elect else None,
    )


def _check(arguments: argparse.Namespace) -> None:
    refuse: Callable[[str], None] = arguments.refuse
    if bool(arguments.prometheus_username_file) != bool(arguments.prometheus_password_file):
        refuse("--prometheus-username-file and --prometheus-password-file are given together or not at all")
    if arguments.prometheus_username_file and arguments.prometheus_token_file:
        refuse("--prometheus-token-file and --prometheus-username-file exclude each other")
    if arguments.cycle_seconds < arguments.tick_seconds:
        refuse(
            f"--cycle-seconds {arguments.cycle_seconds:g} is less than --tick-seconds {arguments.tick_seconds:g}, "
            "by which a cycle is counted"
        )
    if arguments.leader_elect and not arguments.leader_elect_namespace:
        refuse("--leader-elect-namespace is needed with --leader-elect where POD_NAMESPACE is not set")


def _lease(arguments: argparse.Namespace) -> LeaseSettings:
    identity = arguments.identity or os.environ.get("POD_NAME") or socket.gethostname()
    return LeaseSettings(arguments.leader_elect_namespace, arguments.lease_name, identity)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port")
    return int(text)


def _url(text: str) -> str:
    if text and not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} begins with neither http:// nor https://")
    return text.rstrip("/")


def _file(text: str) -> str:
    try:
        Path(text).open("rb").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read: {error.strerror}") from error
    return text
