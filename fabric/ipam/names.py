"""Names that a runtime gives us, under libcni's rules. Source: containernetworking/cni `pkg/utils/utils.go`.

Nothing from outside becomes part of a path or of a record before it has passed here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fabric.ipam.errors import INVALID_CONFIG, INVALID_ENVIRONMENT, IPAMError

MAX_INTERFACE_BYTES = 15  # IFNAMSIZ without its NUL; the kernel counts bytes
MAX_FILE_NAME_BYTES = 255
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_RECORD = re.compile(rb"[a-zA-Z0-9][a-zA-Z0-9_.\-]*(?:\r\n[^/:\s\0]{1,15})?")


class _Names(NamedTuple):
    container_id: str
    ifname: str


class Attachment(_Names):
    """One interface of one container: what owns an address. Raises IPAMError (4) for a name that CNI forbids."""

    __slots__ = ()

    def __new__(cls, container_id: str, ifname: str) -> Attachment:
        if not isinstance(container_id, str) or not _NAME.fullmatch(container_id):
            raise IPAMError(INVALID_ENVIRONMENT, "invalid characters in containerID", _shown(container_id))
        problem = _interface_problem(ifname)
        if problem:
            raise IPAMError(INVALID_ENVIRONMENT, f"interface name {problem}", _shown(ifname))
        return super().__new__(cls, container_id, ifname)

    @property
    def record(self) -> bytes:
        """The content of an address' file that belongs to this attachment."""
        return f"{self.container_id}\r\n{self.ifname}".encode()

    @property
    def old_record(self) -> bytes:
        """The same as plugins before version 0.8 wrote it: without the interface."""
        return self.container_id.encode()

    def may_have_been(self, content: bytes) -> bool:
        """Whether `content` can be this attachment's record after damage: cut short, one byte changed, or no record."""
        if not _RECORD.fullmatch(content):
            return True
        changed = sum(ours != found for ours, found in zip(self.record, content, strict=False))
        return len(content) <= len(self.record) and changed <= 1


def check_network(name: object) -> str:
    """The name of a network, fit to be a directory's name. Raises IPAMError (7)."""
    if not isinstance(name, str) or not name:
        raise IPAMError(INVALID_CONFIG, "missing network name")
    if not _NAME.fullmatch(name):
        raise IPAMError(INVALID_CONFIG, "invalid characters found in network name", _shown(name))
    if len(name) > MAX_FILE_NAME_BYTES:
        raise IPAMError(INVALID_CONFIG, f"network name is longer than {MAX_FILE_NAME_BYTES} bytes", _shown(name))
    return name


def _interface_problem(name: object) -> str:
    if not isinstance(name, str) or not name:
        return "is empty"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    if length > MAX_INTERFACE_BYTES:
        return f"is too long: {length} bytes, at most {MAX_INTERFACE_BYTES}"
    if name in (".", ".."):
        return "is . or .."
    if any(char in "/:\0" or char.isspace() for char in name):
        return "contains / or : or whitespace characters"
    return ""


def _shown(value: object) -> str:
    return ascii(value)[:80]  # never a raw control character in a log or on a terminal
