"""What the operator is told at its start."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Flags of ``servingplan controller``.

    Attributes:
        namespaces: Namespaces to watch; empty for all.
        prometheus_url: Where metrics are read; empty for nowhere.
        resync_s: Longest time between two looks at the world.
    """

    vllm_image: str
    router_image: str
    prometheus_url: str = ""
    resync_s: float = 30.0
    namespaces: tuple[str, ...] = ()
    health_port: int = 8081
    log_level: str = "info"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--vllm-image", default="vllm/vllm-openai:v0.32.0", help="image of the model servers")
    parser.add_argument("--router-image", default="envoyproxy/envoy:v1.40.0", help="image of the routers")
    parser.add_argument("--prometheus-url", default="", help="where metrics are read; empty for nowhere")
    parser.add_argument("--resync-seconds", type=float, default=30.0, help="longest time between two looks at the world")
    parser.add_argument("--namespace", action="append", default=[], help="watch this namespace only; may be repeated")
    parser.add_argument("--health-port", type=int, default=8081, help="port of /healthz and /readyz")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")


def from_arguments(arguments: argparse.Namespace) -> Settings:
    """The settings that the flags say."""
    return Settings(
        vllm_image=arguments.vllm_image,
        router_image=arguments.router_image,
        prometheus_url=arguments.prometheus_url.rstrip("/"),
        resync_s=arguments.resync_seconds,
        namespaces=tuple(arguments.namespace),
        health_port=arguments.health_port,
        log_level=arguments.log_level,
    )
