"""The demo's figures as tables on the console."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from testbed.demo.figures import colours
from testbed.demo.story import Story, ttft_p95_by_pool
from testbed.demo.view import Snapshot
from testbed.load import Record, by_class, summarise


def show(console: Console, story: Story) -> None:
    """Everything that was found, in the order in which it happened."""
    palette = colours(story.models)
    console.print(_gpus(story, palette))
    for when, found, records in (
        ("before the change", story.before, story.steady_before),
        ("after the change", story.after, story.steady_after),
    ):
        console.print(_classes(f"Latency of the classes {when}", found, records))
        console.print(_shares(f"Shares {when}", found, records, palette))
        console.print(_pools(f"Pools {when}", found, records, palette))
    console.print(_moved(story, palette))


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=None, padding=(0, 2), pad_edge=False
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _gpus(story: Story, palette: dict[str, str]) -> Table:
    table = _table("\nWhere the GPUs went", "NODE", "ACCELERATOR", "GPUS", "BEFORE", "AFTER", right=("GPUS",))
    for node in story.nodes:
        cells = [_held(found, node.name, palette) for found in (story.before, story.after)]
        table.add_row(node.name, node.product, str(node.gpus), *cells)
    return table


def _held(found: Snapshot, node: str, palette: dict[str, str]) -> Text:
    text = Text()
    for pod in found.pods:
        if pod.node == node and pod.gpus and pod.holds_gpus:
            text.append("■" * pod.gpus + " ", style=palette.get(pod.model, ""))
            text.append(f"{pod.model}  ")
    return text or Text("-", style="dim")


def _classes(title: str, found: Snapshot, records: Sequence[Record]) -> Table:
    columns = ("CLASS", "REQUESTS", "FAILED", "REFUSED", "TTFT MEAN", "P50", "P95", "TARGET", "WITHIN", "INTER-TOKEN")
    table = _table(f"\n{title}", *columns, right=columns[1:])
    for name, mine in by_class(records).items():
        got = summarise(mine)
        waits_s = [record.ttft_s for record in mine if record.answered and record.ttft_s is not None]
        within = sum(wait_s <= found.ttft_slo_s for wait_s in waits_s) / max(1, len(waits_s))
        table.add_row(
            name,
            str(got.sent),
            str(got.failed),
            str(got.refused),
            f"{got.ttft_mean_s:.2f} s",
            f"{got.ttft_p50_s:.2f} s",
            f"{got.ttft_p95_s:.2f} s",
            f"{found.ttft_slo_s:g} s",
            Text(f"{100 * within:.1f} %", style="green" if within >= 0.95 else "red"),
            f"{1000 * got.inter_token_mean_s:.0f} ms",
        )
    return table


def _shares(title: str, found: Snapshot, records: Sequence[Record], palette: dict[str, str]) -> Table:
    table = _table(f"\n{title}", "CLASS", "MODEL", "PLANNED", "REALISED", "APART", right=("PLANNED", "REALISED", "APART"))
    for name, mine in by_class(records).items():
        realised = summarise(mine).shares
        planned = found.shares.get(name, {})
        # Realised shares are of what was answered, so what is shed on purpose is left out of the planned ones too.
        served = sum(planned.values()) or 1.0
        for model in sorted(set(planned) | set(realised)):
            want, got = planned.get(model, 0.0) / served, realised.get(model, 0.0)
            if max(want, got) >= 0.0005:
                cells = (f"{100 * want:.1f} %", f"{100 * got:.1f} %", f"{100 * (got - want):+.1f}")
                table.add_row(name, Text(model, style=palette.get(model, "")), *cells)
    return table


def _pools(title: str, found: Snapshot, records: Sequence[Record], palette: dict[str, str]) -> Table:
    columns = ("MODEL", "SETUP", "REPLICAS", "GPUS", "RATE PLANNED", "REAL", "TTFT P95 PLANNED", "REAL", "OFF", "OF REQUESTS")
    table = _table(f"\n{title}", *columns, right=columns[2:])
    measured = ttft_p95_by_pool(records)
    span_s = max((r.start_s for r in records), default=0.0) - min((r.start_s for r in records), default=0.0)
    for each in found.allocations:
        p95_s, count = measured.get(each.pool, (float("nan"), 0))
        planned_s = float("nan") if each.ttft_p95_s is None else each.ttft_p95_s
        table.add_row(
            Text(each.model, style=palette.get(each.model, "")),
            each.setup,
            str(each.replicas),
            f"{each.gpus} {each.accelerator}",
            f"{each.rate_rps:.2f}/s",
            f"{count / span_s:.2f}/s" if span_s else "-",
            f"{planned_s:.2f} s",
            f"{p95_s:.2f} s",
            f"{100 * (p95_s / planned_s - 1):+.0f} %",
            str(count),
        )
    return table


def _moved(story: Story, palette: dict[str, str]) -> Table:
    table = _table("\nWhat the change moved", "", "BEFORE", "AFTER", right=("BEFORE", "AFTER"))
    before, after = story.before, story.after
    table.add_row("TTFT target (p95)", f"{before.ttft_slo_s:g} s", f"{after.ttft_slo_s:g} s")
    got_before, got_after = summarise(story.steady_before), summarise(story.steady_after)
    table.add_row("TTFT measured (p95)", f"{got_before.ttft_p95_s:.2f} s", f"{got_after.ttft_p95_s:.2f} s")
    table.add_row("quality", f"{before.quality:.4f}", f"{after.quality:.4f}")
    table.add_row("cost per hour", f"{before.cost_per_hour:.2f}", f"{after.cost_per_hour:.2f}")
    replicas = [{(each.model, each.setup): each.replicas for each in found.allocations} for found in (before, after)]
    for model, setup in sorted(set(replicas[0]) | set(replicas[1])):
        name = Text(f"replicas of {model}, {setup}", style=palette.get(model, ""))
        table.add_row(name, *(str(each.get((model, setup), 0)) for each in replicas))
    for class_ in sorted(set(before.shares) | set(after.shares)):
        for model in story.models:
            shares = [found.shares.get(class_, {}).get(model, 0.0) for found in (before, after)]
            if max(shares) > 0:
                label = Text(f"share of {class_} to {model}", style=palette.get(model, ""))
                table.add_row(label, *(f"{100 * share:.1f} %" for share in shares))
    failed = sum(record.failed for record in story.records)
    table.add_row("next table served after", "", f"{story.rerouted_s - story.changed_s:.1f} s")
    table.add_row("whole plan served after", "", f"{story.settled_s - story.changed_s:.1f} s")
    table.add_row(
        "requests failed, of all", "", Text(f"{failed} of {len(story.records):,}", style="red" if failed else "green")
    )
    return table
