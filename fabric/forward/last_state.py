"""What the data path was told, where that outlives the process: a memory file (memfd_create(2)), kept for the next run.

With it the next run forwards before it has read anything else (`fabric.forward.resumed`). Layout of the file: two
places of PLACE bytes, written in turn; each is MAGIC, a sequence number, the length of its text, CRC-32 of number and
text, and the text. The whole one with the higher number counts. The text is JSON: `layout`, `words` (the command line:
with another one nothing is resumed), `settings`, `vni`, `vteps`, `peers`, `ports`. Raise LAYOUT when the meaning of
anything changes; a file of another layout, or one that cannot be understood, is not used.

Limits: a text of more than PLACE bytes (about 30,000 peers) is not kept. Policy is not in it.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from fabric.forward import kept
from fabric.model import DataplaneSettings, Endpoint, ForwardingState, LocalVtep, Peer

LAYOUT = 1
PLACE = 8 << 20
MAGIC = b"fabstate"
_HEAD = struct.Struct("=8sQII")


class Told(NamedTuple):
    """All that the data path needs to go on. `words` is the command line for which it holds."""

    words: list[str]
    settings: DataplaneSettings
    state: ForwardingState
    ports: tuple[Endpoint, ...]


class LastState:
    """The file of an earlier run, where `keeper` has it and it is whole, or a new one. Nothing where nobody keeps it.

    Raises OSError."""

    def __init__(self, keeper: kept.Kept) -> None:
        self._fd = -1
        self._text = b""
        if not keeper.lasts():
            return
        for fd in keeper.take(kept.STATE):
            if self._fd < 0 and os.fstat(fd).st_size == 2 * PLACE:
                self._fd = fd
            else:
                os.close(fd)
        if self._fd < 0:
            self._fd = os.memfd_create("fabric-state", os.MFD_CLOEXEC)
            os.ftruncate(self._fd, 2 * PLACE)
        keeper.keep(kept.STATE, [self._fd])

    def write(self, told: Told | None) -> None:
        """What the next run goes on with; None: with nothing."""
        text = json.dumps(_content(told), separators=(",", ":")).encode() if told else b""
        if self._fd < 0 or text == self._text:
            return
        if len(text) > PLACE - _HEAD.size:
            text = b""
        self._text = text
        sequence = _newest(self._fd)[0] + 1  # not counted: a predecessor may have written meanwhile
        head = _HEAD.pack(MAGIC, sequence, len(text), _check(sequence, text))
        os.pwrite(self._fd, head + text, sequence % 2 * PLACE)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(keeper: kept.Kept) -> Told | None:
    """What was told last, if `keeper` has that; it stays there. None when nothing is known."""
    fds = keeper.take(kept.STATE)
    for fd in fds:
        keeper.put(kept.STATE, fd)
    try:
        text = _newest(fds[0])[1] if len(fds) == 1 else b""
        return _told(json.loads(text)) if text else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # of another version


def _newest(fd: int) -> tuple[int, bytes]:
    """Number and text of the place that counts; 0 and nothing where none is whole."""
    return max([(0, b""), *(place for place in (_place(fd, 0), _place(fd, 1)) if place is not None)])


def _place(fd: int, number: int) -> tuple[int, bytes] | None:
    """Number and text of a place; None when it is not whole."""
    head = os.pread(fd, _HEAD.size, number * PLACE)
    if len(head) < _HEAD.size:
        return None
    magic, sequence, length, check = _HEAD.unpack(head)
    if magic != MAGIC or length > PLACE - _HEAD.size:
        return None
    text = os.pread(fd, length, number * PLACE + _HEAD.size)
    return (sequence, text) if _check(sequence, text) == check else None


def _check(sequence: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(sequence.to_bytes(8, "little")))


def _content(told: Told) -> Mapping[str, Any]:
    settings, state = told.settings, told.state
    return {
        "layout": LAYOUT,
        "words": told.words,
        "settings": {
            **{name: getattr(settings, name) for name in DataplaneSettings.__dataclass_fields__},
            "ports": dict(settings.ports),
            "offload": dict(settings.offload),
            "underlay": _texts(settings.underlay),
            "services": _texts(settings.services),
        },
        "vni": state.vni,
        "vteps": [[str(vtep.underlay), vtep.mac.hex(), _texts(vtep.prefixes)] for vtep in state.vteps],
        "peers": [
            [peer.name, str(peer.underlay), _texts(peer.prefixes), peer.encapsulation, peer.mac.hex(), peer.mtu,
             sorted(peer.accepts), peer.any_mac, peer.direct]
            for peer in state.peers
        ],
        "ports": [
            [port.name, port.kind, port.netns, port.ifname, _texts(port.addresses), port.mtu, port.mac]
            for port in told.ports
        ],
    }  # fmt: skip


def _told(content: Mapping[str, Any]) -> Told | None:
    if content["layout"] != LAYOUT:
        return None
    given = content["settings"]
    settings = DataplaneSettings(**{
        **given, "underlay": _addresses(given["underlay"]), "services": _networks(given["services"])
    })  # fmt: skip
    vteps = [LocalVtep(ip_address(at), bytes.fromhex(mac), _networks(own)) for at, mac, own in content["vteps"]]
    peers = [
        Peer(name, ip_address(at), _networks(prefixes), way, bytes.fromhex(mac), mtu, frozenset(accepts), *flags)
        for name, at, prefixes, way, mac, mtu, accepts, *flags in content["peers"]
    ]
    ports = [
        Endpoint(name, kind, netns, ifname, _addresses(addresses), mtu, mac)
        for name, kind, netns, ifname, addresses, mtu, mac in content["ports"]
    ]
    state = ForwardingState(content["vni"], tuple(vteps), tuple(peers))
    return Told(list(content["words"]), settings, state, tuple(ports))


def _texts(values: Iterable[object]) -> list[str]:
    return [str(value) for value in values]


def _addresses(texts: Sequence[str]) -> tuple[Any, ...]:
    return tuple(map(ip_address, texts))


def _networks(texts: Sequence[str]) -> tuple[Any, ...]:
    return tuple(map(ip_network, texts))
