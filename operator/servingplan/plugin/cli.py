"""``kubectl servingplan``: its flags, and how it ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from servingplan.plugin import arguments, commands
from servingplan.plugin.cluster import Cluster, connect
from servingplan.plugin.errors import PluginError

_INTERRUPTED = 130
_ABOUT = "Look at ModelServingPlans on a cluster, ask what would be better, approve, pause, and watch them work."
_REFRESH_S, _TIMEOUT_S = 2.0, 60.0


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status: 0 done, 1 not as things stand, 2 asked for wrongly."""
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except PluginError as error:
        sys.stderr.write(f"{error}\n")
        return error.status
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read this has seen enough; what is still buffered must not complain when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return commands.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kubectl servingplan", description=_ABOUT)
    arguments.add_connection(parser)
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace, Cluster], int], text: str) -> argparse.ArgumentParser:
        found = subcommands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        arguments.add_connection(found, default=argparse.SUPPRESS)
        found.set_defaults(run=run)
        return found

    plan = _named(add("plan", commands.plan, "solve a plan now, beside what stands"))
    arguments.add_what_ifs(plan)
    plan.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table", help="how to print the answer")
    plan.add_argument("--frontier", choices=["slo", "cost"], help="solve for other latency targets or budgets too")
    plan.add_argument("--plot", metavar="PNG", help="draw the frontier into this file")

    explain = _named(add("explain", commands.explain, "say how a plan stands, what holds it back, and what is proposed"))
    arguments.add_what_ifs(explain)
    explain.add_argument("--no-solve", action="store_true", help="say what the status says, and solve nothing")

    approve = _named(add("approve", commands.approve, "approve exactly one proposal of a plan in mode Recommend"))
    approve.add_argument("id", nargs="?", metavar="ID", help="the proposal; without it the present one, after a question")
    approve.add_argument("-y", "--yes", action="store_true", help="do not ask")
    approve.add_argument(
        "--timeout", type=arguments.duration_s, default=_TIMEOUT_S, metavar="TIME", help="wait so long for the operator; 0: not"
    )

    _named(add("pause", commands.pause, "hold a plan's replicas and weights as they are"))
    _named(add("resume", commands.resume, "let a paused plan go on in the mode that it had"))
    _named(add("history", commands.history, "show what was decided lately, and why"))

    top = add("top", commands.top, "watch plans work")
    top.add_argument("name", nargs="?", type=arguments.plan_name, metavar="NAME", help="the plan; without it all plans")
    top.add_argument("-A", "--all-namespaces", action="store_true", help="plans of all namespaces")
    top.add_argument("--once", action="store_true", help="print it once")
    top.add_argument("--every", type=arguments.duration_s, default=_REFRESH_S, metavar="TIME", help="look so often")
    return parser


def _named(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("name", type=arguments.plan_name, metavar="NAME", help="the plan")
    return parser


def _run(options: argparse.Namespace) -> int:
    cluster = connect(options.kubeconfig, options.context)
    options.namespace = options.namespace or cluster.namespace
    status: int = options.run(options, cluster)
    return status
