"""What the node last knew, on disk: configuration, own lease and peers' leases, to start while the store is away.

`<state-dir>/leases.json`, mode 0600 in a 0700 directory, replaced atomically. Leases are kept as the store's keys and
values, so reading them back goes through the same checks as the store's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric import jsonsafe, leases
from fabric.files import read_private, write_atomic
from fabric.identity import ends
from fabric.leases import LeaseFormatError
from fabric.model import Lease

NAME = "leases.json"
MAX_BYTES = 64 << 20
VERSION = 1


@dataclass(frozen=True, slots=True)
class Remembered:
    """The content of the file; empty when there is none that can be trusted.

    `config` is the text of the network configuration where that comes from the store, `public` the administrator's
    public addresses by IP version.
    """

    own: Lease | None = None
    peers: tuple[Lease, ...] = ()
    config: str = ""
    public: Mapping[int, str] = field(default_factory=dict)


class Renderer:
    """Makes the file's bytes. A peer's part of them is kept: with 1,000 peers, one that changes costs one.

    Leases are told apart by identity, which `LeaseTable` keeps for an unchanged lease.
    """

    def __init__(self) -> None:
        self._peers: tuple[Lease, ...] = ()
        self._parts: list[bytes] = []  # of these peers

    def __call__(self, remembered: Remembered) -> bytes:
        """The file's bytes for `remembered`; the parts of peers that are not in it are forgotten."""
        own, old, peers = remembered.own, self._peers, remembered.peers
        front, back = ends(old, peers)
        self._parts[front : len(old) - back] = [_emit(peer).encode() for peer in peers[front : len(peers) - back]]
        self._peers = peers
        start = {
            "version": VERSION,
            "config": remembered.config,
            "public": {str(version): text for version, text in remembered.public.items()},
        }
        head = f'{jsonsafe.dumps(start)[:-1]},"own":{_emit(own) if own else "null"},"peers":['
        return b"".join([head.encode(), b",".join(self._parts), b"]}"])


def save(directory: Path, data: bytes) -> None:
    """Replace the file. Raises OSError."""
    write_atomic(directory / NAME, data, 0o600, 0o700)


def load(directory: Path) -> Remembered:
    """Read the file back. Anything unreadable in it counts as absent; never raises."""
    try:
        # Whoever else could write it could redirect pods' traffic.
        document = jsonsafe.loads(read_private(directory / NAME, MAX_BYTES), max_bytes=MAX_BYTES)
    except (OSError, jsonsafe.JsonError):
        return Remembered()
    if not isinstance(document, dict) or document.get("version") != VERSION:
        return Remembered()
    peers, config = document.get("peers"), document.get("config")
    found_peers = [_parse(item) for item in peers] if isinstance(peers, list) else []
    return Remembered(
        _parse(document.get("own")),
        tuple(peer for peer in found_peers if peer is not None),
        config if isinstance(config, str) else "",
        _public(document.get("public")),
    )


def _public(found: Any) -> dict[int, str]:
    if not isinstance(found, dict):
        return {}
    texts = {version: found.get(str(version)) for version in (4, 6)}
    return {version: text for version, text in texts.items() if isinstance(text, str)}


def _emit(lease: Lease) -> str:
    value = leases.emit_value(lease).decode()
    return jsonsafe.dumps({"key": lease.key, "value": value, "expires": lease.expires})


def _parse(item: Any) -> Lease | None:
    if not isinstance(item, dict):
        return None
    key, value, expires = item.get("key"), item.get("value"), item.get("expires")
    if not isinstance(key, str) or not isinstance(value, str) or not isinstance(expires, int | float | None):
        return None
    try:
        return leases.parse(key, value.encode(), expires)
    except (LeaseFormatError, UnicodeEncodeError):
        return None
