"""The flags of ``kubectl servingplan``; nothing here is slow to load."""

from __future__ import annotations

import argparse
import math

PLAN_KINDS = ("msp", "modelservingplan", "modelservingplans", "modelservingplans.servingplan.io")


def add_connection(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Declares how the cluster is found, in kubectl's words.

    Args:
        parser: The command's or a subcommand's: kubectl's users write these flags before and behind it.
        default: ``argparse.SUPPRESS`` for a subcommand, so that it does not undo what stands before it.
    """
    parser.add_argument("-n", "--namespace", default=default, help="namespace of the plan; that of the context by default")
    parser.add_argument("--context", default=default, help="context of the kubeconfig")
    parser.add_argument("--kubeconfig", default=default, metavar="FILE", help="kubeconfig; KUBECONFIG or ~/.kube/config")


def plan_name(text: str) -> str:
    """The name of a plan, given alone or as kubectl prints it: ``modelservingplan/chat``.

    Raises:
        argparse.ArgumentTypeError: It is the name of something else.
    """
    kind, slash, name = text.rpartition("/")
    if slash and kind.lower() not in PLAN_KINDS:
        raise argparse.ArgumentTypeError(f"{text}: give the name of a plan, such as chat or msp/chat")
    if not name:
        raise argparse.ArgumentTypeError("give the name of a plan")
    return name


def duration_s(text: str) -> float:
    """Seconds from ``30``, ``30s``, ``2m`` or ``1h``.

    Raises:
        argparse.ArgumentTypeError: It cannot be read.
    """
    scale = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:], 0.0)
    try:
        value = float(text[:-1]) * scale if scale else float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text}: write a time such as 30s or 2m")
    return value


def add_what_ifs(parser: argparse.ArgumentParser) -> None:
    """Declares what may be asked otherwise than the cluster has it."""
    parser.add_argument("--rate", action="append", default=[], metavar="CLASS=RPS", help="requests per second of a class")
    parser.add_argument(
        "--lengths", action="append", default=[], metavar="CLASS=CSV", help="lengths of a class: promptTokens, outputTokens"
    )
    parser.add_argument(
        "--replicas", action="append", default=[], metavar="MODEL/SETUP=N", help="share out these replicas, and no others"
    )
    parser.add_argument(
        "--gpus", action="append", default=[], metavar="KIND=N", help="GPUs instead of the cluster's: h100=16, or h100=4x2"
    )
    parser.add_argument("--alone", action="store_true", help="take other plans to keep the GPUs that they hold")
    parser.add_argument("--gap", type=float, default=1e-4, help="relative distance from the proven bound at which to stop")
    parser.add_argument("--time-limit", type=float, default=10.0, metavar="SECONDS", help="longest time to solve")
