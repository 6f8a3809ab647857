"""What a picker decides with, kept up to date: the table, the endpoints, what they say of themselves, and the predictor.

Everything runs in one event loop with the server, so the decision sees one state at a time and needs no lock. Whatever is
lost, the last state serves on: the API server, a table that someone has spoilt, a predictor that cannot be loaded, a pod that
does not answer. Who asks is told how old the state is.

The shares that were realised are metered against those of the plan and told to Prometheus. Nothing here steers by them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servingplan.api.routing_table import RoutingTable
from servingplan.picker import table as tables
from servingplan.picker.asking import Predict
from servingplan.picker.scrape import Pace, Scraper
from servingplan.picker.watch import Collection, Mirror, Objects, Server, SourceError, follow_file, resolve
from servingplan.render.names import LABEL_PLAN, table_name
from servingplan.routing.ask import ClassRule
from servingplan.routing.brain import Brain
from servingplan.routing.fleet import Endpoint
from servingplan.routing.preset import Preset

log = logging.getLogger(__name__)

TABLE_KEY = "table.json"

Labels = tuple[tuple[str, str], ...]
Run = Callable[[], Coroutine[Any, Any, None]]

_UPKEEP_S = 1.0
_SHARES_S = 60.0
_RESOLVE_S = 1.0
_PREDICTOR_S = 10.0
_RESTART_S = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """Where the state comes from.

    Attributes:
        table_file: Mounted routing table, read instead of the ConfigMap. Without an API server the endpoints are then those
            behind the DNS names of the pools.
        endpoints_file: JSON object with lists of ``ip:port`` by pool, read instead of EndpointSlices; needs ``table_file``.
        predictor_file: Trained estimator, in place of the one that the table names.
        server: API server; None for the pod's own.
    """

    namespace: str
    plan: str
    table_file: Path | None = None
    endpoints_file: Path | None = None
    predictor_file: Path | None = None
    pace: Pace = field(default_factory=Pace)
    server: Server | None = None


class State:
    """Owns the decision and feeds it. For one event loop.

    Args:
        options: Where the state comes from.
        clock: Seconds that only grow; every moment that the decision is told has to be of this clock.

    Attributes:
        brain: The decision.
        predict: The predictor; None without one.
    """

    def __init__(self, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self._options, self._clock = options, clock
        self._weighing: tables.Weighing | None = None
        self.brain = Brain(Preset.BALANCED.prices)
        self._table: RoutingTable | None = None
        self.predict: Predict | None = None
        self._scraper = Scraper(self.brain, options.pace, clock)
        self._mirrors: list[Mirror] = []
        self._slices: tuple[Mapping[str, Any], ...] | None = None
        self._listed: dict[str, list[str]] | None = None
        self._applied: tuple[tuple[Endpoint, ...], dict[str, ClassRule]] | None = None
        self._realised: Mapping[str, Mapping[str, float]] = {}
        self._refusals, self._refusal = 0, ""
        self._loaded: tuple[Any, ...] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def table(self) -> RoutingTable | None:
        """The table to decide by; None while there is nothing to decide with, or the plan routes by its weights alone.

        Requests then go by the weights. That is not the answer when all endpoints are known to be gone.
        """
        return self._table if self._applied is not None else None

    async def start(self) -> None:
        """Begins to follow; returns at once.

        Raises:
            SourceError: There is no API server to follow, and no file either.
        """
        for name, run in (*self._following(), ("upkeep", self._keep_up), ("predictor", self._follow_predictor)):
            self._tasks.append(asyncio.create_task(_forever(name, run), name=name))

    async def stop(self) -> None:
        """Follows nothing any more; what is in flight may still end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._scraper.close()

    def ready(self) -> bool:
        """Whether there are a table and an endpoint that serves."""
        return self._applied is not None and any(endpoint.serves for endpoint in self._applied[0])

    def age_s(self) -> float:
        """Seconds since the last scrape of the endpoint that was not heard of for longest; infinite if one never was."""
        return self._scraper.oldest_s()

    def numbers(self) -> dict[str, dict[Labels, float]]:
        """Gauges and counters by name and labels; of endpoints only sums by pool, because those come and go."""
        found: dict[str, dict[Labels, float]] = {
            "table_generation": {(): float(self._table.generation if self._table else -1)},
            "table_refusals": {(): float(self._refusals)},
            "table_refused": {(): float(bool(self._refusal))},
            "predictor_loaded": {(): float(self.predict is not None)},
            "scrapes": {
                (("outcome", "answered"),): float(self._scraper.answered),
                (("outcome", "failed"),): float(self._scraper.failed),
            },
            **self._by_pool(),
            **self._chosen(),
        }
        if ages := [age_s for mirror in self._mirrors if (age_s := mirror.age_s()) is not None]:
            found["api_age_seconds"] = {(): max(ages)}
        if self._table is not None:
            shares = tables.shares(self._table, self._realised)
            of = {share: (("request_class", share.request_class), ("pool", share.pool)) for share in shares}
            found["planned_share"] = {of[share]: share.planned for share in shares}
            found["realised_share"] = {of[share]: share.realised for share in shares if share.realised is not None}
            found["plan_distance"] = {(("request_class", name),): apart for name, apart in tables.distance(shares).items()}
        return found

    def _chosen(self) -> dict[str, dict[Labels, float]]:
        """What the plan is made anew with: which models were chosen, and what every model would have scored there."""
        picks: dict[Labels, float] = {}
        quality: dict[Labels, float] = {}
        for (name, model), sent in self.brain.tally.sent.items():
            picks[("request_class", name), ("model", model)] = float(sent.requests)
            for other, total in sent.quality.items():
                quality[("request_class", name), ("picked", model), ("model", other)] = total
        return {"picks_total": picks, "predicted_quality_total": quality}

    def _by_pool(self) -> dict[str, dict[Labels, float]]:
        endpoints = self._applied[0] if self._applied else ()
        ejected, flying = self.brain.ejected(self._clock()), self.brain.in_flight()
        states: Counter[Labels] = Counter()
        in_flight: defaultdict[Labels, float] = defaultdict(float)
        ages_s: dict[Labels, float] = {}
        for endpoint in endpoints:
            pool, address = ("pool", endpoint.engine.pool), endpoint.address
            state = "leaving" if not endpoint.serves else "ejected" if address in ejected else "serving"
            states[pool, ("state", state)] += 1
            in_flight[(pool,)] += flying.get(address, 0.0)
            if endpoint.serves:
                ages_s[(pool,)] = max(ages_s.get((pool,), 0.0), self._scraper.age_s(address))
        prices: dict[Labels, float] = {(("pool", pool),): price for pool, price in self.brain.capacity_prices().items()}
        return {
            "endpoints": dict(states),
            "in_flight": dict(in_flight),
            "scrape_age_seconds": ages_s,
            "capacity_price": prices,
        }

    def _following(self) -> Iterator[tuple[str, Run]]:
        """What tells of the table and of the endpoints."""
        namespace, plan = self._options.namespace, self._options.plan
        table, endpoints, server = self._options.table_file, self._options.endpoints_file, self._server()
        if table is not None:
            yield "table", lambda: follow_file(table, self._table_changed)
        elif server is not None:
            yield "table", self._mirrored(server, Collection.config_map(namespace, table_name(plan)), self._config_map_changed)
        if endpoints is not None:
            yield "endpoints", lambda: follow_file(endpoints, self._list_changed)
        elif server is not None:
            slices = Collection.endpoint_slices(namespace, LABEL_PLAN, plan)
            yield "endpoints", self._mirrored(server, slices, self._slices_changed)
        else:
            yield "endpoints", self._follow_names

    def _server(self) -> Server | None:
        """The API server; None where files tell all that it would, or all but the endpoints and there is none."""
        if self._options.table_file is None:
            return self._options.server or Server.of_pod()
        if self._options.endpoints_file is not None:
            return None
        try:
            return self._options.server or Server.of_pod()
        except SourceError as error:
            log.info("%s The endpoints are those behind the DNS names of the pools.", error)
            return None

    def _mirrored(self, server: Server, collection: Collection, changed: Callable[[Objects], None]) -> Run:
        mirror = Mirror(server, collection, changed, self._clock)
        self._mirrors.append(mirror)
        return mirror.run

    def _config_map_changed(self, objects: Objects) -> None:
        for each in objects.values():
            self._table_changed((each.get("data") or {}).get(TABLE_KEY, ""))

    def _table_changed(self, text: str) -> None:
        """Takes a table, or says once what is wrong with it."""
        read = tables.read(text, self._options.namespace, self._options.plan)
        if isinstance(read, tables.Refused):
            self._refusals += 1
            if read.message != self._refusal:
                log.error("%s %s", read.message, "The last one stands." if self._table else "Nothing is decided without one.")
            self._refusal = read.message
            return
        self._refusal = ""
        if read != self._table:
            decides = "" if read.picker else ", by which nothing is decided here"
            log.info("takes the routing table of generation %d%s", read.generation, decides)
            self._table = read
            self._weigh(tables.weighing(read))
        self._apply()

    def _weigh(self, weighing: tables.Weighing) -> None:
        if self._weighing is None:
            # Nothing is in flight yet. Later the time limit stays: another one in the plan brings other router pods.
            self.brain = self._scraper.sink = Brain(Preset.BALANCED.prices, time_limit_s=weighing.time_limit_s)
        if weighing != self._weighing:
            self._weighing = weighing
            self.brain.retune(weighing.prices, guard_s=weighing.guard_s, shed=weighing.shed, peers=weighing.peers)

    def _slices_changed(self, objects: Objects) -> None:
        self._slices = tuple(objects.values())
        self._apply()

    def _list_changed(self, text: str) -> None:
        try:
            self._listed = {pool: sorted(map(tables.checked, addresses)) for pool, addresses in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError):
            log.error("%s is no JSON object with lists of ip:port by pool; the last one stands", self._options.endpoints_file)
            return
        self._apply()

    async def _follow_names(self) -> None:
        while True:
            if self._table is not None:
                names = {name: (pool.address, pool.port) for name, pool in tables.pools(self._table).items()}
                found = await resolve(names, self._listed or {})
                if found != self._listed:
                    self._listed = found
                    self._apply()
            await asyncio.sleep(_RESOLVE_S)

    def _apply(self) -> None:
        """Tells the decision of its endpoints and classes, if they are other ones."""
        table = self._table
        if table is None or table.picker is None:
            self._applied = None
            self._scraper.follow(())
            return
        known = self._members(table)
        if known is None:
            return
        applied = tables.endpoints(table, known), tables.class_rules(table)
        if applied != self._applied:
            self.brain.configure(*applied)
            self._applied = applied
            self._scraper.follow({endpoint.address for endpoint in applied[0] if endpoint.serves})

    def _members(self, table: RoutingTable) -> tables.Members | None:
        """The pods of the table's pools; None while nobody has told of any."""
        if self._slices is not None:
            return tables.members(self._slices, {name: pool.port for name, pool in tables.pools(table).items()})
        if self._listed is not None:
            return {pool: dict.fromkeys(addresses, True) for pool, addresses in self._listed.items()}
        return None

    async def _keep_up(self) -> None:
        """Releases what nobody told the end of, and meters the shares."""
        metered_s = self._clock()
        while True:
            await asyncio.sleep(_UPKEEP_S)
            now_s = self._clock()
            if expired := self.brain.expire(now_s):
                log.warning("released %d requests whose end nobody told", expired)
            if now_s - metered_s >= _SHARES_S:
                metered_s, self._realised = now_s, self.brain.shares()

    async def _follow_predictor(self) -> None:
        while True:
            named = self._table.picker.predictor if self._table and self._table.picker else ""
            file = self._options.predictor_file or (Path(named) if named else None)
            await self._load(file)
            await asyncio.sleep(_PREDICTOR_S if self._table else _UPKEEP_S)

    async def _load(self, file: Path | None) -> None:
        """Loads the predictor if its file is another one; what is wrong with it is said once."""
        seen = await asyncio.to_thread(_stamp, file)
        if seen == self._loaded:
            return
        self._loaded = seen
        if file is None:
            self.predict = None
            return
        try:
            self.predict = await asyncio.to_thread(_load, file)
            log.info("takes the predictor %s", file)
        except (OSError, ValueError) as error:
            stands = "the one before stands" if self.predict else "the class's means are taken"
            log.error("%s: %s; %s", file, error, stands)


def _stamp(file: Path | None) -> tuple[Any, ...] | None:
    """What differs when a file is another one; a mounted one is exchanged by a link."""
    if file is None:
        return ("none",)
    try:
        stat = file.stat()
    except OSError:
        return (file, "missing")
    return (file, stat.st_ino, stat.st_mtime_ns, stat.st_size)


def _load(file: Path) -> Predict:
    # Its tokenizer and vectors take a moment to load, which a picker without a predictor need not wait for.
    from servingplan.picker import embed  # noqa: PLC0415

    try:
        return embed.load(file)
    except embed.EmbeddingUnavailableError as error:
        raise ValueError(str(error)) from None


async def _forever(name: str, run: Run) -> None:
    """Runs until cancelled, whatever happens: a mistake in one part must not end what feeds the decision."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("%s failed and begins anew", name)
        await asyncio.sleep(_RESTART_S)
