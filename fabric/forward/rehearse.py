"""Live tables that a packet can be run through without being sent (`rehearsal` has how).

`Dataplane.live` makes one for a question or two; it keeps nothing but what it was given, so it shows the tables as they
were when it was made, and the flow table as it is.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from encap.drops import DropReason
from fabric.errors import DataplaneError
from fabric.forward.flows import FlowTable
from fabric.forward.ports import WorkerPort
from fabric.forward.rehearsal import Rehearsal
from fabric.forward.snapshot import Snapshot
from fabric.model import Address, DataplaneSettings, Encapsulation, ForwardingState, Peer
from fabric.policy import PolicySnapshot
from tun.vnet import VNET_HEADER_SIZE, VnetHeader

UNDERLAY = -1
"""In place of a port's position: the packet comes from another node."""
UNDERLAY_ENTRY = 0xFFFF  # flow_table.pxd
KIND_SHIFT, POSITION_MASK = 24, 0xFFFFFF  # snapshot.pxd
FORMATS: Mapping[Encapsulation, int] = {"vxlan": 0, "udp": 1}  # encap/vtep.pxd
BUFFER_BYTES = 4 << 20
SO_SNDBUFFORCE = 32
MOST_BYTES = 65_535
Flow = Mapping[str, object]
Frame = tuple[VnetHeader, bytes]


class Route(NamedTuple):
    """Where an address leads: to a port (`position`, of LiveTables.ports), or to a peer. `plain`: by the host's kernel,
    which has a route of its own to that peer."""

    position: int | None = None
    peer: Peer | None = None
    plain: bool = False


