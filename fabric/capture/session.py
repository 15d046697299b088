"""A capture: from the taps and the daemon's refused packets into one file, until it is enough.

It runs beside the daemon, at lower priority: packets that it is too slow for are lost to the capture, counted, and
written down in the file's statistics, never waited for.
"""

from __future__ import annotations

import base64
import selectors
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep, time_ns
from typing import Any, BinaryIO

from fabric.capture import pcapng, trains
from fabric.capture.comments import Commentator, flow_of, inner_offset, inner_packet
from fabric.capture.pace import Pace
from fabric.capture.taps import Frame, Tap
from fabric.control_client import ControlClient, DaemonRefusedError

POLL_SECONDS = 0.05
BURST = 64
POLICY = "policy_"
Matches = Callable[[bytes, int], bool]


@dataclass(slots=True)
class Summary:
    """What came of it."""

    packets: int = 0
    refused: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)


class RefusedPackets:
    """The daemon's refused packets that pass; asked for every POLL_SECONDS. `reasons` empty: all."""

    def __init__(self, client: ControlClient, matches: Matches, reasons: frozenset[str]) -> None:
        self.explanations = Explanations(client)
        self._client = client
        self._matches = matches
        self._reasons = reasons
        first = client.ask("drops")
        self._next, self._unrecorded = first["next"], first["unrecorded"]

    def read(self) -> tuple[list[tuple[dict[str, Any], bytes]], int]:
        """Those since the last call with their bytes, and how many were lost. Raises what the client raises."""
        answer = self._client.ask("drops", {"since": self._next})
        self._next = answer["next"]
        lost = answer["lost"] + max(0, answer["unrecorded"] - self._unrecorded)
        self._unrecorded = answer["unrecorded"]
        found = [(packet, base64.b64decode(packet["data"])) for packet in answer["drops"]]
        return [item for item in found if self._wants(*item)], lost

    def _wants(self, packet: dict[str, Any], data: bytes) -> bool:
        if self._reasons and packet["reason"] not in self._reasons:
            return False
        inner = inner_packet(packet, data)
        return self._matches(inner, packet["length"] - len(data) + len(inner))


class Explanations:
    """Which rule refused a packet, by the daemon's own explanation of such a flow; each flow is asked about once, and
    not many of them: a capture must not keep the daemon busy."""

    def __init__(self, client: ControlClient, most: int = 256) -> None:
        self._client = client
        self._known: dict[tuple[str, ...], str] = {}
        self._most = most

    def rule(self, packet: Mapping[str, Any], inner: bytes) -> str:
        """The rule, "" where there is none, or where that is not known."""
        question = flow_of(inner) if packet["reason"].startswith(POLICY) else None
        if question is None:
            return ""
        if question not in self._known:
            if len(self._known) >= self._most:
                return ""
            self._known[question] = self._ask(*question)
        return self._known[question]

    def _ask(self, source: str, target: str, port: str) -> str:
        params = {"source": source, "target": target, "port": port}
        try:
            found = self._client.ask("policy.explain", params)
        except DaemonRefusedError:  # it has no policy, or does not know the ends
            return ""
        return "" if found["allowed"] else str(found["rule"])


