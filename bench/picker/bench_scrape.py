"""What it costs an idle picker to know its pods: 50 of them with vLLM's own metrics pages, on loopback.

The pods live in another process, so that the processor time told is the picker's alone. Next to our scraper, in the same run:
a client library that fetches the same pages at the same pace and searches them as ours does, and one that parses them whole.

    python bench/picker/bench_scrape.py [OUT_FOLDER]
"""

import asyncio
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import aiohttp
import matplotlib as mpl
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from scipy import stats

from servingplan.picker.scrape import Pace, Scraper, read_page
from servingplan.routing.fleet import Scrape

mpl.use("Agg")
from matplotlib import pyplot as plt

DATA = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "vllm-0.32.0-metrics.txt"
PODS = 50
_SETTLING_S = 2.0
WINDOWS = 5
WINDOW_S = 2.5
TARGET = 0.06
STEADY = Pace(interval_s=0.25, idle_interval_s=0.25)

NARROW = b"""\
vllm:num_requests_running{engine="0",model_name="tiny"} 0.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.0
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 168.0
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 0.0
"""


def whole_page() -> bytes:
    """A real server's page, or one of its size."""
    if DATA.exists():
        return DATA.read_bytes()
    filler = "".join(f'vllm:filler_seconds_bucket{{engine="0",le="{place}",model_name="tiny"}} 1.0\n' for place in range(800))
    return NARROW + filler.encode()


class _Page(asyncio.Protocol):
    """Answers every question with the same bytes, as uvicorn frames them."""

    def __init__(self, page: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: text/plain; version=0.0.4\r\n\r\n"
        self._answer = head % len(page) + page

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer * data.count(b"\r\n\r\n"))


def serve(pages: list[bytes], pipe: Pipe) -> None:
    """As many pods for each page: tells their addresses and serves until it is told to end."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        servers = [
            [await loop.create_server(functools.partial(_Page, page), "127.0.0.1", 0) for _ in range(PODS)] for page in pages
        ]
        pipe.send([[f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in group] for group in servers])
        await asyncio.to_thread(pipe.recv)

    asyncio.run(run())


class Told:
    """Counts in the place of the decision."""

    def __init__(self) -> None:
        self.scrapes = self.silences = 0

    def observe(self, _address: str, _scrape: Scrape, _now_s: float) -> None:
        self.scrapes += 1

    def silent(self, _address: str, _now_s: float) -> None:
        self.silences += 1

    def gone(self, _address: str, _now_s: float) -> None:
        self.silences += 1


@dataclass
class Cost:
    """Processor time per window.

    Attributes:
        shares: Of one core, by window.
        rates_rps: Scrapes per second.
    """

    name: str
    shares: np.ndarray
    rates_rps: np.ndarray

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the mean share."""
        return float(stats.t.ppf(0.975, len(self.shares) - 1) * self.shares.std(ddof=1) / len(self.shares) ** 0.5)

    @property
    def each_us(self) -> float:
        """Microseconds per scrape."""
        return float(1e6 * self.shares.sum() / self.rates_rps.sum())


async def measured(name: str, told: Told) -> Cost:
    """Measures what runs beside it."""
    await asyncio.sleep(_SETTLING_S)  # connections are made and caches fill before anything is measured
    shares, rates = [], []
    for _ in range(WINDOWS):
        begin, cpu, seen = time.perf_counter(), time.process_time(), told.scrapes
        await asyncio.sleep(WINDOW_S)
        spent_s = time.perf_counter() - begin
        shares.append((time.process_time() - cpu) / spent_s)
        rates.append((told.scrapes - seen) / spent_s)
    if told.silences:
        sys.exit(f"{name}: {told.silences} scrapes failed, so its figures mean nothing")
    return Cost(name, np.array(shares), np.array(rates))


async def ours(name: str, addresses: list[str], pace: Pace) -> Cost:
    told = Told()
    scraper = Scraper(told, pace)
    scraper.follow(addresses)
    try:
        return await measured(name, told)
    finally:
        await scraper.close()


