"""What the subcommands of ``kubectl servingplan`` do."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

import yaml

from servingplan.api.document import PlainDumper
from servingplan.offline.errors import InputError, SolveError
from servingplan.plugin import approval, past, pausing, proposal, report
from servingplan.plugin.cluster import Cluster
from servingplan.plugin.errors import MISUSED, UNDONE, ForbiddenError, PluginError
from servingplan.plugin.reading import read_plan
from servingplan.plugin.view import PlanView

DONE = 0
_LEAST_REFRESH_S = 0.2

Options = argparse.Namespace


def _say(lines: Iterable[str]) -> None:
    """Prints lines as they come: some take a solve."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def plan(options: Options, cluster: Cluster) -> int:
    """Solves a plan now and shows the answer beside what stands."""
    if options.plot and not options.frontier:
        raise PluginError("--plot: it draws a frontier, say which with --frontier slo or --frontier cost", MISUSED)
    body = cluster.plan(options.namespace, options.name)
    solving = _solver()
    with _answerable():
        solved = solving.solve(cluster, body, options, alone=options.alone or bool(options.frontier))
        _note(solved.question.notes)
        if options.output == "table":
            _say(solving.to_text(solved, options))
        else:
            document = solving.to_document(solved, options)
            sys.stdout.write(
                json.dumps(document, indent=2, allow_nan=False) + "\n" if options.output == "json" else _yaml(document)
            )
    return DONE if solved.feasible else UNDONE


def explain(options: Options, cluster: Cluster) -> int:
    """Says how a plan stands, then solves it and says what holds it back."""
    body = cluster.plan(options.namespace, options.name)
    _say(report.lines(read_plan(body), time.time()))
    if options.no_solve:
        return DONE
    solving = _solver()
    with _answerable():
        solved = solving.solve(cluster, body, options, alone=options.alone)
        _note(solved.question.notes)
        _say(["Solved anew:", ""])
        _say(solving.explained(solved))
    return DONE


def _solver() -> ModuleType:
    """What takes a second to load, and is not needed for the rest."""
    from servingplan.plugin import solving  # noqa: PLC0415

    return solving


@contextlib.contextmanager
def _answerable() -> Iterator[None]:
    """The planner's own refusals become the plugin's."""
    try:
        yield
    except InputError as error:
        raise PluginError(str(error), MISUSED) from error
    except SolveError as error:
        raise PluginError(str(error)) from error


def _note(notes: Iterable[str]) -> None:
    for note in notes:
        sys.stderr.write(f"note: {note}\n")


def _yaml(document: object) -> str:
    text: str = yaml.dump(document, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def approve(options: Options, cluster: Cluster) -> int:
    """Approves one proposal, and waits until the operator has adopted it."""
    plan = read_plan(cluster.plan(options.namespace, options.name))
    if options.id and approval.adopted(plan, options.id):
        _say([f"Proposal {options.id} is approved already, and stands."])
        return DONE
    if reason := approval.stale(plan, options.id or "", time.time()):
        raise PluginError(reason)
    assert plan.proposal is not None, "a plan without a proposal has nothing that could be approved"
    _say(proposal.lines(plan.proposal, time.time()))
    _say([""])
    if not options.id and not options.yes and not _confirmed(plan.proposal.id):
        _say(["Nothing is approved."])
        return UNDONE
    approval.approve(cluster, plan, plan.proposal.id)
    if options.timeout:
        text = approval.wait(cluster, plan, plan.proposal.id, options.timeout)
        _say([f"{text[0].upper()}{text[1:]}."])
    else:
        _say([f"Proposal {plan.proposal.id} is approved; the operator takes it up when it looks."])
    return DONE


def _confirmed(identity: str) -> bool:
    if not sys.stdin.isatty():
        raise PluginError(f"nobody is there to ask: give the proposal, {identity}, or --yes", MISUSED)
    sys.stdout.write(f"Approve proposal {identity}? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def pause(options: Options, cluster: Cluster) -> int:
    """Holds a plan's replicas and weights."""
    return _change(options, cluster, pausing.pause)


def resume(options: Options, cluster: Cluster) -> int:
    """Lets a paused plan go on."""
    return _change(options, cluster, pausing.resume)


def _change(options: Options, cluster: Cluster, change: Callable[[PlanView], pausing.Change]) -> int:
    found = change(read_plan(cluster.plan(options.namespace, options.name)))
    if found.patch:
        cluster.patch_plan(options.namespace, options.name, found.patch)
    _say([f"{found.text[0].upper()}{found.text[1:]}".rstrip(".") + "."])
    return DONE


def history(options: Options, cluster: Cluster) -> int:
    """Shows the last decisions and Events."""
    plan = read_plan(cluster.plan(options.namespace, options.name))
    try:
        events = cluster.events(options.namespace, options.name)
    except ForbiddenError:
        events = None
    _say(past.lines(plan, events, time.time()))
    return DONE


def top(options: Options, cluster: Cluster) -> int:
    """Shows plans at work."""
    try:
        from servingplan.plugin.screen.live import show  # noqa: PLC0415 - rich is not installed everywhere
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("rich"):
            raise
        raise PluginError("top needs the package rich: install servingplan[cli]") from error
    namespace = None if options.all_namespaces else options.namespace
    return show(cluster, namespace, options.name, every_s=max(_LEAST_REFRESH_S, options.every), once=options.once)
