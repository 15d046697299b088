# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Table of remote VTEPs: underlay address to peer (who sent this?) and position to headers (how do I reach it?).

Immutable once built; one underlay address is one VTEP. The lookup by address is a hash index with linear probing,
at most half full.
"""

import struct
from ipaddress import IPv4Address, IPv6Address

import cython
from cython.cimports.encap.vxlan import build_header
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy, memset

FORMATS = {"vxlan": FORMAT_VXLAN, "udp": FORMAT_UDP, None: FORMAT_NONE}
AF_INET = 2
AF_INET6 = 10


def slot_of(high, low, mask):
    """First slot to probe for an address."""
    h: uint64_t = (high ^ (low * 0x1E3779B1)) * 0x7F4A7C15
    return cython.cast(uint32_t, h >> 32) & mask


def find_vtep(table, family, high, low):
    """Probe until the address or an empty slot is met."""
    slot: uint32_t = slot_of(high, low, table.mask)
    position: uint32_t
    while True:
        position = table.index[slot]
        if position == cython.cast(uint32_t, NO_VTEP):
            return position
        if (
            table.vteps[position].low == low
            and table.vteps[position].high == high
            and table.vteps[position].family == family
        ):
            return position
        slot = (slot + 1) & table.mask


def socket_address(address: IPv4Address | IPv6Address, port: int) -> bytes:
    """`struct sockaddr_in` (16 bytes) or `struct sockaddr_in6` (28 bytes) in memory order."""
    if address.version == 4:
        return struct.pack("=H", AF_INET) + struct.pack("!H", port) + address.packed + bytes(8)
    return struct.pack("=H", AF_INET6) + struct.pack("!HI", port, 0) + address.packed + struct.pack("=I", 0)


@cython.cclass
class VtepTable:
    """Built from `(name, underlay address, port, mac, own_mac, mtu, format, vni, accepts, any_mac)` tuples; position =
    order given.

    `format` is what we send: "vxlan", "udp", or None for nothing; `accepts` holds the formats that are taken. With
    `any_mac` any unicast inner source MAC but our own is accepted, not `mac` only. Raises ValueError for a second VTEP
    with the same underlay address.
    """

    def __cinit__(self, entries):
        rows = list(entries)
        size: uint32_t = 8
        while size < 2 * len(rows):
            size *= 2
        self.table.mask = size - 1
        self.table.count = cython.cast(uint32_t, len(rows))
        self.table.vteps = cython.cast(cython.pointer(Vtep), calloc(len(rows) + 1, cython.sizeof(Vtep)))
        self.table.index = cython.cast(cython.pointer(uint32_t), calloc(size, cython.sizeof(uint32_t)))
        if self.table.vteps == cython.NULL or self.table.index == cython.NULL:
            raise MemoryError
        memset(self.table.index, 0xFF, size * cython.sizeof(uint32_t))
        self.names = tuple(row[0] for row in rows)
        for position, row in enumerate(rows):
            self._place(position, row)

    def __dealloc__(self):
        free(self.table.vteps)
        free(self.table.index)

    def _place(self, position, row):
        name, address, port, mac, own_mac, mtu, form, vni, accepts, any_mac = row
        vtep: cython.pointer(Vtep) = cython.address(self.table.vteps[position])
        raw: bytes = socket_address(address, port)
        vtep.format = FORMATS[form]
        vtep.accepts = sum(1 << FORMATS[item] for item in accepts)
        vtep.any_mac = bool(any_mac)
        vtep.family = address.version
        vtep.mtu = mtu
        vtep.address_length = len(raw)
        memcpy(vtep.address, cython.cast(cython.p_uchar, raw), len(raw))
        if len(mac) != 6 or len(own_mac) != 6:
            raise ValueError(f"VTEP {name}: a MAC has 6 bytes")
        memcpy(vtep.mac, cython.cast(cython.p_uchar, mac), 6)
        memcpy(vtep.own_mac, cython.cast(cython.p_uchar, own_mac), 6)
        build_header(vtep.header, vni, vtep.mac, vtep.own_mac)
        number = int(address)
        vtep.high = number >> 64
        vtep.low = number & 0xFFFFFFFFFFFFFFFF
        if find_vtep(cython.address(self.table), vtep.family, vtep.high, vtep.low) != cython.cast(uint32_t, NO_VTEP):
            raise ValueError(f"VTEP {name}: underlay address {address} is already another VTEP's")
        slot: uint32_t = slot_of(vtep.high, vtep.low, self.table.mask)
        while self.table.index[slot] != cython.cast(uint32_t, NO_VTEP):
            slot = (slot + 1) & self.table.mask
        self.table.index[slot] = position

    def __len__(self):
        return self.table.count

    def find(self, address: IPv4Address | IPv6Address) -> str | None:
        """Name of the VTEP with this underlay address."""
        number = int(address)
        position = find_vtep(
            cython.address(self.table), address.version, number >> 64, number & 0xFFFFFFFFFFFFFFFF
        )
        return None if position == cython.cast(uint32_t, NO_VTEP) else self.names[position]