async def library(name: str, addresses: list[str], read: Callable[[bytes], object]) -> Cost:
    """The same rounds with aiohttp's client, at its cheapest settings."""
    told, rounds = Told(), Scraper(Told(), STEADY)
    connector, jar = aiohttp.TCPConnector(limit=0), aiohttp.DummyCookieJar()
    headers = {"Accept": "text/plain"}
    skipped = ("User-Agent", "Accept-Encoding")
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=jar, headers=headers, skip_auto_headers=skipped
    ) as session:

        async def follow(address: str) -> None:
            while True:
                async with session.get(f"http://{address}/metrics", timeout=aiohttp.ClientTimeout(total=30.0)) as response:
                    read(await response.read())
                told.scrapes += 1
                await asyncio.sleep(rounds.until_s(STEADY.interval_s))

        tasks = [asyncio.create_task(follow(address)) for address in addresses]
        try:
            return await measured(name, told)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def parse_all(page: bytes) -> int:
    return sum(len(family.samples) for family in text_string_to_metric_families(page.decode()))


async def measure_all(whole: list[str], busy: list[str], narrow: list[str]) -> list[Cost]:
    return [
        await ours("ours, pods idle (default pace)", whole, Pace()),
        await ours("ours, pods at work (default pace)", busy, Pace()),
        await ours("ours, every 0.25 s, pods send what was asked for", narrow, STEADY),
        await ours("ours, every 0.25 s", whole, STEADY),
        await library("aiohttp, searched", whole, read_page),
        await library("aiohttp, parsed whole (keeps no pace)", whole, parse_all),
    ]


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    page = whole_page()
    running = b'num_requests_running{engine="0",model_name="tiny"} '
    pages = [page, page.replace(running + b"0.0", running + b"4.0"), NARROW]
    near, far = multiprocessing.Pipe()
    pods = multiprocessing.get_context("spawn").Process(target=serve, args=(pages, far), daemon=True)
    pods.start()
    costs = asyncio.run(measure_all(*near.recv()))
    near.send(None)
    pods.join()
    steady = costs[3]
    print(f"{PODS} pods with pages of {len(page) / 1000:.0f} kB; {WINDOWS} windows of {WINDOW_S:g} s each, 95 % intervals")
    print(f"{'':52}{'of a core':>18}{'scrapes/s':>12}{'us each':>10}{'each, by ours':>16}")
    for cost in costs:
        share = f"{100 * cost.shares.mean():.2f} +- {100 * cost.half_width:.2f} %"
        ratio = cost.each_us / steady.each_us
        print(f"{cost.name:52}{share:>18}{cost.rates_rps.mean():>12.0f}{cost.each_us:>10.0f}{ratio:>16.2f}")
    idle = costs[0].shares.mean()
    verdict = "met" if idle <= TARGET else "missed"
    print(f"\nidle at the default pace: {100 * idle:.2f} % of a core, asked for <= {100 * TARGET:g} %: {verdict}")
    draw(costs, out)


def draw(costs: list[Cost], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    figure, axis = plt.subplots(figsize=(10, 3.9), layout="constrained")
    colours = ["#1b6ca8" if cost.name.startswith("ours") else "#b0b7bf" for cost in costs]
    shares = [100 * cost.shares.mean() for cost in costs]
    bars = axis.barh(
        [cost.name for cost in costs], shares, xerr=[100 * cost.half_width for cost in costs], color=colours, height=0.62
    )
    axis.bar_label(bars, [f"{share:.1f} %" for share in shares], padding=6, fontsize=9)
    axis.axvline(100 * TARGET, color="#d1495b", lw=1.2, ls="--")
    axis.text(100 * TARGET * 1.04, len(costs) - 0.42, "asked for", color="#d1495b", fontsize=8.5, va="bottom")
    axis.set(xscale="log", xlabel="share of one core", xlim=(0.3, max(shares) * 2))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"Processor time of an idle picker that scrapes {PODS} pods", loc="left", fontsize=11, fontweight="bold")
    figure.savefig(out / "picker_scrape.png", dpi=130)
    print(f"plot: {out / 'picker_scrape.png'}")


if __name__ == "__main__":
    main()
