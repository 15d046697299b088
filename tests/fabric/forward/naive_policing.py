"""Connections and policy, naively: the twin of `fabric.forward.flow_track` with `policing` and the judge.

Time stands still and memory is plenty here; `naive_flows` is about those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.fabric.forward.naive_flows import ACK, RST, SYN, TCP, End, Record, Seen, step

Fate = Callable[[str, str, int, int], str]
"""Empty where a flow may begin, else what becomes of one that has: source, destination, protocol, destination port."""
ASK, ANSWER = "ask", "answer"


@dataclass(frozen=True)
class Packet:
    """`echo` is ASK or ANSWER for a ping, whose ends have its identifier as port; else empty."""

    seen: Seen
    echo: str = ""

    def ends(self) -> tuple[End, End, str]:
        """The same for both directions of a flow: who asks, who answers."""
        first, second = self.seen.source, self.seen.destination
        if self.echo:
            return (first, second, ASK) if self.echo == ASK else (second, first, ASK)
        return (*sorted((first, second)), "")  # type: ignore[return-value]


class NaivePolicing:
    def __init__(self) -> None:
        self.flows: dict[tuple[object, ...], Record] = {}
        self.fate: Fate = lambda *_: ""
        self.current: set[int] = set()
        self.kept: set[tuple[object, ...]] = set()

    def change(self, fate: Fate) -> None:
        self.fate = fate
        self.current.clear()

    def may_begin(self, source: End, destination: End, protocol: int) -> bool:
        return self.fate(source[0], destination[0], protocol, destination[1]) == ""

    def track(self, packet: Packet) -> bool:
        """Whether it passes."""
        seen = packet.seen
        key = (seen.protocol, packet.ends())
        flow = self.flows.get(key)
        opening = seen.protocol == TCP and seen.flags & (SYN | ACK) == SYN
        if flow is None or (opening and flow.state in ("closed", "reset", "denied")):
            return self.begin(key, packet, opening)
        self.judge_again(key, flow)
        another = opening and (seen.source != flow.origin or key in self.kept)
        if another and not self.may_begin(seen.source, seen.destination, TCP):
            return False
        if flow.state == "denied":
            return False
        step(flow, seen, seen.source != flow.origin)
        return True

    def begin(self, key: tuple[object, ...], packet: Packet, opening: bool) -> bool:
        seen = packet.seen
        if not self.may_begin(seen.source, seen.destination, seen.protocol):
            return False
        if packet.echo != ANSWER and not (seen.protocol == TCP and seen.flags & RST):
            state = ("syn-sent" if opening else "picked-up") if seen.protocol == TCP else "unreplied"
            flow = Record(seen.protocol, seen.source, seen.destination, state, {seen.source: seen.entry}, 0, seen.now)
            self.flows[key] = flow
            self.kept.discard(key)
            self.current.add(id(flow))
        return True

    def judge_again(self, key: tuple[object, ...], flow: Record) -> None:
        if id(flow) in self.current:
            return
        self.current.add(id(flow))
        fate = self.fate(flow.origin[0], flow.other[0], flow.protocol, flow.other[1])
        self.kept.discard(key)
        if fate == "keep" and flow.state != "denied":
            self.kept.add(key)
        elif fate:
            flow.state = "denied"
        elif flow.state == "denied":
            flow.state = "picked-up" if flow.protocol == TCP else "unreplied"
