"""``servingplan``: the controller, and what goes with it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:2] == ["simulate", "vllm"]:
        # It takes vLLM's own flags, unknown ones too, and its start has to be cheap.
        from servingplan.sim.cli import main as simulate

        return simulate(argv[2:])
    parser = argparse.ArgumentParser(prog="servingplan", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runners: dict[str, Callable[[argparse.Namespace], int]] = {}
    for name, add in (("controller", _add_controller), ("crd", _add_crd), ("simulate", _add_simulate)):
        runners[name] = add(commands)
    arguments = parser.parse_args(argv)
    return runners[arguments.command](arguments)


def _add_controller(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    parser = commands.add_parser("controller", help="watch ModelServingPlans and carry them out")
    # Importing the settings is cheap; the solver and the clients are not, and other subcommands do without.
    from servingplan.controller.settings import add_arguments, from_arguments

    add_arguments(parser)

    def run(arguments: argparse.Namespace) -> int:
        settings = from_arguments(arguments)
        logging.basicConfig(
            level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
        )
        return asyncio.run(_operate(settings))

    return run


async def _operate(settings: object) -> int:
    from servingplan.controller.handlers import operate
    from servingplan.controller.settings import Settings

    assert isinstance(settings, Settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await operate(settings, stop)
    return 0


def _add_crd(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    parser = commands.add_parser("crd", help="print the CustomResourceDefinition, or the field reference")
    parser.add_argument("--docs", action="store_true", help="print the field reference as Markdown instead")

    def run(arguments: argparse.Namespace) -> int:
        from servingplan.api import crd, reference

        sys.stdout.write(reference.to_markdown() if arguments.docs else crd.to_yaml())
        return 0

    return run


def _add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    parser = commands.add_parser("simulate", help="run a stand-in: simulate vllm [vLLM's flags]")
    parser.add_argument("what", choices=["vllm"])
    return lambda _: 2
