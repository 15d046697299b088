# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Loops over the hot C functions of encap, tun and routes: one Python call is `n` calls of the function.

The functions cannot be called from Python, and a call from Python would cost more than most of them. `work` and
`copy` are the references a figure is divided by: what this core gets done now, and the speed of its memory now.
All loops return something computed from every call, so that no call can be left out by the compiler.
"""

import cython
from cython.cimports.encap.checksum import header_sum
from cython.cimports.encap.inner import Inner, parse
from cython.cimports.encap.vtep import VtepTable, find_vtep
from cython.cimports.encap.vxlan import check_ethernet, check_header, stamp
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.routes.fib import Fib, lookup4, lookup6
from cython.cimports.tun.checksum import payload_sum, verify
from cython.cimports.tun.split import SPLIT_HEADER, Superframe, split_header, split_open
from cython.cimports.tun.vnet import VnetHeader


def work(table: cython.const[cython.uint][::1], n: cython.longlong) -> int:
    """`n` rounds of four independent multiply-adds, each with a load: about 4 cycles of a core that nobody else uses.

    It keeps the core's units as busy as header code does, so a neighbour on the other thread of the core slows both
    alike. `table` has 1,024 words.
    """
    a: uint64_t = cython.cast(uint64_t, n) | 1
    b: uint64_t = a + 2
    c: uint64_t = a + 4
    d: uint64_t = a + 6
    factor: uint64_t = a | 0x5851F42D
    i: uint64_t
    for i in range(n):
        a = a * factor + table[i & 1023]
        b = b * factor + table[(i + 256) & 1023]
        c = c * factor + table[(i + 512) & 1023]
        d = d * factor + table[(i + 768) & 1023]
    return a ^ b ^ c ^ d


def copy(data: cython.const[cython.uchar][::1], out: cython.uchar[::1], n: cython.longlong) -> int:
    """memcpy of all of `data` to `out`, `n` times."""
    size: cython.size_t = data.shape[0]
    total: uint64_t = 0
    i: cython.longlong
    for i in range(n):
        memcpy(cython.address(out[0]), cython.address(data[0]), size)
        total += out[i % cython.cast(cython.longlong, size)]
        out[0] = cython.cast(uint8_t, i)
    return total


def loop_parse(packet: cython.const[cython.uchar][::1], n: cython.longlong) -> int:
    """encap.inner.parse of one packet: IP header, its checksum, transport header, flow hash."""
    inner: Inner
    length: uint32_t = cython.cast(uint32_t, packet.shape[0])
    total: uint64_t = 0
    for _ in range(n):
        total += parse(cython.address(packet[0]), length, cython.address(inner)) + inner.l4
    return total


def loop_header_sum(header: cython.const[cython.uchar][::1], n: cython.longlong) -> int:
    """encap.checksum.header_sum over the whole buffer."""
    length: uint32_t = cython.cast(uint32_t, header.shape[0])
    total: uint64_t = 0
    for _ in range(n):
        total += header_sum(cython.address(header[0]), length)
    return total


def loop_payload_sum(data: cython.const[cython.uchar][::1], n: cython.longlong) -> int:
    """tun.checksum.payload_sum over the whole buffer."""
    length: uint32_t = cython.cast(uint32_t, data.shape[0])
    total: uint64_t = 0
    for _ in range(n):
        total += payload_sum(cython.address(data[0]), length)
    return total


def loop_verify(packet: cython.const[cython.uchar][::1], l4: cython.uint, n: cython.longlong) -> int:
    """tun.checksum.verify of a whole TCP or UDP packet."""
    length: uint32_t = cython.cast(uint32_t, packet.shape[0])
    protocol: uint8_t = packet[9] if packet[0] >> 4 == 4 else packet[6]
    total: uint64_t = 0
    for _ in range(n):
        total += verify(cython.address(packet[0]), length, l4, protocol)
    return total


def loop_lookup4(fib: Fib, addresses: cython.const[cython.uint][::1], n: cython.longlong) -> int:
    """routes.fib.lookup4 of the addresses (host integers) in turn."""
    count: cython.longlong = addresses.shape[0]
    at: cython.longlong = 0
    total: uint64_t = 0
    for _ in range(n):
        total += lookup4(cython.address(fib.table), addresses[at])
        at = at + 1 if at + 1 < count else 0
    return total


def loop_lookup6(fib: Fib, halves: cython.const[cython.ulonglong][::1], n: cython.longlong) -> int:
    """routes.fib.lookup6 of the addresses in turn; `halves` holds upper and lower 64 bits of each."""
    count: cython.longlong = halves.shape[0]
    at: cython.longlong = 0
    total: uint64_t = 0
    for _ in range(n):
        total += lookup6(cython.address(fib.table), halves[at], halves[at + 1])
        at = at + 2 if at + 2 < count else 0
    return total


def loop_vtep(table: VtepTable, addresses: cython.const[cython.uint][::1], n: cython.longlong) -> int:
    """encap.vtep.find_vtep of the IPv4 underlay addresses (host integers) in turn."""
    count: cython.longlong = addresses.shape[0]
    at: cython.longlong = 0
    total: uint64_t = 0
    for _ in range(n):
        total += find_vtep(cython.address(table.table), 4, 0, addresses[at])
        at = at + 1 if at + 1 < count else 0
    return total


def loop_stamp(table: VtepTable, n: cython.longlong) -> int:
    """encap.vxlan.stamp: the 22 bytes in front of a packet, from each VTEP of the table in turn."""
    out = cython.declare(cython.uchar[64])
    at: uint32_t = 0
    total: uint64_t = 0
    for _ in range(n):
        stamp(out, cython.address(table.table.vteps[at].header[0]), 4)
        total += out[8]
        at = at + 1 if at + 1 < table.table.count else 0
    return total


def loop_check(
    datagram: cython.const[cython.uchar][::1],
    own: cython.const[cython.uchar][::1],
    peer: cython.const[cython.uchar][::1],
    vni: cython.uint,
    n: cython.longlong,
) -> int:
    """encap.vxlan.check_header and check_ethernet of one UDP payload; the number of refusals."""
    length: uint32_t = cython.cast(uint32_t, datagram.shape[0])
    refused: uint64_t = 0
    for _ in range(n):
        if check_header(cython.address(datagram[0]), length, vni, True) != 0:
            refused += 1
        if check_ethernet(cython.address(datagram[8]), cython.address(own[0]), cython.address(peer[0])) != 0:
            refused += 1
    return refused


def loop_split(
    frame: cython.const[cython.uchar][::1], vnet: cython.const[cython.uchar][::1], n: cython.longlong
) -> int:
    """tun.split of one superframe: split_open and all its headers; segments per superframe, 0 when it is refused."""
    s: Superframe
    header: VnetHeader
    out = cython.declare(cython.uchar[SPLIT_HEADER])
    segments: uint32_t = 0
    index: uint32_t
    memcpy(cython.address(header), cython.address(vnet[0]), 10)
    for _ in range(n):
        if (
            split_open(
                cython.address(s),
                cython.address(frame[0]),
                cython.cast(uint32_t, frame.shape[0]),
                cython.address(header),
            )
            < 0
        ):
            return 0
        segments = s.segments
        for index in range(segments):
            split_header(cython.address(s), index, out)
    return segments
