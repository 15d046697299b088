"""The flow table's memory where it outlives the process: a memory file (memfd_create(2)), kept for the next run.

Without it connections that were there before a restart are met in the middle, and policy then takes the side that
speaks first for the one that began (`flow_track`): where only the other side may begin, what comes is refused.

Layout of the file: two slots of SLOT bytes, then the table's own memory. A slot is MAGIC, a sequence number, length and
CRC-32 of its text, which is JSON: `layout`, `flow` (bytes of one), `secret` (the hash's key), `accounts` (port names
and their numbers). They are written in turn; the whole one with the higher number counts. A file of another layout is
not used: raise LAYOUT when the meaning of anything in `flow_table.pxd` or `flow_state.pxd` changes.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from typing import Any

from fabric.forward import kept
from fabric.forward.flows import BYTES_PER_FLOW, FlowTable

LAYOUT = 3
SLOT = 1 << 20
HEADER = 2 * SLOT
MAGIC = b"fabflows"
_HEAD = struct.Struct("=8sQII")


class FlowMemory:
    """The table of at least `flows` flows, of an earlier run where `keeper` has it. Raises OSError, MemoryError."""

    def __init__(self, flows: int, keeper: kept.Kept) -> None:
        self._fd = -1
        self._sequence = 0
        self._written = ""
        self._old = False
        if not keeper.lasts():
            self.table = FlowTable(flows)
            return
        room = HEADER + FlowTable.room_for(flows)
        found = self._take(keeper, room)
        if self._fd < 0:
            self._fd = os.memfd_create("fabric-flows", os.MFD_CLOEXEC)
            os.ftruncate(self._fd, room)
        self.table = FlowTable(flows, 0, self._fd, HEADER)
        if found is not None:
            self.table.set_secret(found["secret"])
            self.table.set_accounts(found["accounts"])
            self._old = True
        self.remember()
        keeper.keep(kept.FLOWS, [self._fd])

    def recover(self) -> int:
        """Before the first thread uses a table of an earlier run, and when nobody writes it any more: make it whole.

        How many flows it has; 0 for a new one, and at any later call."""
        if not self._old:
            return 0
        self._old = False
        return self.table.recover()

    def remember(self) -> None:
        """Write down which account is whose, if that has changed."""
        if self._fd < 0:
            return
        content = {"layout": LAYOUT, "flow": BYTES_PER_FLOW, **self.table.identity()}
        text = json.dumps(content)
        if text != self._written and len(text) < SLOT - _HEAD.size:
            self._written = text
            self._sequence += 1
            data = text.encode()
            head = _HEAD.pack(MAGIC, self._sequence, len(data), zlib.crc32(data))
            os.pwrite(self._fd, head + data, self._sequence % 2 * SLOT)

    def close(self) -> None:
        """The file; the table's memory stays until nobody uses it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self, keeper: kept.Kept, room: int) -> dict[str, Any] | None:
        """What an earlier run has written down, with `_fd` its file; None when there is none that fits."""
        fds = keeper.take(kept.FLOWS)
        for fd in fds:
            slots = [_slot(fd, number * SLOT) for number in (0, 1)]
            best = max((slot for slot in slots if slot is not None), key=lambda slot: slot[0], default=None)
            if best is not None and len(fds) == 1 and os.fstat(fd).st_size == room and _fits(best[1]):
                self._fd, self._sequence = fd, best[0]
                return best[1]
            os.close(fd)
        if fds:
            keeper.drop(kept.FLOWS)
        return None


def _slot(fd: int, offset: int) -> tuple[int, dict[str, Any]] | None:
    """Number and content of a slot; None when it is not whole."""
    data = os.pread(fd, SLOT, offset)
    if len(data) < _HEAD.size:
        return None
    magic, sequence, length, check = _HEAD.unpack_from(data)
    text = data[_HEAD.size : _HEAD.size + length]
    if magic != MAGIC or len(text) != length or zlib.crc32(text) != check:
        return None
    return sequence, json.loads(text)


def _fits(content: dict[str, Any]) -> bool:
    return (content.get("layout"), content.get("flow")) == (LAYOUT, BYTES_PER_FLOW)
