"""The twin of the flow table: one bucket of eight places as a list, with the rules written once more, slowly."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

FIN, SYN, RST, ACK = 1, 2, 4, 16
TCP, UDP, ICMP = 6, 17, 1
NODE, UNDERLAY = 0, 0xFFFF
WAYS = 8
TIMEOUTS = {
    (TCP, "syn-sent"): 10, (TCP, "syn-received"): 10, (TCP, "established"): 432_000, (TCP, "picked-up"): 300,
    (TCP, "half-closed"): 120, (TCP, "closed"): 120, (TCP, "reset"): 10, (UDP, "unreplied"): 30, (UDP, "replied"): 120,
    (ICMP, "unreplied"): 30, (ICMP, "replied"): 30,
}  # fmt: skip
RANKS = {"closed": 1, "reset": 1, "syn-sent": 2, "syn-received": 2, "picked-up": 2, "unreplied": 2, "replied": 3}
"""What makes room: the lower first; a state that is missing here never does."""
FOR_ITS_OWN = 3
"""Makes room for flows of the same account only."""

End = tuple[str, int]


@dataclass(frozen=True)
class Seen:
    """One packet: protocol, its two ends, TCP flags, where it came in, when."""

    protocol: int
    source: End
    destination: End
    flags: int
    entry: int
    now: int


@dataclass
class Record:
    protocol: int
    origin: End
    other: End
    state: str
    entry: dict[End, int]
    account: int
    seen: int
    closed_by: End | None = None

    @property
    def expires(self) -> int:
        return self.seen + TIMEOUTS[self.protocol, self.state]

    @property
    def identity(self) -> tuple[int, End, End]:
        return self.protocol, self.origin, self.other

    def matches(self, packet: Seen) -> bool:
        return self.protocol == packet.protocol and {self.origin, self.other} == {packet.source, packet.destination}


class NaiveFlows:
    """`accounts` are pods by address; `quota` is what one of them may hold."""

    def __init__(self, accounts: dict[str, int], quota: int) -> None:
        self.places: list[Record | None] = [None] * WAYS
        self.accounts = accounts
        self.quota = quota
        self.left: Container[tuple[int, End, End]] = ()

    def track(self, packet: Seen, left: Container[tuple[int, End, End]] = ()) -> bool:
        """As `FlowProbe.track`. `left` are the flows that the table holds afterwards, by protocol and ends.

        Of flows that are worth the same any may have made room: it was the one that is not among them."""
        self.left = left
        flow = next((flow for flow in self.places if flow and flow.matches(packet)), None)
        opening = packet.flags & (SYN | ACK) == SYN and packet.protocol == TCP
        if flow is None or flow.expires <= packet.now or (opening and RANKS.get(flow.state) == 1):
            if packet.protocol != TCP or not packet.flags & RST:
                self.insert(packet, flow, opening)
            return False
        reply = packet.source != flow.origin
        step(flow, packet, reply)
        return reply and packet.entry != NODE and flow.entry[flow.origin] == NODE

    def insert(self, packet: Seen, old: Record | None, opening: bool) -> None:
        if old is not None:
            self.places[self.places.index(old)] = None
        account = packet.entry if packet.entry not in (NODE, UNDERLAY) else 0
        if packet.entry == NODE:
            account = self.accounts.get(packet.source[0], 0)
        account = account or self.accounts.get(packet.destination[0], 0)
        place = self.room(account, packet.now)
        if place is None:
            return
        state = ("syn-sent" if opening else "picked-up") if packet.protocol == TCP else "unreplied"
        entry = {packet.source: packet.entry}
        self.places[place] = Record(
            packet.protocol, packet.source, packet.destination, state, entry, account, packet.now
        )

    def room(self, account: int, now: int) -> int | None:
        """A free place, else that of the flow which is worth least."""
        full = account and sum(1 for flow in self.places if flow and flow.account == account) >= self.quota
        if not full and None in self.places:
            return self.places.index(None)
        most = FOR_ITS_OWN if full else FOR_ITS_OWN - 1
        worth = [
            (0 if flow.expires <= now else RANKS[flow.state], flow.expires, flow.identity in self.left, i)
            for i, flow in enumerate(self.places)
            if flow and (flow.expires <= now or RANKS.get(flow.state, most + 1) <= most)
            and (not full or flow.account == account)
        ]
        return min(worth)[3] if worth else None

    def sweep(self, now: int) -> None:
        self.places = [flow if flow and flow.expires > now else None for flow in self.places]

    def held(self, now: int) -> list[Record]:
        return [flow for flow in self.places if flow and flow.expires > now]


def step(flow: Record, packet: Seen, reply: bool) -> None:
    """Bring a record forward by one packet."""
    flow.entry[packet.source] = packet.entry
    flow.seen = packet.now
    if flow.protocol != TCP:
        flow.state = "replied" if reply else flow.state
    elif packet.flags & RST:
        flow.state = "reset"
    elif flow.state == "syn-sent":
        flow.state = "syn-received" if reply else flow.state
    elif flow.state == "picked-up":
        flow.state = "established" if reply else flow.state
    elif packet.flags & FIN and flow.state in ("syn-received", "established"):
        flow.state, flow.closed_by = "half-closed", packet.source
    elif packet.flags & FIN and flow.state == "half-closed" and flow.closed_by != packet.source:
        flow.state = "closed"
    elif flow.state == "syn-received" and not reply and packet.flags & ACK and not packet.flags & SYN:
        flow.state = "established"
