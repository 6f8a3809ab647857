"""``servingplan``: the controller, and what goes with it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable

_UNSOLVED, _BAD_INPUT = 1, 2


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
    subcommands = (
        ("plan", _add_plan),
        ("explain", _add_explain),
        ("profile", _add_profile),
        ("train", _add_train),
        ("controller", _add_controller),
        ("picker", _add_picker),
        ("crd", _add_crd),
        ("simulate", _add_simulate),
    )
    for name, add in subcommands:
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


def _add_picker(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    from servingplan.picker.cli import add_picker

    return add_picker(commands)


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    parser = commands.add_parser("plan", help="solve plans from files, without a cluster")
    from servingplan.offline.arguments import add_output, add_question

    add_question(parser)
    add_output(parser)
    return lambda arguments: _answer("plan", arguments)


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    parser = commands.add_parser("explain", help="say in sentences what holds plans back, and what would help")
    from servingplan.offline.arguments import add_question

    add_question(parser)
    return lambda arguments: _answer("explain", arguments)


def _answer(command: str, arguments: argparse.Namespace) -> int:
    """Runs a subcommand that solves; what cannot be used or solved ends in one sentence."""
    from servingplan.offline.errors import InputError, SolveError
    from servingplan.offline.question import ask

    try:
        question = ask(arguments)
        for note in question.notes:
            sys.stderr.write(f"note: {note}\n")
        # The solver takes a second to load, which a mistake in the input need not wait for.
        from servingplan.offline import commands

        return {"plan": commands.run_plan, "explain": commands.run_explain}[command](arguments, question)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return _BAD_INPUT
    except SolveError as error:
        sys.stderr.write(f"{error}\n")
        return _UNSOLVED


def _add_profile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    from servingplan.profiling.cli import add_profile

    return add_profile(commands)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    from servingplan.training.cli import add_train

    return add_train(commands)


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
