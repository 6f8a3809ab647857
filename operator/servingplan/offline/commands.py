"""What ``servingplan plan`` and ``servingplan explain`` do with a question that is understood."""

from __future__ import annotations

import argparse
import json
import sys

from servingplan.offline import frontier, plot, table, whatif
from servingplan.offline.document import to_document
from servingplan.offline.explain import explain
from servingplan.offline.question import Question
from servingplan.planning.problem import Plan

FEASIBLE, INFEASIBLE = 0, 3
"""Exit statuses; with either the answer is printed."""


def run_plan(arguments: argparse.Namespace, question: Question) -> int:
    """Prints the answer, and the frontier where it is asked for.

    Raises:
        InputError: The frontier cannot be drawn.
        SolveError: There is no answer.
    """
    if arguments.plot:
        plot.check_target(arguments.plot)
    plan = whatif.answer(question.problem)
    document, text = to_document(question, plan), table.to_text(question, plan)
    if arguments.frontier:
        found = frontier.frontier(question, plan, arguments.frontier)
        document |= {"frontier": frontier.to_document(found)}
        text += f"\n{frontier.to_text(found)}"
        if arguments.plot:
            plot.draw(found, arguments.plot)
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n" if arguments.output == "json" else text)
    return _status(plan)


def run_explain(_: argparse.Namespace, question: Question) -> int:
    """Prints the sentences as they are found.

    Raises:
        SolveError: There is no answer.
    """
    plan = whatif.answer(question.problem)
    for line in explain(question, plan):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    return _status(plan)


def _status(plan: Plan) -> int:
    return FEASIBLE if all(decision.feasible for decision in plan.decisions) else INFEASIBLE
