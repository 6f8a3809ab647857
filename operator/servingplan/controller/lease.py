"""Leader election by a Lease: of several operators one writes, and the others stand by.

The protocol is that of client-go's ``leaderelection``, so that people and tools read the Lease as they are used to. A candidate
takes the Lease when nobody holds it, or when its record has not changed for as long as the record itself says. It measures that
time by its own clock since it saw the change: the clocks of two machines are never compared. Whoever takes or renews the Lease
replaces the record it has read, so of two that try at once the API server refuses one.

The leader leads until ``deadline_s`` after the *start* of the last renewal that succeeded. Nobody can have seen that renewal
earlier, hence nobody takes the Lease before ``duration_s`` after it, and the time between belongs to writes that are under way:

    renewal starts     deadline_s             duration_s
    |------- writes may begin -------|-- begun ones end --|  others may lead

``Leadership.guard`` tells a write how much is left of that; ``Kube`` waits no longer, and the API server is told to work on it
no longer. A process that was frozen finds its time used up when it wakes, because the clock counts on, also while the machine
sleeps. What this cannot hold back is a write that was frozen between the question and the socket, or delayed on its way by more
than what was left: Kubernetes has nothing by which a server could tell an old leader's request from a new one's.

A lost Lease is not fought for again in the same process: what it remembers is of a time when it led. It ends and starts anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from servingplan.controller.kube import CONFLICT, NOT_FOUND, Kube, KubeError, NotLeader

log = logging.getLogger(__name__)

_RELEASE_TIMEOUT_S = 3.0


def uptime() -> float:
    """Seconds on a clock that nobody sets and that counts on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def candidate(name: str) -> str:
    """An identity for one process on the host or in the pod ``name``; its successor there gets another."""
    return f"{name}_{uuid.uuid4()}"


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take.

    Attributes:
        duration_s: Silence of the leader after which another may lead; a whole number, as the record holds it.
        deadline_s: Age of the last renewal from which on the leader begins no write.
        retry_s: Between two looks at the Lease, and between two renewals.
    """

    duration_s: int = 12
    deadline_s: float = 8.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_s < self.deadline_s < self.duration_s:
            raise ValueError("retry_s, deadline_s and duration_s have to be positive and each less than the next")


@dataclass(slots=True)
class Leadership:
    """Whether this process leads, and for how much longer.

    Attributes:
        lost: Set once it led and no longer does.
    """

    timing: Timing = field(default_factory=Timing)
    clock: Callable[[], float] = uptime
    lost: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _won: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _renewed_at: float = field(default=-math.inf, init=False)

    def is_leader(self) -> bool:
        """Whether a write may begin."""
        return not self.lost.is_set() and self.clock() < self._renewed_at + self.timing.deadline_s

    async def acquired(self) -> None:
        """Returns once this process leads."""
        await self._won.wait()

    def guard(self) -> float:
        """Seconds within which a write that begins now has to have ended.

        Raises:
            NotLeader: None may begin.
        """
        if not self.is_leader():
            reason = "the Lease was lost" if self.lost.is_set() else "the Lease was not renewed in time"
            raise NotLeader(
                f"{reason}, so another operator may lead by now" if self._won.is_set() else "this operator stands by"
            )
        return self._renewed_at + self.timing.duration_s - self.clock()

    def renewed(self, since: float) -> None:
        """The Lease is held by a request that was begun at ``since``."""
        self._renewed_at = since
        self._won.set()

    def ended(self) -> None:
        """The Lease is no longer held, or about to be given back."""
        if self._won.is_set():
            self.lost.set()


class Elector:
    """One candidate for a Lease.

    Args:
        kube: A connection that is not guarded.
        identity: Names this process among the candidates; never the same for two, nor for one and its successor.
        leadership: What it tells the rest of the process.
        stands_by: Called at every look at a Lease that somebody else holds.
    """

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        identity: str,
        leadership: Leadership,
        stands_by: Callable[[], None] = lambda: None,
    ) -> None:
        self._kube, self._namespace, self._name = kube, namespace, name
        self._identity, self._leadership, self._stands_by = identity, leadership, stands_by
        self._timing, self._clock = leadership.timing, leadership.clock
        self._seen: dict[str, Any] | None = None
        self._seen_at = 0.0
        self._complaint = ""

    async def run(self) -> None:
        """Stands by, leads and returns when the Lease is lost; gives it back when cancelled."""
        try:
            await self._stand_by()
            log.info("leads by the Lease %s/%s as %s", self._namespace, self._name, self._identity)
            await self._lead()
            log.error("the Lease %s/%s is lost", self._namespace, self._name)
        except asyncio.CancelledError:
            # Nothing is begun from here on, and what was begun ends with its task before the Lease goes.
            self._leadership.ended()
            with contextlib.suppress(KubeError, TimeoutError):
                async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                    await self._release()
            raise
        finally:
            self._leadership.ended()

    async def _stand_by(self) -> None:
        while not await self._attempt(self._timing.deadline_s):
            self._stands_by()
            soon_s = self._expires_in() if self._held_by_another() and not self._complaint else 0.0
            await asyncio.sleep(min(soon_s, self._timing.retry_s) if soon_s > 0 else self._timing.retry_s)

    async def _lead(self) -> None:
        """Renews until the deadline has passed, or until somebody else holds the Lease."""
        held = True
        while self._leadership.is_leader() and self._holder() == self._identity:
            await asyncio.sleep(self._timing.retry_s if held else self._timing.retry_s / 4)
            # Half of it, so that after a request that got lost there is time for another one.
            held = await self._attempt(self._timing.deadline_s / 2)

    async def _attempt(self, limit_s: float) -> bool:
        """Tries to take or renew the Lease; says whether that succeeded."""
        began = self._clock()
        try:
            async with asyncio.timeout(limit_s):
                held = await self._take()
        except (KubeError, TimeoutError) as error:
            self._complain(str(error) or f"no answer within {limit_s:g} s")
            return False
        self._complain("")
        if held:
            self._leadership.renewed(began)
        return held

    async def _take(self) -> bool:
        """One try; a leader that nobody disturbed replaces the record that it wrote last without reading it again."""
        if self._holder() != self._identity:
            self._observe(await self._read())
            if self._held_by_another() and self._expires_in() > 0:
                return False
        try:
            self._observe(await self._write(self._record()))
        except KubeError as error:
            if error.status not in {CONFLICT, NOT_FOUND}:
                raise
            # Somebody was faster. Or an earlier try of this candidate arrived after all, at a time that nobody knows any more:
            # it counts for nothing, but it is the record to replace next.
            self._observe(await self._read())
            return False
        return True

    async def _read(self) -> dict[str, Any] | None:
        return await self._kube.get("Lease", self._namespace, self._name)

    async def _write(self, record: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": self._name, "namespace": self._namespace} if self._seen is None else self._seen["metadata"]
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": record}
        if self._seen is None:
            return await self._kube.create("Lease", self._namespace, body)
        return await self._kube.replace(body)

    def _record(self) -> dict[str, Any]:
        now, before = _micro_time(), _spec(self._seen)
        kept = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._timing.duration_s,
            "acquireTime": before.get("acquireTime", now) if kept else now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (0 if kept or self._seen is None else 1),
        }

    async def _release(self) -> None:
        """Leaves the Lease to whoever looks next."""
        if self._holder() != self._identity:
            return
        # A renewal that was cut short may have arrived, and then the record is another one than was read last.
        self._observe(await self._read())
        if self._holder() == self._identity:
            await self._write(self._record() | {"holderIdentity": "", "leaseDurationSeconds": 1})
            log.info("gave the Lease %s/%s back", self._namespace, self._name)

    def _observe(self, lease: dict[str, Any] | None) -> None:
        if lease is None or self._seen is None or _spec(lease) != _spec(self._seen):
            self._seen_at = self._clock()
        self._seen = lease

    def _holder(self) -> str:
        return str(_spec(self._seen).get("holderIdentity") or "")

    def _held_by_another(self) -> bool:
        return self._holder() not in {"", self._identity}

    def _expires_in(self) -> float:
        """Seconds until the Lease of a holder that stays silent may be taken."""
        duration_s = float(_spec(self._seen).get("leaseDurationSeconds") or self._timing.duration_s)
        return self._seen_at + duration_s - self._clock()

    def _complain(self, complaint: str) -> None:
        """Says what is wrong when it begins, not at every try."""
        if complaint and not self._complaint:
            log.warning("the Lease %s/%s cannot be had: %s", self._namespace, self._name, complaint)
        self._complaint = complaint


def _spec(lease: dict[str, Any] | None) -> dict[str, Any]:
    return (lease or {}).get("spec") or {}


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
