"""The plugin's answers that take the solver: ``plan``, and the second half of ``explain``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from servingplan.offline import document, explain, frontier, plot, table, whatif
from servingplan.offline.question import Question
from servingplan.planning.problem import Plan
from servingplan.plugin import compare
from servingplan.plugin.cluster import Cluster
from servingplan.plugin.gather import gather
from servingplan.plugin.question import ask
from servingplan.plugin.reading import read_plan
from servingplan.plugin.view import PlanView


@dataclass(frozen=True, slots=True)
class Solved:
    """A question of the cluster with its answer."""

    view: PlanView
    question: Question
    plan: Plan

    @property
    def feasible(self) -> bool:
        """Whether the plan that was asked about serves everything within its SLO."""
        return self.plan.of(self.view.key).feasible


def solve(cluster: Cluster, body: dict[str, Any], options: argparse.Namespace, *, alone: bool) -> Solved:
    """Reads what is needed and solves.

    Args:
        cluster: Where to read.
        body: The plan, as it was read.
        options: What is asked otherwise than the cluster has it.
        alone: Whether other plans keep the GPUs that they hold.

    Raises:
        PluginError: Something could not be read.
        InputError: An option cannot be used.
        SolveError: There is no answer.
    """
    if getattr(options, "plot", None):
        plot.check_target(options.plot)
    counted = not (options.gpus or options.replicas)
    question = ask(gather(cluster, body, alone=alone, with_nodes=counted), options)
    return Solved(read_plan(body), question, whatif.answer(question.problem))


def to_text(solved: Solved, options: argparse.Namespace) -> Iterator[str]:
    """The planner's table, what stands beside it, and the frontier where it is asked for."""
    yield table.to_text(solved.question, solved.plan)
    yield from compare.to_text(solved.view, solved.plan.of(solved.view.key))
    if found := _frontier(solved, options):
        yield ""
        yield frontier.to_text(found)


def to_document(solved: Solved, options: argparse.Namespace) -> dict[str, Any]:
    """The planner's document with what stands under ``standing``."""
    answered = document.to_document(solved.question, solved.plan) | {"standing": compare.to_document(solved.view)}
    found = _frontier(solved, options)
    return answered | ({"frontier": frontier.to_document(found)} if found else {})


def explained(solved: Solved) -> Iterator[str]:
    """What holds the plan back and what would help, as it is found."""
    return explain.explain(solved.question, solved.plan)


def _frontier(solved: Solved, options: argparse.Namespace) -> frontier.Frontier | None:
    if not options.frontier:
        return None
    found = frontier.frontier(solved.question, solved.plan, options.frontier)
    if options.plot:
        plot.draw(found, options.plot)
    return found
