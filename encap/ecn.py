# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Explicit congestion notification across the tunnel: RFC 6040, normal mode (outer field = copy of the inner)."""

import cython
from cython.cimports.encap.bytes import load16, store16
from cython.cimports.encap.checksum import update16
from cython.cimports.libc.stdint import uint8_t, uint16_t


def decapsulated_ecn(outer_tos, inner_tos):
    """Table of RFC 6040 section 4.2: only CE and ECT(1) travel inwards, and CE never onto a Not-ECT packet."""
    outer: uint8_t = outer_tos & ECN_MASK
    inner: uint8_t = inner_tos & ECN_MASK
    if outer == ECN_CE:
        return -1 if inner == 0 else ECN_CE
    if outer == 1 and inner == 2:
        return 1
    return inner


def set_ecn(packet, ecn):
    """Write `ecn` (0..3) into the header at `packet`."""
    old: uint16_t = load16(packet)
    new: uint16_t
    if packet[0] >> 4 == 6:
        new = (old & 0xFFCF) | (cython.cast(uint16_t, ecn) << 4)
        store16(packet, new)
        return
    new = (old & 0xFFFC) | ecn
    store16(packet, new)
    store16(packet + 10, update16(load16(packet + 10), old, new))


def decapsulate_ecn(outer_tos: int, inner_tos: int) -> int:
    """Python face of `decapsulated_ecn`: the new inner ECN field, or -1 for drop."""
    return decapsulated_ecn(outer_tos, inner_tos)
