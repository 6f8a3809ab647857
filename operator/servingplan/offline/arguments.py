"""The flags of ``servingplan plan`` and ``servingplan explain``; nothing here is slow to load."""

from __future__ import annotations

import argparse


def add_question(parser: argparse.ArgumentParser) -> None:
    """Declares what says which plans, GPUs, rates and replicas are meant."""
    parser.add_argument(
        "-f", "--file", action="append", required=True, help="ModelServingPlans to solve together; - for standard input"
    )
    parser.add_argument("--nodes", metavar="FILE", help="the nodes, as kubectl get nodes -o yaml prints them")
    parser.add_argument(
        "--gpus", action="append", default=[], metavar="KIND=N", help="GPUs instead: h100=16 on nodes of eight, or h100=4x2"
    )
    parser.add_argument("--rate", action="append", default=[], metavar="CLASS=RPS", help="requests per second of a class")
    parser.add_argument(
        "--lengths", action="append", default=[], metavar="CLASS=CSV", help="lengths of a class: promptTokens, outputTokens"
    )
    parser.add_argument(
        "--replicas", action="append", default=[], metavar="MODEL/SETUP=N", help="share out these replicas, and no others"
    )
    parser.add_argument(
        "--profiles", action="append", default=[], metavar="FILE", help="ConfigMaps that the plans' profileFrom name"
    )
    parser.add_argument("--gap", type=float, default=1e-4, help="relative distance from the proven bound at which to stop")
    parser.add_argument("--time-limit", type=float, default=10.0, metavar="SECONDS", help="longest time to solve")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Declares what says how to show the answer."""
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table", help="how to print the answer")
    parser.add_argument("--frontier", choices=["slo", "cost"], help="solve for other latency targets or budgets too")
    parser.add_argument("--plot", metavar="PNG", help="draw the frontier into this file")
