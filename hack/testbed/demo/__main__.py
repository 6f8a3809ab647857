"""`hack/demo`: from an empty machine to a plan that is served, loaded and changed, in a few minutes."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from rich.console import Console

from testbed import tools
from testbed.bed import Bed, BedError, Settings
from testbed.demo import figures, tables
from testbed.demo.acts import Play
from testbed.demo.live import display
from testbed.demo.story import Story
from testbed.demo.watch import DemoError, Watch
from testbed.load import summarise

_CHECKOUT = Path(__file__).resolve().parents[3]
_MANIFEST = _CHECKOUT / "manifests" / "plan.yaml"
_CHART = _CHECKOUT / "charts" / "servingplan"
_OPERATOR_NAMESPACE = "servingplan-system"
_NAMESPACE = "llm"
_VALUES = {
    "prometheus": {"url": "http://prometheus.monitoring.svc:9090", "scrapeIntervalSeconds": 5},
    "tickSeconds": 5,
    "cycleSeconds": 20,
}
_IMAGE_ENV = {"vllm/vllm-openai": {"SIM_COLD_START_S": "5"}}
_PLAIN_WIDTH = 130
_TOO_BUSY = 0.7


def main() -> int:
    """Run the demo; the exit status is 0 when everything came up and no request failed."""
    options = _arguments()
    signal.signal(signal.SIGTERM, _end)
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    began_s = time.monotonic()
    try:
        with _bed(console, keep=options.keep) as bed:
            _demonstrate(bed, options, console)
    except (DemoError, BedError, tools.SetupError) as error:
        print(f"hack/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hack/demo: interrupted", file=sys.stderr)
        return 130
    console.print(f"\nThe demo took {time.monotonic() - began_s:.0f} s.", highlight=False)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hack/demo", description="Serve, load and change a plan on a cluster of real parts.")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up at the end")
    parser.add_argument("--out", type=Path, default=_CHECKOUT / "out" / "demo", help="where the figures go (default: out/demo)")
    parser.add_argument("--target-s", default="0.5", help="TTFT that the plan is changed to, in seconds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the load (default: %(default)s)")
    return parser.parse_args()


def _end(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _bed(console: Console, *, keep: bool) -> Iterator[Bed]:
    """A bed of the demo's own, entered; with `keep` it stays, where `hack/bed` finds it unless that has one already."""
    folder = tools.cache_folder() / "run" / "default"
    directory = folder if keep and not Bed(directory=folder).is_running() else None
    bed = Bed(settings=Settings(nodes=(), image_env=_IMAGE_ENV, attached=not keep), directory=directory)
    console.print("Bringing up a cluster: 2 nodes of 8 H100, 2 nodes of 4 L40S", highlight=False)
    try:
        bed.start()
        bed.wait_ready()
        outside = bed.kubeconfig
        bed.enter()
        yield bed
    finally:
        if keep and bed.is_running():
            end = "hack/bed down" if directory else f"kill {bed.pid}"
            console.print(f"\nThe cluster stays up. Look around with\n  export KUBECONFIG={outside}", soft_wrap=True)
            console.print(f"  kubectl get modelservingplans,pods -n {_NAMESPACE}\nand end it with\n  {end}", soft_wrap=True)
        else:
            bed.stop()


def _demonstrate(bed: Bed, options: argparse.Namespace, console: Console) -> None:
    plan = yaml.safe_load(_MANIFEST.read_text())
    watch = Watch(bed, _NAMESPACE, plan["metadata"]["name"])
    story = asyncio.run(_play(bed, watch, plan, options, console))
    tables.show(console, story)
    _show_machine(console, story)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in (("plan.png", figures.draw_plan), ("change.png", figures.draw_change)):
        draw(story, options.out / name)
        console.print(f"wrote {options.out / name}", highlight=False, soft_wrap=True)
    failed = [record for record in story.records if record.failed]
    if failed:
        raise DemoError(f"{len(failed)} of {len(story.records)} requests failed, the first one with: {failed[0].error}")


async def _play(bed: Bed, watch: Watch, plan: dict[str, Any], options: argparse.Namespace, console: Console) -> Story:
    with display(console, [model["name"] for model in plan["spec"]["models"]]) as screen:
        screen.say("installing the operator's chart")
        await asyncio.to_thread(_install, bed)
        play = Play(watch, screen, plan, options.target_s, options.seed)
        screen.say(f"kubectl apply -f {_MANIFEST.relative_to(_CHECKOUT)}, waiting for Ready")
        served = await play.bring_up(_MANIFEST)
        await _show_plan(watch, console)
        story = await play.perform(served)
    await _show_plan(watch, console)
    return story


def _install(bed: Bed) -> None:
    try:
        bed.helm.install(_CHART, "servingplan", _OPERATOR_NAMESPACE, _VALUES)
    except RuntimeError as error:
        raise DemoError(f"the operator's chart could not be installed: {error}") from error


async def _show_plan(watch: Watch, console: Console) -> None:
    command = ("get", "msp", f"--namespace={watch.namespace}")
    console.print(
        f"\n$ kubectl {' '.join(command)}\n{await watch.kubectl(*command)}", markup=False, highlight=False, soft_wrap=True
    )


def _show_machine(console: Console, story: Story) -> None:
    lag_s = summarise(story.records).lag_p99_s
    text = f"Under load this machine was {100 * story.machine_busy:.0f} % busy; requests left {1000 * lag_s:.0f} ms late (p99)."
    if story.machine_busy > _TOO_BUSY:
        text += " That is too busy: part of the latencies is the machine's own."
    console.print(f"\n{text}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
