# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Table of remote VTEPs: underlay address to peer (who sent this?) and position to headers (how do I reach it?).

Immutable once built; one underlay address is one VTEP. The lookup by address is a hash index with linear probing,
at most half full.
"""

import struct
from ipaddress import IPv4Address, IPv6Address

import cython
from cython.cimports.encap.vxlan import build_header
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc
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


def size_for(count: int) -> int:
    """Slots of an index for `count` VTEPs: a power of two, at most half of them used."""
    return max(8, 1 << (2 * count - 1).bit_length()) if count else 8


@cython.cclass
class VtepTable:
    """Built from `(name, underlay address, port, mac, own_mac, mtu, format, vni, accepts, any_mac, slot)` tuples;
    position = order given.

    `format` is what we send: "vxlan", "udp", or None for nothing; `accepts` holds the formats that are taken. With
    `any_mac` any unicast inner source MAC but our own is accepted, not `mac` only. Raises ValueError for a second VTEP
    with the same underlay address, or a slot that there is not.
    """

    def __cinit__(self, entries):
        rows = list(entries)
        self._room(len(rows), size_for(len(rows)))
        for position, row in enumerate(rows):
            self._place(position, row)

    def __dealloc__(self):
        free(self.table.vteps)
        free(self.table.index)

    def patched(self, gone, come):
        """A new table: this one without the VTEPs at the positions `gone` and with those of `come`, (position, row)
        pairs; all others keep their positions.

        The positions of `come` are free (also by `gone`) or follow the last one without a gap. The cost is a copy of
        the table's memory and that of what is new. Raises ValueError as the constructor does.
        """
        placed = list(come)
        count: uint32_t = self.table.count
        for position, _ in placed:
            count = max(count, position + 1)
        table = VtepTable(())
        table._copy(self, count)
        for position in gone:
            table._free(position)
        for position, row in placed:
            table._place(position, row)
        return table

    def _room(self, count, size):
        """Memory for `count` VTEPs and an index of `size` slots, all free."""
        free(self.table.vteps)
        free(self.table.index)
        self.table.mask = size - 1
        self.table.count = count
        self.table.vteps = cython.cast(
            cython.pointer(Vtep), calloc(cython.cast(cython.size_t, count) + 1, cython.sizeof(Vtep))
        )
        self.table.index = cython.cast(cython.pointer(uint32_t), malloc(size * cython.sizeof(uint32_t)))
        if self.table.vteps == cython.NULL or self.table.index == cython.NULL:
            raise MemoryError
        memset(self.table.index, 0xFF, size * cython.sizeof(uint32_t))
        self.names = [None] * count

    def _copy(self, old: VtepTable, count):
        """Become `old` with room for `count` VTEPs."""
        size: uint32_t = max(old.table.mask + 1, size_for(count))
        position: uint32_t
        self._room(count, size)
        memcpy(self.table.vteps, old.table.vteps, old.table.count * cython.sizeof(Vtep))
        self.names[: old.table.count] = old.names
        if size == old.table.mask + 1:
            memcpy(self.table.index, old.table.index, size * cython.sizeof(uint32_t))
            return
        for position in range(old.table.count):
            if self.table.vteps[position].family:
                self._index(position)

    def _place(self, position, row):
        name, address, port, mac, own_mac, mtu, form, vni, accepts, any_mac, slot = row
        vtep: cython.pointer(Vtep) = cython.address(self.table.vteps[position])
        raw: bytes = socket_address(address, port)
        if vtep.family:
            raise ValueError(f"VTEP {name}: position {position} is taken")
        vtep.format = FORMATS[form]
        vtep.accepts = sum(1 << FORMATS[item] for item in accepts)
        vtep.any_mac = bool(any_mac)
        vtep.mtu = mtu
        vtep.address_length = len(raw)
        memcpy(vtep.address, cython.cast(cython.p_uchar, raw), len(raw))
        if not 0 <= slot < PEER_SLOTS:
            raise ValueError(f"VTEP {name}: there is no slot {slot}")
        vtep.slot = slot
        if len(mac) != 6 or len(own_mac) != 6:
            raise ValueError(f"VTEP {name}: a MAC has 6 bytes")
        memcpy(vtep.mac, cython.cast(cython.p_uchar, mac), 6)
        memcpy(vtep.own_mac, cython.cast(cython.p_uchar, own_mac), 6)
        build_header(vtep.header, vni, vtep.mac, vtep.own_mac)
        number = int(address)
        vtep.high = number >> 64
        vtep.low = number & 0xFFFFFFFFFFFFFFFF
        family: uint8_t = address.version
        if find_vtep(cython.address(self.table), family, vtep.high, vtep.low) != cython.cast(uint32_t, NO_VTEP):
            raise ValueError(f"VTEP {name}: underlay address {address} is already another VTEP's")
        vtep.family = family
        self.names[position] = name
        self._index(position)

    def _index(self, position):
        """Enter the VTEP, whose address is not there yet, into the index."""
        vtep: cython.pointer(Vtep) = cython.address(self.table.vteps[position])
        slot: uint32_t = slot_of(vtep.high, vtep.low, self.table.mask)
        while self.table.index[slot] != cython.cast(uint32_t, NO_VTEP):
            slot = (slot + 1) & self.table.mask
        self.table.index[slot] = position

    def _free(self, position):
        """Take the VTEP out. Those behind it in its chain of probes move up (Knuth, TAOCP 3, algorithm 6.4 R), so that
        no marks of the deleted pile up."""
        vtep: cython.pointer(Vtep) = cython.address(self.table.vteps[position])
        mask: uint32_t = self.table.mask
        hole: uint32_t = slot_of(vtep.high, vtep.low, mask)
        home: uint32_t
        other: cython.pointer(Vtep)
        if position >= self.table.count or not vtep.family:
            raise ValueError(f"there is no VTEP at position {position}")
        while self.table.index[hole] != position:
            hole = (hole + 1) & mask
        slot: uint32_t = hole
        while True:
            slot = (slot + 1) & mask
            if self.table.index[slot] == cython.cast(uint32_t, NO_VTEP):
                break
            other = cython.address(self.table.vteps[self.table.index[slot]])
            home = slot_of(other.high, other.low, mask)
            if ((slot - home) & mask) >= ((slot - hole) & mask):  # it may stand in the hole: its probes begin before it
                self.table.index[hole] = self.table.index[slot]
                hole = slot
        self.table.index[hole] = cython.cast(uint32_t, NO_VTEP)
        memset(vtep, 0, cython.sizeof(Vtep))
        self.names[position] = None

    def __len__(self):
        return self.table.count - self.names.count(None)

    def find(self, address: IPv4Address | IPv6Address) -> str | None:
        """Name of the VTEP with this underlay address."""
        number = int(address)
        position = find_vtep(
            cython.address(self.table), address.version, number >> 64, number & 0xFFFFFFFFFFFFFFFF
        )
        return None if position == cython.cast(uint32_t, NO_VTEP) else self.names[position]

    def at(self, position: int) -> tuple[str, bytes] | None:
        """Name and memory (`struct Vtep`) of the VTEP at `position`, None where there is none."""
        if not 0 <= position < self.table.count or not self.table.vteps[position].family:
            return None
        memory = cython.cast(cython.p_char, cython.address(self.table.vteps[position]))
        return self.names[position], memory[: cython.sizeof(Vtep)]
