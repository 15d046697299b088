"""What the data path was told, where that outlives the process: a memory file (memfd_create(2)), kept for the next run.

With it the next run forwards before it has read anything else (`fabric.forward.resumed`). Layout of the file: two
places of PLACE bytes, written in turn; each is MAGIC, a sequence number, the lengths of its text and its verdicts,
CRC-32 of number, text and verdicts, and these two. The whole one with the higher number counts. The text is JSON:
`layout`, `words` (the command line: with another one nothing is resumed), `settings`, `vni`, `vteps`, `peers`, `ports`.
The verdicts are policy (`fabric.policy.frozen`), nothing where there is none. Raise LAYOUT when the meaning of anything
changes; a file of another layout, or one that cannot be understood, is not used.

Limits: what is more than PLACE bytes together is not kept.
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

LAYOUT = 2
PLACE = 64 << 20
"""Only what is written takes memory."""
MAGIC = b"fabstate"
_HEAD = struct.Struct("=8sQIII")


class Told(NamedTuple):
    """All that the data path needs to go on. `words` is the command line for which it holds."""

    words: list[str]
    settings: DataplaneSettings
    state: ForwardingState
    ports: tuple[Endpoint, ...]
    verdicts: bytes = b""


class LastState:
    """The file of an earlier run, where `keeper` has it and it is whole, or a new one. Nothing where nobody keeps it.

    Raises OSError."""

    def __init__(self, keeper: kept.Kept) -> None:
        self._fd = -1
        self._written = (b"", b"")
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
        for number in (0, 1):
            if _place(self._fd, number) is None:  # torn: the other one counts until a whole one is written here
                os.pwrite(self._fd, bytes(_HEAD.size), number * PLACE)
        keeper.keep(kept.STATE, [self._fd])

    def write(self, told: Told | None) -> None:
        """What the next run goes on with; None: with nothing."""
        text = json.dumps(_content(told), separators=(",", ":")).encode() if told else b""
        verdicts = told.verdicts if told else b""
        if self._fd < 0 or (told and (text, verdicts) == self._written):
            return
        if len(text) + len(verdicts) > PLACE - _HEAD.size:
            text = verdicts = b""
        self._written = text, verdicts
        # Not counted: a predecessor may have written meanwhile.
        sequence = 1 + max(_head(self._fd, number)[0] for number in (0, 1))
        head = _HEAD.pack(MAGIC, sequence, len(text), len(verdicts), _check(sequence, text, verdicts))
        os.pwritev(self._fd, [head, text, verdicts], sequence % 2 * PLACE)

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
        found = _newest(fds[0]) if len(fds) == 1 else _NOTHING
        return _told(json.loads(found.text), found.verdicts) if found.text else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # of another version


class _Place(NamedTuple):
    sequence: int
    text: bytes
    verdicts: bytes


_NOTHING = _Place(0, b"", b"")


def _newest(fd: int) -> _Place:
    """The place that counts."""
    return max([_NOTHING, *(place for place in (_place(fd, 0), _place(fd, 1)) if place is not None)])


def _place(fd: int, number: int) -> _Place | None:
    """A place; None when it is not whole."""
    sequence, text_size, verdicts_size, check = _head(fd, number)
    at = number * PLACE + _HEAD.size
    found = _Place(sequence, os.pread(fd, text_size, at), os.pread(fd, verdicts_size, at + text_size))
    return found if sequence and _check(*found) == check else None


def _head(fd: int, number: int) -> tuple[int, int, int, int]:
    """Of a place: sequence number, sizes of text and verdicts, check; zeros where there is none."""
    data = os.pread(fd, _HEAD.size, number * PLACE)
    if len(data) == _HEAD.size:
        magic, sequence, text_size, verdicts_size, check = _HEAD.unpack(data)
        if magic == MAGIC and text_size + verdicts_size <= PLACE - _HEAD.size:
            return sequence, text_size, verdicts_size, check
    return 0, 0, 0, 0


def _check(sequence: int, text: bytes, verdicts: bytes) -> int:
    return zlib.crc32(verdicts, zlib.crc32(text, zlib.crc32(sequence.to_bytes(8, "little"))))


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


def _told(content: Mapping[str, Any], verdicts: bytes) -> Told | None:
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
    return Told(list(content["words"]), settings, state, tuple(ports), verdicts)


def _texts(values: Iterable[object]) -> list[str]:
    return [str(value) for value in values]


def _addresses(texts: Sequence[str]) -> tuple[Any, ...]:
    return tuple(map(ip_address, texts))


def _networks(texts: Sequence[str]) -> tuple[Any, ...]:
    return tuple(map(ip_network, texts))
