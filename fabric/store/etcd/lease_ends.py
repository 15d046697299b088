"""When etcd's leases end. A key says only which lease it hangs on; the lease is asked once and remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from fabric.errors import StoreUnavailableError
from fabric.leases import TTL
from fabric.store.etcd import messages
from fabric.store.etcd.client import Client

AT_ONCE = 64
PRUNE_AT = 1024
SECONDS = 2.0


class LeaseEnds:
    """Unix time at which each known lease ends.

    A lease whose end has passed although keys still hang on it was kept alive by somebody: it is asked again. One that
    etcd says nothing about within two seconds counts as a fresh flannel lease (24 h) until the next connection."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._ends: dict[int, float] = {}
        self._prune_at = PRUNE_AT

    def of(self, lease: int) -> float:
        """The end of a lease that was learned, or flannel's 24 h for one that did not answer."""
        return self._ends.get(lease, self._clock() + TTL)

    def granted(self, lease: int, end: float) -> None:
        """We made this lease."""
        self._ends[lease] = end

    async def learn(self, leases: Iterable[int]) -> set[int]:
        """Ask for the ends that are not known or have passed; the leases whose end is another one now."""
        now = self._clock()
        self._prune(now)
        wanted = [lease for lease in set(leases) if lease and self._ends.get(lease, 0.0) <= now]
        changed: set[int] = set()
        for start in range(0, len(wanted), AT_ONCE):
            group = wanted[start : start + AT_ONCE]
            for lease, end in zip(group, await asyncio.gather(*map(self._ask, group)), strict=True):
                if end is not None and end != self._ends.get(lease):
                    self._ends[lease] = end
                    changed.add(lease)
        return changed

    async def _ask(self, lease: int) -> float | None:
        request = messages.LeaseTimeToLiveRequest(ID=lease)
        try:
            answer = await self._client.call(messages.LEASE_TIME_TO_LIVE, request, SECONDS)
        except StoreUnavailableError:
            return None
        # -1: it is over, and its keys are about to go.
        return self._clock() + float(max(0, min(answer.TTL, 1 << 31)))

    def _prune(self, now: float) -> None:
        if len(self._ends) > self._prune_at:
            self._ends = {lease: end for lease, end in self._ends.items() if end > now}
            self._prune_at = max(PRUNE_AT, 2 * len(self._ends))
