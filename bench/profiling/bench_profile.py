"""Whether profiling a server gives back the coefficients it runs with.

Starts the simulated vLLM as a process, once as its coefficients say and once 1.3 times slower than the profile believed of
it, measures it with ``servingplan profile`` as a user would, and compares. Each measurement takes below three minutes.

    python bench/profiling/bench_profile.py [OUT_FOLDER]
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import yaml

mpl.use("Agg")
from matplotlib import pyplot as plt

SIMULATE = "import sys; from servingplan.sim.cli import main; sys.exit(main(sys.argv[1:]))"
BELIEVED = {"alphaMs": 13.7, "betaMs": 0.057, "gammaMs": 0.00006}
"""Qwen3-32B on two H100, as the simulator has it."""

TARGETS = {"alphaMs": 0.05, "betaMs": 0.05, "gammaMs": 0.15}
LONGEST_S = 180.0
SLOWER = (1.0, 1.3)
NAMES = {"alphaMs": "alpha, ms", "betaMs": "beta, ms", "gammaMs": "gamma, ms"}


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement: coefficients found and true, the errors it says it has, and how long it took."""

    slower: float
    found: dict[str, float]
    own_error: dict[str, float]
    seconds: float
    told: str

    def true(self, name: str) -> float:
        return BELIEVED[name] * self.slower

    def error(self, name: str) -> float:
        return self.found[name] / self.true(name) - 1


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    out.mkdir(parents=True, exist_ok=True)
    trials = [trial(slower, out) for slower in SLOWER]
    print(f"\n{'server':>16} {'coefficient':>12} {'true':>10} {'found':>10} {'error':>8} {'own s.e.':>9} {'target':>7}")
    for one in trials:
        for name, target in TARGETS.items():
            verdict = "" if abs(one.error(name)) <= target else "  MISSED"
            print(
                f"{f'{one.slower:g}x believed':>16} {NAMES[name]:>12} {one.true(name):10.4g} {one.found[name]:10.4g}"
                f" {100 * one.error(name):+7.1f} % {100 * one.own_error[name]:7.1f} % {100 * target:5.0f} %{verdict}"
            )
        verdict = "" if one.seconds <= LONGEST_S else "  MISSED"
        print(
            f"{f'{one.slower:g}x believed':>16} {'seconds':>12} {'':10} {one.seconds:10.0f} {'':27} {LONGEST_S:5.0f}{verdict}"
        )
        print(f"{'':16} {one.told}")
    draw(trials, out / "profile.png")
    print(f"\nplot: {out / 'profile.png'}; fits: {', '.join(str(out / f'profile-{x:g}x.png') for x in SLOWER)}")


def trial(slower: float, out: Path) -> Trial:
    """Measures one server."""
    believed = out / "believed.yaml"
    believed.write_text(yaml.safe_dump({"coefficients": {name: f"{value:.8f}" for name, value in BELIEVED.items()}}))
    target = out / f"profile-{slower:g}x.yaml"
    command = [sys.executable, "-m", "servingplan.profiling", "--model=qwen", "-o", str(target), "--believed", str(believed)]
    with simulator(f"--sim-speed={1 / slower}") as url:
        begun_s = time.monotonic()
        ended = subprocess.run([*command, "--endpoint", url], stderr=subprocess.PIPE, text=True, check=False)
        seconds = time.monotonic() - begun_s
    print(ended.stderr)
    if ended.returncode:
        sys.exit(f"the measurement failed with status {ended.returncode}")
    text = target.read_text()
    found = {name: float(value) for name, value in yaml.safe_load(text)["coefficients"].items()}
    sentence = " ".join(text.replace("\n#", "").split())
    own = {}
    for name in BELIEVED:
        match = re.search(rf"{name.removesuffix('Ms')} \S+ \S+ \+- (\S+) %", sentence)
        own[name] = float(match[1]) / 100 if match else float("nan")
    told = next((line for line in ended.stderr.splitlines() if line.startswith("Against what was believed")), "")
    return Trial(slower, found, own, seconds, told)


@contextlib.contextmanager
def simulator(*flags: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = ["Qwen/Qwen3-32B", "-tp=2", "--served-model-name=qwen", "--host=127.0.0.1", f"--port={port}", *flags]
    process = subprocess.Popen([sys.executable, "-c", SIMULATE, *given], stderr=subprocess.DEVNULL, env=dict(os.environ))
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)  # the port answers, or the process ends: neither can be waited for
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def draw(trials: list[Trial], target: Path) -> None:
    """Relative errors with twice the standard error each fit claims, in the band that is asked for."""
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for place, (name, allowed) in enumerate(TARGETS.items()):
        label = "asked for" if place == 0 else None
        axis.fill_between(
            [place - 0.4, place + 0.4], -100 * allowed, 100 * allowed, color="#888888", alpha=0.15, lw=0, label=label
        )
        for k, (one, colour) in enumerate(zip(trials, ("#1d4e89", "#d1495b"), strict=True)):
            axis.errorbar(
                place - 0.12 + 0.24 * k,
                100 * one.error(name),
                yerr=200 * one.own_error[name],
                fmt="o",
                color=colour,
                capsize=4,
                label=f"{one.slower:g} times as slow as believed, {one.seconds:.0f} s" if place == 0 else None,
            )
    axis.axhline(0, color="#222222", lw=0.8)
    axis.set_xticks(range(len(TARGETS)), [name.removesuffix("Ms") for name in TARGETS])
    axis.set(
        ylabel="found against true, %", title="servingplan profile on the simulated vLLM, bars: twice its own standard error"
    )
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.25, axis="y")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left")
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main()
