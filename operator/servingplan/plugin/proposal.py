"""A proposal in lines of text: everything that approving it would change. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from servingplan.offline import words
from servingplan.offline.table import columns
from servingplan.plugin import states, times
from servingplan.plugin.view import OutlookView, ProposalView


def lines(proposal: ProposalView, now_s: float) -> Iterator[str]:
    """What would change, and what that comes to."""
    yield f"Proposal {proposal.id}, made {times.ago(proposal.time, now_s)} for generation {proposal.generation} of the spec"
    yield f"  because: {proposal.reason}"
    yield ""
    yield from _indented(_setups(proposal) or ["No replica changes."])
    if proposal.routes:
        yield ""
        yield from _indented(_routes(proposal))
    yield ""
    yield from _indented(_outlooks(proposal.before, proposal.after))


def _setups(proposal: ProposalView) -> list[str]:
    rows = [
        (each.model, each.setup, each.accelerator, str(each.before), str(each.after), f"{each.after - each.before:+d}")
        for each in proposal.setups
    ]
    return columns(("MODEL", "SETUP", "ACCELERATOR", "REPLICAS NOW", "PROPOSED", "CHANGE"), rows, "lllrrr") if rows else []


def _routes(proposal: ProposalView) -> list[str]:
    rows = []
    for route in proposal.routes:
        models = sorted(route.before.keys() | route.after.keys())
        for index, model in enumerate(models):
            first = index == 0
            rows.append(
                (
                    route.name if first else "",
                    model,
                    _share(route.before, model),
                    _share(route.after, model),
                    states.maybe_seconds(route.ttft_before_s) if first else "",
                    states.maybe_seconds(route.ttft_after_s) if first else "",
                )
            )
    return columns(("CLASS", "GOES TO", "NOW", "PROPOSED", "TTFT P95 NOW", "PROPOSED"), rows, "llrrrr")


def _share(shares: Mapping[str, float], model: str) -> str:
    share = shares.get(model, 0.0)
    return words.percent(share) if share > 0 else "-"


def _outlooks(before: OutlookView, after: OutlookView) -> list[str]:
    rows = [
        ("quality", f"{before.quality:.4f}", f"{after.quality:.4f}", f"{after.quality - before.quality:+.4f}"),
        (
            "cost per hour",
            f"{before.cost_per_hour:,.2f}",
            f"{after.cost_per_hour:,.2f}",
            f"{after.cost_per_hour - before.cost_per_hour:+,.2f}",
        ),
    ]
    if before.shed or after.shed:
        rows.append(("refused", words.percent(before.shed), words.percent(after.shed), ""))
    return columns(("", "NOW", "PROPOSED", "CHANGE"), rows, "lrrr")


def _indented(found: list[str]) -> Iterator[str]:
    yield from (f"  {line}" if line else line for line in found)
