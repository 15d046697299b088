"""One look at the firewall and the repair of what differs. Synchronous; its calls wait for the kernel.

The kernel numbers every transaction of a network namespace. While that number is the one at which everything was found
right, nothing can have changed, and a look costs one question.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fabric.errors import TrafficError
from fabric.model import Network
from fabric.traffic import checks, gates, legacy, nft
from fabric.traffic.rules import TrafficState, chains
from fabric.traffic.table import NAME, OwnTable
from routes.netlink import Request

SURVEY_SECONDS = 60.0
"""Between two looks at other programs' forward chains: finding them means listing all chains there are."""
OWN, FORWARD = f"table {NAME}", "iptables chain FORWARD"
NO_NFTABLES = "the kernel has no nf_tables: load it (modprobe nf_tables)"
NO_PART = "the kernel lacks a part of nf_tables: load nf_tables, nft_chain_nat and nft_masq"
HINTS = {
    errno.EPERM: "fabricd needs CAP_NET_ADMIN",
    errno.EPROTONOSUPPORT: NO_NFTABLES,
    errno.EINVAL: NO_NFTABLES,
    errno.EOPNOTSUPP: NO_PART,
    errno.ENOENT: NO_PART,
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a look did and found. `problems` is all that is known to be wrong, one line each.

    `failed`: something could not be read or written, and should be tried again soon. `refused`: why our own table is
    not in place, if it is not. `restored`: our own table was not as we had left it. `span`: the number at which it was
    last known to be right (0: never), and the one that this look found.
    """

    changes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    failed: bool = False
    refused: str = ""
    restored: bool = False
    span: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class _Found:
    """What one look found, while it goes on."""

    generation: int = 0
    changes: list[str] = field(default_factory=list)
    commits: int = 0
    repaired: bool = False


class Reconciler:
    """Brings the firewall to a state. For one thread at a time, always of the same network namespace."""

    def __init__(self) -> None:
        self._state = TrafficState()
        self._table = OwnTable(())
        self._verified = 0
        self._written = 0
        self._left = 0
        self._surveyed: tuple[float, int] | None = None
        self._errors: dict[str, str] = {}
        self._conditions: dict[str, list[str]] = {}

    def look(self, state: TrafficState, now: float, *, full: bool) -> Result:
        """Compare and repair. `full` also looks at what announces no changes; `now` is any monotonic clock's."""
        if state != self._state:
            self._state, self._table = state, OwnTable(chains(state))
            self._verified = self._written = self._left = 0
            self._surveyed = None
        since, found = self._verified or self._written, _Found()
        networks = state.networks if state.forward else ()
        self._attempt("nftables", lambda: self._look_at_nftables(networks, now, found, full=full))
        if full:
            self._attempt("iptables-legacy", lambda: found.changes.extend(legacy.keep_forward(networks)))
            self._conditions["sysctls"] = checks.forwarding(state.networks)
        return Result(
            changes=tuple(found.changes),
            problems=(*self._errors.values(), *(line for lines in self._conditions.values() for line in lines)),
            failed=bool(self._errors),
            refused=self._errors.get("nftables") or self._errors.get(OWN, ""),
            restored=found.repaired and since > 0,
            span=(since, found.generation),
        )

    def _look_at_nftables(self, networks: Sequence[Network], now: float, found: _Found, *, full: bool) -> None:
        with nft.Nftables() as kernel:
            found.generation = kernel.generation()
            if found.generation != self._verified:
                self._settle(kernel, networks, found)
            if full:
                self._survey(kernel, networks, now, found.generation)

    def _settle(self, kernel: nft.Nftables, networks: Sequence[Network], found: _Found) -> None:
        """Our table and our rules in iptables' chains; verified when nothing was to be done and nothing moved."""
        self._conditions.pop("description", None)
        self._attempt(OWN, lambda: self._write(kernel, OWN, self._table.requests(kernel), found))
        if found.commits:
            found.repaired, self._written = True, found.generation + found.commits
        self._attempt(
            FORWARD, lambda: self._write(kernel, FORWARD, gates.iptables_requests(kernel, networks), found)
        )
        after = found.generation + found.commits
        alone = not self._errors.keys() & {OWN, FORWARD} and kernel.generation() == after
        self._left = after if alone and found.commits else 0
        self._verified = after if alone and not found.commits else 0

    def _write(self, kernel: nft.Nftables, what: str, requests: list[Request], found: _Found) -> None:
        if requests and found.generation == self._left:  # nobody wrote since we did: the same again changes nothing
            if kernel.generation() == found.generation:  # and not while we looked either
                line = f"this kernel describes {what} otherwise: changes of it go unnoticed"
                self._conditions["description"] = [line]
        elif requests:
            kernel.commit(requests)
            found.commits += 1
            found.changes.append(f"{what}: {len(requests)} requests")

    def _attempt(self, what: str, job: Callable[[], None]) -> None:
        """`job()`; its failure is remembered as a problem until it succeeds."""
        try:
            job()
            self._errors.pop(what, None)
        except TrafficError as error:
            self._errors[what] = str(error)
        except OSError as error:
            self._failed(what, error)

    def _failed(self, what: str, error: OSError) -> None:
        if chains(self._state) or error.errno not in nft.UNSUPPORTED:  # without rules a kernel without them is fine
            hint = HINTS.get(error.errno or 0, "")
            self._errors[what] = f"firewall: {what}: {error.strerror or error}{hint and '; '}{hint}"

    def _survey(self, kernel: nft.Nftables, networks: Sequence[Network], now: float, generation: int) -> None:
        """Look at other programs' forward chains, where they may have changed and the last time is long ago."""
        if self._surveyed is None or (now - self._surveyed[0] >= SURVEY_SECONDS and self._surveyed[1] != generation):
            self._conditions["chains"] = gates.closed_chains(kernel, networks) if networks else []
            self._surveyed = now, generation

