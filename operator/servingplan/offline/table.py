"""The answer as aligned text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from servingplan.offline import words
from servingplan.offline.document import quality_bound
from servingplan.offline.question import Question
from servingplan.planning.problem import Allocation, Plan, PlanDecision, PlanDemand

_GAP = "  "


def to_text(question: Question, plan: Plan) -> str:
    """Every plan's allocation, routes and use of GPUs, one below the other."""
    parts = [_plan_text(demand, plan) for demand in question.problem.plans]
    if len(parts) > 1:
        parts.append(f"Together: {_proof(plan)}\n")
    return "\n".join(parts)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """Rows under a header, each column as wide as its widest cell.

    Args:
        header: Column titles.
        rows: Cells as text.
        right: One letter per column: r aligns to the right, l to the left.
    """
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    return [
        _GAP.join(
            cell.rjust(w) if side == "r" else cell.ljust(w) for cell, w, side in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in (header, *rows)
    ]


def _plan_text(demand: PlanDemand, plan: Plan) -> str:
    decision = plan.of(demand.key)
    lines = [_headline(demand, decision, plan)]
    if decision.reason:
        lines.append(f"  {decision.reason}")
    running = [each for each in decision.allocations if each.replicas]
    header = ("MODEL", "SETUP", "REPLICAS", "GPUS", "REQ/S", "LOAD", "TTFT MEAN", "P50", "P95", "P99", "ITL", "E2E")
    lines += ["", *columns(header, [_allocation(each) for each in running], "llrlrrrrrrrr")] if running else ["", "No replica."]
    lines += ["", *columns(("CLASS", "REQ/S", "GOES TO", "REFUSED"), _routes(demand, decision), "lrll")]
    lines += ["", *columns(("ACCELERATOR", "USED", "THERE", "LIMIT", "COST/H"), _accelerators(demand, decision), "lrrrr")]
    return "\n".join(lines) + "\n"


def _headline(demand: PlanDemand, decision: PlanDecision, plan: Plan) -> str:
    verdict = "feasible" if decision.feasible else "NOT FEASIBLE"
    quality = f"quality {decision.quality:.4f}"
    bound = quality_bound(plan, decision)
    if bound is not None:
        quality += f" (at most {bound:.4f} is possible)" if plan.gap > words.PROVED else " (proved best)"
    used = words.gpus(words.units_used(demand, decision.allocations))
    text = f"{demand.key}: {verdict}, {quality}, {words.money(decision.cost_per_hour)}, {used}"
    return text if len(plan.decisions) > 1 else f"{text}; {_proof(plan)}"


def _proof(plan: Plan) -> str:
    how = "solved" if plan.status == "optimal" else "stopped by the time limit"
    return (
        f"{how} in {words.number(plan.seconds, 2)} s, gap {words.number(100 * plan.gap, 2) if plan.gap > words.PROVED else 0} %"
    )


def _allocation(each: Allocation) -> tuple[str, ...]:
    found = each.predicted
    latencies = (
        (found.ttft_mean_s, found.ttft_p50_s, found.ttft_p95_s, found.ttft_p99_s, found.inter_token_s, found.e2e_mean_s)
        if found
        else ()
    )
    return (
        each.model,
        each.setup,
        str(each.replicas),
        f"{each.units} {each.accelerator}",
        f"{each.rate_rps:.2f}",
        f"{100 * each.utilization:.0f} %" if found else "-",
        *([words.seconds(value) for value in latencies] or ["-"] * 6),
    )


def _routes(demand: PlanDemand, decision: PlanDecision) -> list[tuple[str, ...]]:
    rates = {entry.name: entry.rate_rps for entry in demand.classes}
    return [
        (
            route.request_class,
            words.number(rates[route.request_class], 4),
            ", ".join(f"{model} {words.percent(share)}" for model, share in route.by_model().items() if share > 0) or "-",
            words.percent(route.shed) if route.shed > 0 else "-",
        )
        for route in decision.routes
    ]


def _accelerators(demand: PlanDemand, decision: PlanDecision) -> list[tuple[str, ...]]:
    used = words.units_used(demand, decision.allocations)
    return [
        (
            kind.name,
            str(used.get(kind.name, 0)),
            str(sum(kind.free_units.values())),
            "-" if kind.limit is None else str(kind.limit),
            f"{used.get(kind.name, 0) * kind.cost_per_hour:,.2f}",
        )
        for kind in demand.accelerators
    ]
