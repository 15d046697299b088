# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""GRO merge for Python callers: whole batches of frames in, writes to a file descriptor or a list out.

The rules are those of `tun.merge`. A batch is copied once (the C core may finish checksums in place) and then runs
without the GIL.
"""

import concurrent.futures
import socket
from collections.abc import Sequence
from typing import NamedTuple

import cython
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.tun.frame import Parsed, parse
from cython.cimports.tun.merge import Merger, merge_add, merge_flush, merge_init, merge_superframe

from tun.vnet import FEATURE_CSUM, FEATURE_TSO, FEATURE_USO, VNET_HEADER_SIZE
from tun.vnet import VnetHeader as Header

ALL_FEATURES = FEATURE_CSUM | FEATURE_TSO | FEATURE_USO


class MergeCounters(NamedTuple):
    """What became of a batch: frames and writes, IP bytes written, frames that left in superframes, and losses."""

    frames: int
    writes: int
    bytes: int
    merged: int
    bad_checksum: int
    errors_again: int
    errors_down: int
    errors_gone: int
    errors_other: int


def write_merged(
    fd: int,
    frames: Sequence[bytes | tuple[bytes, int]],
    *,
    features: int = ALL_FEATURES,
    zone: int = 0,
    rounds: int = 1,
) -> MergeCounters:
    """Merge one batch of IP frames and write it to the port `fd`, a virtio-net header before every frame.

    An item is a frame, or `(superframe, gso_size)` for one that is a TCP or UDP superframe already. `features` says
    what the port accepts (bits of `tun.vnet`); `rounds` repeats the batch, for measurements. Refused writes are
    counted, not raised. Raises ValueError for a frame longer than 65,535 bytes or a gso_size outside 0 to 65,535.
    """
    if not frames:
        return MergeCounters(*[0] * len(MergeCounters._fields))
    m = cython.cast(cython.pointer(Merger), malloc(cython.sizeof(Merger)))
    items = cython.cast(cython.pointer(MergeItem), malloc(len(frames) * cython.sizeof(MergeItem)))
    try:
        if m == cython.NULL or items == cython.NULL:
            raise MemoryError
        copies = [load_item(cython.address(items[i]), item) for i, item in enumerate(frames)]
        merge_init(m)
        port: cython.int = fd
        count: uint32_t = len(copies)
        bits: uint32_t = features
        area: uint32_t = zone
        times: uint32_t = rounds
        with cython.nogil:
            run_items(m, port, bits, area, items, count, times)
        return MergeCounters(
            m.frames, m.writes, m.bytes, m.merged, m.bad_checksum,
            m.errors_again, m.errors_down, m.errors_gone, m.errors_other,
        )  # fmt: skip
    finally:
        free(items)
        free(m)


@cython.cfunc
def load_item(item: cython.pointer(MergeItem), value: object) -> bytearray:
    """Copy one element of `frames` to memory that may be changed; the caller keeps the copy alive."""
    data, gso_size = value if isinstance(value, tuple) else (value, 0)
    if len(data) > 65535 or not 0 <= gso_size <= 65535:
        raise ValueError(f"frame of {len(data)} bytes with gso_size {gso_size}: both must be at most 65535")
    copy = bytearray(data)
    item.data = copy
    item.length = len(copy)
    item.gso_size = gso_size
    return copy


def run_items(m, fd, features, zone, items, count, rounds):
    """The batch of write_merged, `rounds` times."""
    p: Parsed
    i: uint32_t = 0
    for _ in range(rounds):
        for i in range(count):
            if items[i].gso_size and parse(items[i].data, items[i].length, cython.address(p)) and p.l4:
                merge_superframe(
                    m, fd, features, zone, items[i].data, items[i].length, p.l4, p.protocol, items[i].gso_size
                )
            else:
                merge_add(m, fd, features, zone, items[i].data, items[i].length)
        merge_flush(m)


def merge(
    frames: Sequence[bytes | tuple[bytes, int]], *, features: int = ALL_FEATURES, zone: int = 0
) -> list[tuple[Header, bytes]]:
    """What a port would be given for one batch of IP frames: (virtio-net header, IP frame) in the order of writing.

    Arguments and errors as for `write_merged`. The writes go through a socket pair that keeps their boundaries.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far, concurrent.futures.ThreadPoolExecutor(1) as pool:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 65535)
        reader = pool.submit(read_all, far)
        try:
            counters = write_merged(near.fileno(), frames, features=features, zone=zone)
        finally:
            near.close()
        written: list[bytes] = reader.result()
    if len(written) != counters.writes:
        raise OSError(f"{counters.writes} frames written to the socket pair, {len(written)} read: {counters}")
    return [(Header.parse(data), data[VNET_HEADER_SIZE:]) for data in written]


def read_all(end: socket.socket) -> list[bytes]:
    """All messages of a SOCK_SEQPACKET socket until its peer closes."""
    return list(iter(lambda: end.recv(VNET_HEADER_SIZE + 65536), b""))
