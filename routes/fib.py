# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Longest-prefix table for IPv4 and IPv6, compiled once into a flat immutable form.

Theory of operation. Overlapping prefixes are flattened at compile time into disjoint intervals that cover the whole
address space of their family: interval i begins at `start[i]`, ends before `start[i + 1]`, and carries the value of the
longest prefix that covers it, or NO_ROUTE. A lookup is then one binary search for the last start that is not above the
address: log2(2 n + 1) steps whatever the prefix lengths are, no branch that depends on the address, no lock, no
reference count, no Python object. Keys and values are separate arrays, so the search touches only keys.

A table is never changed. A new one is compiled and the owner swaps the pointer (compile, freeze, swap).

Limits: at most 2^31 - 1 prefixes per family; the value 0xFFFFFFFF is NO_ROUTE and cannot be stored; one value per
prefix (no metrics, no multipath); IPv4-mapped IPv6 addresses are looked up as IPv6.
"""

import ipaddress

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc

from routes.flatten import flatten, read_entries

IPV4_LAST = (1 << 32) - 1
IPV6_LAST = (1 << 128) - 1
LOW_64 = (1 << 64) - 1


def lookup4(table, address):
    """Value of the longest prefix covering `address` (host integer), or NO_ROUTE. Needs no GIL."""
    base: uint32_t = 0
    length: uint32_t = table.count4
    half: uint32_t
    while length > 1:
        half = length >> 1
        base += half * cython.cast(uint32_t, table.start4[base + half] <= address)
        length -= half
    return table.value4[base]


def lookup6(table, high, low):
    """The same for an IPv6 address given as its upper and lower 64 bits (host integers)."""
    base: uint32_t = 0
    length: uint32_t = table.count6
    half: uint32_t
    probe: uint32_t
    not_above: uint32_t
    while length > 1:
        half = length >> 1
        probe = base + half
        not_above = cython.cast(uint32_t, table.high6[probe] < high) | (
            cython.cast(uint32_t, table.high6[probe] == high) & cython.cast(uint32_t, table.low6[probe] <= low)
        )
        base += half * not_above
        length -= half
    return table.value6[base]


class Fib:
    """Immutable longest-prefix table: `Fib([(network, value), ...])`.

    `network` is an `ipaddress` network or its text, `value` an integer 0..0xfffffffe. Raises ValueError, naming the
    entry, for a value out of range, a text that is no network, or a prefix given twice.
    """

    def __cinit__(self, entries):
        prefixes4, prefixes6 = read_entries(entries)
        self.prefix_count = len(prefixes4) + len(prefixes6)
        starts, values = flatten(prefixes4, IPV4_LAST)
        self.fill4(starts, values)
        starts, values = flatten(prefixes6, IPV6_LAST)
        self.fill6(starts, values)

    def __dealloc__(self):
        free(self.table.start4)
        free(self.table.value4)
        free(self.table.high6)
        free(self.table.low6)
        free(self.table.value6)

    def fill4(self, starts, values):
        count: cython.size_t = len(starts)
        i: cython.size_t
        self.table.start4 = cython.cast(cython.pointer(uint32_t), malloc(count * cython.sizeof(uint32_t)))
        self.table.value4 = cython.cast(cython.pointer(uint32_t), malloc(count * cython.sizeof(uint32_t)))
        if not self.table.start4 or not self.table.value4:
            raise MemoryError
        for i in range(count):
            self.table.start4[i] = starts[i]
            self.table.value4[i] = values[i]
        self.table.count4 = cython.cast(uint32_t, count)

    def fill6(self, starts, values):
        count: cython.size_t = len(starts)
        i: cython.size_t
        self.table.high6 = cython.cast(cython.pointer(uint64_t), malloc(count * cython.sizeof(uint64_t)))
        self.table.low6 = cython.cast(cython.pointer(uint64_t), malloc(count * cython.sizeof(uint64_t)))
        self.table.value6 = cython.cast(cython.pointer(uint32_t), malloc(count * cython.sizeof(uint32_t)))
        if not self.table.high6 or not self.table.low6 or not self.table.value6:
            raise MemoryError
        for i in range(count):
            start = starts[i]
            self.table.high6[i] = start >> 64
            self.table.low6[i] = start & LOW_64
            self.table.value6[i] = values[i]
        self.table.count6 = cython.cast(uint32_t, count)

    def lookup(self, address):
        """Value of the longest prefix that covers `address` (an `ipaddress` address or its text), or None."""
        if isinstance(address, str):
            address = ipaddress.ip_address(address)
        number = int(address)
        value: uint32_t
        if address.version == 4:
            value = lookup4(cython.address(self.table), number)
        else:
            value = lookup6(cython.address(self.table), number >> 64, number & LOW_64)
        return None if value == NO_ROUTE else value

    @property
    def intervals(self):
        """Intervals of the compiled form, (IPv4, IPv6): what a lookup searches; at least one each."""
        return self.table.count4, self.table.count6

    def __len__(self):
        return self.prefix_count
