# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What a datagram from the underlay has to pass before it is forwarded (steps 3 and 4 of `ingress`).

`examine` reads the datagram only; `admit` asks the tables. Between the two other datagrams are examined, while the
record of this one's flow is on its way to the cache.
"""

import cython
from cython.cimports.encap.bytes import load16
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import Inner, parse
from cython.cimports.encap.vtep import FORMAT_VXLAN, Vtep
from cython.cimports.encap.vxlan import ENCAPSULATION, ETHERTYPE_IPV6, check_ethernet, check_header
from cython.cimports.fabric.forward.flow_track import foresee
from cython.cimports.fabric.forward.snapshot import KIND_SHIFT, POSITION_MASK, TO_HOST, TO_PORT, TO_VTEP
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.routes.fib import lookup4, lookup6


def inner_superframe(m, form):
    """Inner segment size when the whole message is one datagram holding a UDP superframe, else 0.

    The kernel reports gso_size both for merged datagrams and for a tunnelled UDP superframe. The first inner IP
    length tells them apart: it fills the message in the second case, one datagram in the first.
    """
    offset: uint32_t = ENCAPSULATION if form == FORMAT_VXLAN else 0
    if m.gso_size == 0 or m.length < offset + 40:
        return 0
    total: uint32_t = load16(m.data + offset + 2)
    if m.data[offset] >> 4 == 6:
        total = cython.cast(uint32_t, load16(m.data + offset + 4)) + 40
    return m.gso_size if total + offset == m.length else 0


def examine(s, g, a):
    """Check the headers of a datagram; PASS or the drop reason."""
    vtep: cython.pointer(Vtep) = cython.address(g.vteps.vteps[a.position])
    inner: cython.pointer(Inner) = cython.address(a.inner)
    data: cython.pointer(uint8_t) = a.datagram
    length: uint32_t = a.length
    reason: cython.int
    if a.form == FORMAT_VXLAN:
        reason = check_header(data, length, g.vni, g.strict)
        if reason != DropReason.PASS:
            return reason
        reason = check_ethernet(
            data + 8, cython.address(vtep.own_mac[0]), cython.NULL if vtep.any_mac else cython.address(vtep.mac[0])
        )
        if reason != DropReason.PASS:
            return reason
        data += ENCAPSULATION
        length -= ENCAPSULATION
    reason = parse(data, length, inner)
    if reason != DropReason.PASS:
        return reason
    if a.form == FORMAT_VXLAN and ((data - 2)[0] == ETHERTYPE_IPV6 >> 8) != (inner.family == 6):
        return DropReason.INNER_VERSION
    a.packet = data
    a.hash = foresee(cython.address(s.lane.tracker), g, inner, data)
    return DropReason.PASS


def admit(s, g, position, inner):
    """PASS when source and destination are allowed; `last_target` is then the port position."""
    route: uint32_t
    if (
        s.last_src_low == inner.src_low
        and s.last_dst_low == inner.dst_low
        and s.last_vtep == position
        and s.last_number == g.number
        and s.last_src_high == inner.src_high
        and s.last_dst_high == inner.dst_high
        and s.last_family == inner.family
    ):
        return DropReason.PASS
    if inner.family == 4:
        route = lookup4(g.fib, cython.cast(uint32_t, inner.src_low))
    else:
        route = lookup6(g.fib, inner.src_high, inner.src_low)
    if route != (TO_VTEP << KIND_SHIFT | position) and route != (TO_HOST << KIND_SHIFT | position):
        return DropReason.SOURCE_NOT_LEASED
    if inner.family == 4:
        route = lookup4(g.fib, cython.cast(uint32_t, inner.dst_low))
    else:
        route = lookup6(g.fib, inner.dst_high, inner.dst_low)
    if route >> KIND_SHIFT != TO_PORT:
        return DropReason.DESTINATION_NOT_LOCAL
    s.last_number = g.number
    s.last_vtep = position
    s.last_family = inner.family
    s.last_src_high = inner.src_high
    s.last_src_low = inner.src_low
    s.last_dst_high = inner.dst_high
    s.last_dst_low = inner.dst_low
    s.last_target = route & POSITION_MASK
    return DropReason.PASS
