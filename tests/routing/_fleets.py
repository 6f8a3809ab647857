"""Endpoints, requests and brains for the tests of the decision."""

from __future__ import annotations

from dataclasses import replace

from servingplan.routing.ask import Ask, ClassRule
from servingplan.routing.brain import Brain
from servingplan.routing.fleet import Endpoint, Engine, Scrape
from servingplan.routing.preset import Prices

SMALL = Engine("small", "3b", 0.0096, 55e-6, 6e-8, 0.0, 256, 2048, 200_000, 0.06e-6, 0.06e-6)
MIDDLE = Engine("middle", "14b", 0.0146, 1e-4, 8e-8, 0.0, 256, 2048, 200_000, 0.15e-6, 0.15e-6)
LARGE = Engine("large", "72b", 0.0397, 1.7e-4, 1e-7, 0.0, 256, 2048, 200_000, 0.38e-6, 0.40e-6)
QUALITY = {"3b": 0.40, "14b": 0.55, "72b": 0.65}
BALANCED = Prices(1500.0, 0.02)
RULES = {"chat": ClassRule("chat")}


def endpoints(*engines: Engine, first: int = 1) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{first + at}:8000", engine) for at, engine in enumerate(engines)]


def twins(count: int, engine: Engine = SMALL) -> list[Endpoint]:
    return endpoints(*[engine] * count)


def ask(prompt: float = 200.0, output: float = 200.0, **fields: object) -> Ask:
    plain = Ask("chat", prompt, QUALITY, dict.fromkeys(QUALITY, output))
    return replace(plain, **fields)


def seen(brain: Brain, replicas: list[Endpoint], now_s: float = 0.0, **load: dict[str, float]) -> Brain:
    """A brain that has just seen all replicas; ``running`` and ``waiting`` by address, else nothing."""
    for each in replicas:
        running, waiting = (load.get(what, {}).get(each.address, 0.0) for what in ("running", "waiting"))
        brain.observe(each.address, Scrape(now_s, running, waiting, None), now_s)
    return brain


def brain(
    replicas: list[Endpoint], prices: Prices = BALANCED, *, rules: dict[str, ClassRule] | None = None, **options: object
) -> Brain:
    """A brain that has just seen all replicas idle."""
    made = Brain(prices, **options)
    made.configure(replicas, RULES if rules is None else rules)
    return seen(made, replicas)
