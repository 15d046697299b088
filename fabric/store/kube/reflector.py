"""List, then watch, for ever: keeps a table equal to the API's objects, by the rules of client-go's Reflector. The
text speaks of Nodes; for policy the same is done with Pods and others (`objects`).

A *session* is one connection. It makes sure of where we stand, and watches from there:

    version known? -- no --> list (pages at one version) --> table replaced ----+
         |                                                                       v
        yes --> one-node list: has the version run backwards? -- yes --> list   watch --> events, bookmarks --> table
                     (not after an orderly end)               -- no  ------------^           |
                                                                                             v
    ended by the server: next session at once.   410, or a bookmark from the past: forget the version, list.
    silent for 15 s: next session at once, since a dead proxy keeps its connections open.
    broken, unanswered, 401, 403, 429, 5xx: next session after a pause, 0.8 s doubled up to 30 s, with jitter.
    refused, or reset before TLS stands: up to 1 s only, so that we are in sync 2 s after the API is back (R4).

The first session after a good one follows at once; the API counts as away when that one fails, too, and as back after
a list, an event, or half a second of watching. A list that failed half-way leaves the table alone. A watch is asked to
end after 5 to 10 minutes, so that load spreads over API servers.

A herd: 1,000 nodes whose API is gone try it about 1,300 times a second together, spread evenly by the jitter. While
the port is closed that is a SYN and a RST each. When it opens, each comes once within a second, with a TLS handshake, a
list of one node and a watch from the version that it knows. An API that is not up to that lets connections time out or
answers 429 or 5xx; from its first such sign on a node's pauses double up to 30 s and follow Retry-After, which leaves
about 45 tries a second. Only after an outage of more than `stale` does each node list all nodes, in pages of 100, and
each at a moment of its own within `spread`: until then it watches from the version that it knows, so that it is in sync
before. Where that version is gone by then it waits for its moment with what it knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from fabric.errors import NotConnectedError, StoreError
from fabric.store.kube import nodes
from fabric.store.kube.api import PAGE, Api, ApiUnavailableError, ExpiredError, Kind, NotFoundError, Session
from fabric.store.kube.nodes import Bad, Event

log = logging.getLogger("fabric.store.kube")
MOST_PATIENT = 60.0


@dataclass(frozen=True, slots=True)
class Timing:
    """All in seconds. `silence` without a byte ends a watch; one of `settle` seconds shows that the API is back; a
    watch of `steady` seconds resets the pauses, which end at `refused` where nobody takes connections; after an outage
    of more than `stale` the nodes are listed anew within `spread`, since another cluster's versions may look like ours.
    """

    watch: tuple[int, int] = (300, 600)
    silence: float = 15.0
    settle: float = 0.5
    pause: tuple[float, float] = (0.8, 30.0)
    refused: float = 1.0
    steady: float = 10.0
    stale: float = 600.0
    spread: float = 10.0


class Backoff:
    """Pauses between tries: nearly none, then `first` doubled up to `most`, each shortened by up to a half."""

    def __init__(self, first: float, most: float, rng: random.Random) -> None:
        self._first, self._most, self._rng = first, most, rng
        self._next = 0.0

    def pause(self, at_least: float = 0.0, at_most: float = math.inf) -> float:
        """Seconds to wait now, at least the server's own wish (followed up to a minute); `at_most` also limits what the
        next pause grows from."""
        self._next = min(self._next, at_most)
        pause = self._next * self._rng.uniform(0.5, 1.0) if self._next else self._rng.uniform(0.0, 0.1)
        self._next = min(max(self._next * 2, self._first), self._most)
        return max(pause, min(at_least, MOST_PATIENT))

    def reset(self) -> None:
        """Start over."""
        self._next = 0.0


class Table(Protocol):
    """What a reflector keeps current."""

    def replace(self, found: Sequence[Any], bad: Sequence[Bad]) -> bool:
        """Take a complete list over; whether anything that matters is different now."""

    def apply(self, event: Event[Any]) -> bool:
        """Take one event over; whether anything that matters is different now."""

    def complaints(self) -> list[str]:
        """What is newly wrong, one line each."""


class Reflector:
    """`run` for ever. `changed` is called after each change of the table, `away` with a reason when the API is gone
    and with None when it is back; `epoch` counts how often versions ran backwards, `lists` complete lists. An
    `optional` kind that the API does not have (404) is an empty list, and asked for again at the pauses' pace."""

    def __init__(
        self,
        api: Api,
        table: Table,
        changed: Callable[[], None],
        away: Callable[[str | None], None],
        timing: Timing | None = None,
        kind: Kind | None = None,
        optional: bool = False,
    ) -> None:
        self._api = api
        self._kind = kind
        self._optional = optional
        self._table = table
        self._changed = changed
        self._away = away
        self._timing = timing or Timing()
        self._rng = random.Random()
        self._backoff = Backoff(*self._timing.pause, self._rng)
        self._version = ""  # where to go on; empty: list first
        self._orderly = False  # the last session ended as it should
        self._failures = 0
        self._seen = monotonic()  # when the API last said something
        self._list_at: float | None = None  # when to list although our version is known
        self.revision = 0
        self.epoch = 0
        self.lists = 0

    async def run(self) -> None:
        """Keep the table current for ever."""
        while True:
            wish, limit = 0.0, math.inf
            try:
                await self._session()
                self._orderly = True
            except ExpiredError:
                self._orderly = False
            except TimeoutError:
                self._orderly = False
                self._failures += 1  # shown only if the next session fails, too
            except StoreError as error:
                self._orderly = False
                if self._optional and isinstance(error, NotFoundError):
                    self._version = ""
                    self._away(None)
                else:
                    self._failed(str(error))
                wish = error.retry_after if isinstance(error, ApiUnavailableError) else 0.0
                limit = self._timing.refused if isinstance(error, NotConnectedError) else math.inf
            await asyncio.sleep(self._backoff.pause(wish, limit))

    async def _session(self) -> None:
        self._plan_list(monotonic())
        async with self._api.session(self._kind) as session:
            if self._version and not self._orderly:
                await self._check(session)
            if not self._version:
                if self._list_at is not None:
                    await asyncio.sleep(self._list_at - monotonic())
                await self._list(session)
                self._away(None)
            await self._watch(session)

    def _plan_list(self, now: float) -> None:
        """After a long outage the version that we know no longer counts, at a moment that is not everybody's."""
        if self._version and self._list_at is None and now - self._seen > self._timing.stale:
            self._list_at = now + self._rng.uniform(0.0, self._timing.spread)
        if self._list_at is not None and now >= self._list_at:
            self._version = ""

    async def _check(self, session: Session) -> None:
        """Forget our version when the API's is older: the cluster was restored from a backup."""
        found = await session.page("", 1)
        self._backwards(found.version)

    def _backwards(self, version: str) -> bool:
        now = nodes.number(version)
        backwards = 0 < now < nodes.number(self._version)
        if backwards:
            log.warning("the API's resource versions ran backwards (%s after %s): restored from a backup? "
                        "Listing anew", version, self._version)  # fmt: skip
            self.epoch += 1
            self._version = ""
            self.revision = 0
        return backwards

    async def _list(self, session: Session) -> None:
        """All nodes at one version; the table is replaced when the last page is there."""
        found: list[Any] = []
        bad: list[Bad] = []
        more, limit = "", PAGE
        while True:
            try:
                page = await session.page(more, limit)
            except NotFoundError:
                if self._optional:
                    self._listed([], [])
                raise
            except ExpiredError:
                if not more:
                    raise
                more, limit, found, bad = "", 0, [], []  # as client-go: everything in one answer
                continue
            found += page.nodes
            bad += page.bad
            more = page.more
            if not more:
                break
        self._advance(page.version)
        self._listed(found, bad)

    def _listed(self, found: list[Any], bad: list[Bad]) -> None:
        self.lists += 1
        self._list_at = None
        changed = self._table.replace(found, bad)
        self._report(changed or self.lists == 1)

    async def _watch(self, session: Session) -> None:
        seconds = self._rng.randint(*self._timing.watch)
        started = self._seen = monotonic()
        if self._list_at is not None:
            seconds = max(1, min(seconds, math.ceil(self._list_at - started)))
        settled = asyncio.get_running_loop().call_later(self._timing.settle, self._healthy)
        try:
            events = await session.watch(self._version, seconds, self._timing.silence)
            async with contextlib.aclosing(events):
                async for event in events:
                    if self._failures:
                        self._healthy()
                    if event.kind == "BOOKMARK":
                        if self._backwards(event.version):
                            return
                        self._advance(event.version)
                        continue
                    changed = self._table.apply(event)
                    self._advance(event.version)
                    self._report(changed)
        except ExpiredError:
            self._version = ""
            raise
        finally:
            settled.cancel()
            if monotonic() - started >= self._timing.steady:
                self._backoff.reset()

    def _advance(self, version: str) -> None:
        """Go on from `version`; among reordered events the newest counts."""
        self._seen = monotonic()
        if not version or 0 < nodes.number(version) < nodes.number(self._version):
            return
        self._version = version
        self.revision = nodes.number(version) or self.revision + 1

    def _report(self, changed: bool) -> None:
        if changed:
            self._changed()
        for line in self._table.complaints():
            log.warning("%s", line)

    def _healthy(self) -> None:
        self._failures = 0
        self._away(None)

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._failures > 1 or not self._version:
            self._away(reason)