class Judged(NamedTuple):
    """What policy says of a new flow: a drop reason's name or "", and the numbers of the rules that decided."""

    reason: str
    egress_rule: int | None
    ingress_rule: int | None


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What would have become of a packet.

    `drops` are names of drop reasons as counters have them. `delivered` was written to the port `target`, `answers`
    back into the port that the packet came by; `datagrams` are UDP payloads for the underlay. `before` and `after` are
    the packet's flow as `fabricctl flows` shows it, None where there is none.
    """

    drops: tuple[str, ...]
    target: str = ""
    delivered: tuple[Frame, ...] = ()
    answers: tuple[Frame, ...] = ()
    datagrams: tuple[bytes, ...] = ()
    before: Flow | None = None
    after: Flow | None = None
    judged: Judged | None = None


class LiveTables:
    """`transmit` are the UDP source ports of each family in use; `ports[0]` is the node port."""

    def __init__(
        self, snapshot: Snapshot, state: ForwardingState, ports: Sequence[WorkerPort], settings: DataplaneSettings,
        flows: FlowTable | None, policy: PolicySnapshot | None, transmit: Mapping[int, Sequence[int]],
    ) -> None:  # fmt: skip
        self.ports = tuple(ports)
        self.settings = settings
        self.policy = policy
        self.tracked = flows is not None
        self._snapshot = snapshot
        self._flows = flows
        self._transmit = transmit
        self._peers = {peer.name: peer for peer in state.peers}
        self._macs: dict[int, bytes] = {vtep.underlay.version: vtep.mac for vtep in state.vteps}

    def position(self, name: str) -> int | None:
        """The place of the port with this name, "node" for the node port; None when there is none."""
        return next((place for place, port in enumerate(self.ports) if port.name == name), None)

    def route(self, address: Address) -> Route | None:
        """Where the data path sends an inner destination, None for no route: a pod's packets go to the host then."""
        value = self._snapshot.route(address)
        if value is None:
            return None
        kind, place = value >> KIND_SHIFT, value & POSITION_MASK
        if kind == 2:  # TO_PORT
            return Route(position=place)
        name = self._snapshot.vtep(place)
        return Route(peer=self._peers.get(name or ""), plain=kind == 3)  # TO_HOST

    def peer_at(self, underlay: Address) -> Peer | None:
        """The peer whose datagrams come from this address of the underlay."""
        name = self._snapshot.vtep_from(underlay)
        return None if name is None else self._peers.get(name)

    def mac(self, family: int) -> bytes:
        """Our own VTEP's, on this family of the underlay; zeros without one."""
        return self._macs.get(family, bytes(6))

    def source_port(self, family: int, number: int) -> int:
        """The UDP source port of an underlay family for packets with this hash (`encap.inner`), 0 without a socket."""
        ports = self._transmit.get(family, ())
        return ports[number * len(ports) >> 32] if ports else 0

    def send(self, position: int, frame: bytes, link: bool = False, vnet: VnetHeader = VnetHeader()) -> Rehearsed:  # noqa: B008
        """A frame as the port at `position` would read it: an IP packet, with `link` behind an Ethernet header."""
        if not frame or len(frame) > MOST_BYTES:
            return Rehearsed((("inner_short" if not frame else "inner_length"),))
        with _Stage() as stage:
            rehearsal = self._rehearsal(position, stage)
            rehearsal.send(frame, link, vnet.emit())
            return self._read(rehearsal, stage, frame[14:] if link else frame, rehearsal.account(position))

    def receive(self, payload: bytes, source: Address, tos: int, form: Encapsulation) -> Rehearsed:
        """A UDP payload as the socket of this format would receive it from `source`; `tos` is the outer one."""
        if len(payload) > MOST_BYTES:
            return Rehearsed(("outer_truncated",))
        with _Stage() as stage:
            rehearsal = self._rehearsal(UNDERLAY, stage)
            rehearsal.receive(payload, source, tos, FORMATS[form])
            return self._read(rehearsal, stage, payload[22 if form == "vxlan" else 0 :], UNDERLAY_ENTRY)

    def _rehearsal(self, position: int, stage: _Stage) -> Rehearsal:
        sockets = len(self._transmit.get(4, ())), len(self._transmit.get(6, ()))
        try:
            return Rehearsal(self._snapshot, self._flows, position, stage.fds, sockets)
        except MemoryError:
            raise DataplaneError("there is not enough memory to explain a packet") from None

    def _read(self, rehearsal: Rehearsal, stage: _Stage, packet: bytes, entry: int) -> Rehearsed:
        back, onward, wire = stage.read()
        targets = rehearsal.targets()
        names = [self.ports[place].name for place in targets]
        onward_frames, back_frames = (tuple(map(_frame, part)) for part in (onward, back))
        if not targets:  # an error for a peer to which the host sends goes out by the node port
            onward_frames, back_frames = (), back_frames + onward_frames
        before, after = rehearsal.flow()
        return Rehearsed(
            tuple(DropReason(number).name.lower() for number in rehearsal.drops()), names[0] if names else "",
            onward_frames, back_frames, tuple(wire), before, after, self._judged(rehearsal, packet, entry),
        )  # fmt: skip

    @staticmethod
    def _judged(rehearsal: Rehearsal, packet: bytes, entry: int) -> Judged | None:
        try:
            reason, egress, ingress = rehearsal.policy(packet, entry)
        except ValueError:
            return None
        return Judged(DropReason(reason).name.lower() if reason else "", egress, ingress)


class _Stage:
    """Three sockets to write to, and their other ends."""

    def __init__(self) -> None:
        self._pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        for pair in self._pairs:
            for end in pair:
                end.setblocking(False)
                _enlarge(end)
        self.fds = (self._pairs[0][0].fileno(), self._pairs[1][0].fileno(), self._pairs[2][0].fileno())

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *unused: object) -> None:
        for pair in self._pairs:
            for end in pair:
                end.close()

    def read(self) -> list[list[bytes]]:
        """Everything that was written to each, in order."""
        return [_drained(pair[1]) for pair in self._pairs]


def _enlarge(sock: socket.socket) -> None:
    """Room for all pieces of a superframe; without CAP_NET_ADMIN the system's limit, which a packet's fit."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)


def _drained(sock: socket.socket) -> list[bytes]:
    found: list[bytes] = []
    while True:
        try:
            data = sock.recv(1 << 17)
        except BlockingIOError:
            return found
        if not data:
            return found
        found.append(data)


def _frame(data: bytes) -> Frame:
    return VnetHeader.parse(data), data[VNET_HEADER_SIZE:]
