"""One look at what leads pods' traffic to the daemon, and the repair of what differs. Synchronous."""

from __future__ import annotations

from dataclasses import dataclass, field

from fabric.errors import FabricError
from fabric.steering import tables
from fabric.steering.rules import TABLES, Steering, rules, table_routes
from fabric.steering.tables import PodSide
from fabric.traffic.nft import Nftables
from routes.netlink import RTM_GETLINK, RTM_NEWLINK, Netlink
from routes.rules import interfaces_behind, reconcile_rules, reconcile_tables
from routes.wire import HEADER, LINK, attributes, number, read_text
from routes.work import Work

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_INFO_KIND = 1, 3, 10, 18, 1


@dataclass(frozen=True, slots=True)
class Result:
    """What was changed, and what could not be, one line each."""

    changes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """An interface: `master` is the index of the bridge that it is a port of."""

    index: int
    name: str
    kind: str
    master: int
    mac: bytes


@dataclass(slots=True)
class Looker:
    """Remembers what it has written. For one thread at a time, always of the same network namespace."""

    _generation: int = -1
    _written: object = field(default=None)

    def look(self, wanted: Steering | None) -> Result:
        """Compare and repair; None: nothing of ours should be there.

        The firewall's tables first: what they mark goes nowhere before there are rules. Away they go last.
        """
        work = Work()
        with Netlink() as netlink:
            links = read_links(netlink)
            side = pod_side(netlink, wanted, links) if wanted else None
            if wanted is not None:
                self._tables(work, wanted, side)
            with work.attempt("policy routing"):
                indexes = {link.name: link.index for link in links}
                reconcile_tables(netlink, work, TABLES, table_routes(wanted), indexes)
                reconcile_rules(netlink, work, rules(wanted))
            if wanted is None:
                self._tables(work, None, None)
        return Result(tuple(work.changes), tuple(map(str, work.errors)))

    def _tables(self, work: Work, wanted: Steering | None, side: PodSide | None) -> None:
        with work.attempt(f"tables {tables.TABLE}"), Nftables() as kernel:
            before = kernel.generation()
            if (before, self._written) == (self._generation, (wanted, side)):
                return
            for family in tables.FAMILIES:
                if wanted is None or side is None:
                    requests = [tables.deletion(family)] if tables.exists(kernel, family) else []
                else:
                    made = tables.chains(family, wanted, side)
                    requests = [] if tables.is_written(kernel, family, made) else tables.requests(family, made)
                if requests:
                    kernel.commit(requests)
                    work.changes.append(f"table {family} {tables.TABLE}: {len(requests)} requests")
            # Found right, and nobody wrote meanwhile: until the number is another one there is nothing to look at.
            self._generation = before if not work.changes and kernel.generation() == before else -1
            self._written = wanted, side


def remove() -> list[str]:
    """Take away all of it; a line for each change. Raises FabricError."""
    result = Looker().look(None)
    if result.problems:
        raise FabricError(f"what leads pods' traffic to fabricd is not all removed: {result.problems[0]}")
    return list(result.changes)


def pod_side(netlink: Netlink, wanted: Steering, links: list[Link]) -> PodSide:
    """The interfaces behind which pods without a port of their own are."""
    indexes = interfaces_behind(netlink, wanted.subnets)
    ours = (wanted.node_port, wanted.bridge_port, "lo")
    behind = [link for link in links if link.index in indexes and link.name not in ours]
    bridges = {link.index: link for link in behind if link.kind == "bridge"}
    return PodSide(
        tuple(sorted(link.name for link in behind)),
        tuple(sorted((link.name, link.mac) for link in bridges.values())),
        tuple(sorted(link.name for link in links if link.kind == "veth" and link.master in bridges)),
    )


def read_links(netlink: Netlink) -> list[Link]:
    """All interfaces of this network namespace."""
    found = []
    for kind, data in netlink.dump(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0)):
        if kind == RTM_NEWLINK:
            _, _, index, _, _ = LINK.unpack_from(data, HEADER.size)
            values = attributes(data, HEADER.size + LINK.size)
            info = nested(values.get(IFLA_LINKINFO, b""))
            found.append(Link(index, read_text(values.get(IFLA_IFNAME)), read_text(info.get(IFLA_INFO_KIND)),
                              number(values.get(IFLA_MASTER)), values.get(IFLA_ADDRESS, b"")))  # fmt: skip
    return found


def nested(value: bytes) -> dict[int, bytes]:
    """The attributes inside an attribute."""
    return attributes(value, 0)