class Session:
    """`run` writes to `out`. `matches` is the filter for inner packets; `exits_only`: of what the taps see, only
    packets that leave the data path."""

    def __init__(
        self, out: BinaryIO, taps: Sequence[Tap], refused: RefusedPackets | None, comments: Commentator,
        matches: Matches, snaplen: int, pace: Pace, exits_only: bool = False,
    ) -> None:  # fmt: skip
        self._out = out
        self._pace = pace
        self._taps = list(taps)
        self._refused = refused
        self._comments = comments
        self._matches = matches
        self._ports = comments.ports
        self._exits_only = exits_only
        self._summary = Summary()
        self._refused_number = len(self._taps)
        self._lost_refused = 0
        out.write(pcapng.section("fabricctl capture"))
        for tap in self._taps:
            out.write(pcapng.interface(tap.name, tap.link, snaplen))
        if refused is not None:
            out.write(pcapng.interface("refused", pcapng.RAW, snaplen, "packets that the data path refused"))
            out.write(pcapng.interface("refused-ethernet", pcapng.ETHERNET, snaplen, "the same, of TAP ports"))
        out.flush()

    def run(self, count: int | None, seconds: float | None) -> Summary:
        """Until `count` packets are written, `seconds` are over, or KeyboardInterrupt, or nobody reads any more."""
        deadline = None if seconds is None else monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for number, tap in enumerate(self._taps):
                selector.register(tap.socket, selectors.EVENT_READ, number)
            try:
                while not self._enough(count, deadline):
                    for key, _ in selector.select(POLL_SECONDS):
                        self._drain(key.data, selector, count)
                    self._take_refused(count)
                    self._out.flush()
                    sleep(self._pace.pause())
                self._finish()
            except KeyboardInterrupt:
                self._finish()
            except BrokenPipeError:
                pass
        return self._summary

    def _enough(self, count: int | None, deadline: float | None) -> bool:
        if count is not None and self._summary.packets >= count:
            return True
        return deadline is not None and monotonic() >= deadline

    def _drain(self, number: int, selector: selectors.BaseSelector, count: int | None) -> None:
        tap = self._taps[number]
        for _ in range(BURST):
            if count is not None and self._summary.packets >= count:
                return
            try:
                frame = tap.read()
            except OSError as error:
                self._summary.problems.append(f"{tap.name}: {error.strerror}")
                selector.unregister(tap.socket)
                return
            if frame is None:
                return
            underlay = tap.name == "underlay"
            leaves = frame.outgoing == underlay
            if self._exits_only and not leaves:
                continue
            self._write(number, frame, underlay, leaves)

    def _write(self, number: int, frame: Frame, underlay: bool, leaves: bool) -> None:
        """A packet, or those of a train that pass the filter."""
        link = self._taps[number].link
        ports = self._ports if underlay else {}
        pieces = trains.split(frame.data, frame.length, link, ports)
        direction = pcapng.OUTBOUND if frame.outgoing else pcapng.INBOUND
        for place, piece in enumerate(pieces, 1):
            if len(pieces) > 1 and not self._passes(piece, link):
                continue
            comment = self._comments.passing(piece.data, link, underlay, leaves)
            if len(pieces) > 1:
                comment = "; ".join(filter(None, (comment, f"{place} of {len(pieces)} in a train")))
            self._out.write(pcapng.packet(number, frame.time, piece.data, piece.length, comment, direction))
            self._summary.packets += 1

    def _passes(self, piece: trains.Piece, link: int) -> bool:
        """The kernel has looked at the first packet of a train only."""
        offset = inner_offset(piece.data, link, self._ports)
        return offset is not None and self._matches(piece.data[offset:], piece.length - offset)

    def _take_refused(self, count: int | None) -> None:
        if self._refused is None:
            return
        found, lost = self._refused.read()
        self._lost_refused += lost
        for packet, data in found:
            if count is not None and self._summary.packets >= count:
                return
            inner = inner_packet(packet, data)
            comment = self._comments.refused(packet, inner, self._refused.explanations.rule(packet, inner))
            number, length = self._refused_number + packet["ethernet"], packet["length"]
            if packet["source"]:
                payload, data = data, self._comments.rebuilt(packet, data)
                length += len(data) - len(payload)
            direction = pcapng.INBOUND if packet["source"] else pcapng.OUTBOUND
            self._out.write(pcapng.packet(number, packet["time"], data, length, comment, direction))
            self._summary.packets += 1
            self._summary.refused += 1

    def _finish(self) -> None:
        """Statistics of every interface."""
        now = time_ns()
        for number, tap in enumerate(self._taps):
            received, lost = tap.statistics()
            self._summary.lost += lost
            self._out.write(pcapng.statistics(number, now, received, lost))
        if self._refused is not None:
            self._summary.lost += self._lost_refused
            received = self._summary.refused + self._lost_refused
            self._out.write(pcapng.statistics(self._refused_number, now, received, self._lost_refused))
        self._out.flush()
