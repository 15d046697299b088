# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Longest-prefix table for IPv4 and IPv6, compiled once into a flat immutable form.

Theory of operation. Overlapping prefixes are flattened at compile time into disjoint intervals that cover the whole
address space of their family: interval i begins at `start[i]`, ends before `start[i + 1]`, and carries the value of the
longest prefix that covers it, or NO_ROUTE. A lookup is then one binary search for the last start that is not above the
address: log2(2 n + 1) steps whatever the prefix lengths are, no branch that depends on the address, no lock, no
reference count, no Python object. Keys and values are separate arrays, so the search touches only keys.

A table is never changed. A new one is compiled and the owner swaps the pointer (compile, freeze, swap). `patched` makes
one from the last: the intervals under a prefix that changed are taken from a `routes.prefixes.Window`, all others are
copied memory. The result is what compiling all prefixes would give, to the last byte.

Limits: at most 2^31 - 1 prefixes per family; the value 0xFFFFFFFF is NO_ROUTE and cannot be stored; one value per
prefix (no metrics, no multipath); IPv4-mapped IPv6 addresses are looked up as IPv6.
"""

import ipaddress

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcpy

from routes.flatten import flatten, read_entries

IPV4_LAST = (1 << 32) - 1
IPV6_LAST = (1 << 128) - 1
LOW_64 = (1 << 64) - 1


def lookup4(table, address):
    """Value of the longest prefix covering `address` (host integer), or NO_ROUTE. Needs no GIL."""
    return table.value4[interval4(table, address)]


def interval4(table, address):
    """Index of the interval that covers `address`."""
    base: uint32_t = 0
    length: uint32_t = table.count4
    half: uint32_t
    while length > 1:
        half = length >> 1
        base += half * cython.cast(uint32_t, table.start4[base + half] <= address)
        length -= half
    return base


def lookup6(table, high, low):
    """The same for an IPv6 address given as its upper and lower 64 bits (host integers)."""
    return table.value6[interval6(table, high, low)]


def interval6(table, high, low):
    """Index of the interval that covers an IPv6 address."""
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
    return base


class Fib:
    """Immutable longest-prefix table: `Fib([(network, value), ...])`.

    `network` is an `ipaddress` network or its text, `value` an integer 0..0xfffffffe. Raises ValueError, naming the
    entry, for a value out of range, a text that is no network, or a prefix given twice.
    """

    def __cinit__(self, entries):
        prefixes4, prefixes6 = read_entries(entries)
        self.prefix_count = len(prefixes4) + len(prefixes6)
        starts, values = flatten(prefixes4, IPV4_LAST)
        self.room4(len(starts))
        self.fill4(0, starts, values)
        starts, values = flatten(prefixes6, IPV6_LAST)
        self.room6(len(starts))
        self.fill6(0, starts, values)

    def __dealloc__(self):
        free(self.table.start4)
        free(self.table.value4)
        free(self.table.high6)
        free(self.table.low6)
        free(self.table.value6)

    def patched(self, window):
        """A new table that differs from this one between the first and last address of `window` only, which says what
        is there (`routes.prefixes.Window`)."""
        version, first, last, starts, values, prefixes = window
        starts, values = list(starts), list(values)
        edge = values[len(values) - 1]
        count: cython.size_t = self.table.count4 if version == 4 else self.table.count6
        left: cython.size_t = self.interval(version, first)
        right: cython.size_t = self.interval(version, last) + 1
        if last < (IPV4_LAST if version == 4 else IPV6_LAST):
            if right < count and self.start(version, right) == last + 1:
                if self.value(version, right) == edge:
                    right += 1  # goes on with the window's last value
            elif self.value(version, right - 1) != edge:
                starts.append(last + 1)  # the rest of the interval in which the window ends
                values.append(self.value(version, right - 1))
        if self.start(version, left) < first:
            left += 1
        if left and self.value(version, left - 1) == values[0]:
            del starts[0], values[0]
        fresh = Fib(())
        fresh.prefix_count = prefixes
        middle: cython.size_t = len(starts)
        if version == 4:
            fresh.room6(self.table.count6)
            fresh.move(self, 6, 0, 0, self.table.count6)
            fresh.room4(left + middle + count - right)
            fresh.fill4(left, starts, values)
        else:
            fresh.room4(self.table.count4)
            fresh.move(self, 4, 0, 0, self.table.count4)
            fresh.room6(left + middle + count - right)
            fresh.fill6(left, starts, values)
        fresh.move(self, version, 0, 0, left)
        fresh.move(self, version, left + middle, right, count - right)
        return fresh

    def interval(self, version, address):
        if version == 4:
            return interval4(cython.address(self.table), address)
        return interval6(cython.address(self.table), address >> 64, address & LOW_64)

    def start(self, version, index):
        if version == 4:
            return self.table.start4[index]
        high: object = self.table.high6[index]
        return high << 64 | self.table.low6[index]

    def value(self, version, index):
        return self.table.value4[index] if version == 4 else self.table.value6[index]

    def room4(self, count):
        """Memory for `count` IPv4 intervals."""
        free(self.table.start4)
        free(self.table.value4)
        self.table.start4 = cython.cast(cython.pointer(uint32_t), malloc(count * cython.sizeof(uint32_t)))
        self.table.value4 = cython.cast(cython.pointer(uint32_t), malloc(count * cython.sizeof(uint32_t)))
        if not self.table.start4 or not self.table.value4:
            raise MemoryError
        self.table.count4 = cython.cast(uint32_t, count)

    def room6(self, count):
        """Memory for `count` IPv6 intervals."""
        free(self.table.high6)
        free(self.table.low6)
        free(self.table.value6)
        self.table.high6 = cython.cast(cython.pointer(uint64_t), malloc(count * cython.sizeof(uint64_t)))
        self.table.low6 = cython.cast(cython.pointer(uint64_t), malloc(count * cython.sizeof(uint64_t)))
        self.table.value6 = cython.cast(cython.pointer(uint32_t), malloc(count * cython.sizeof(uint32_t)))
        if not self.table.high6 or not self.table.low6 or not self.table.value6:
            raise MemoryError
        self.table.count6 = cython.cast(uint32_t, count)

    def fill4(self, place, starts, values):
        """Put IPv4 intervals at index `place`."""
        i: cython.size_t
        for i in range(len(starts)):
            self.table.start4[place + i] = starts[i]
            self.table.value4[place + i] = values[i]

    def fill6(self, place, starts, values):
        """Put IPv6 intervals at index `place`."""
        i: cython.size_t
        for i in range(len(starts)):
            start = starts[i]
            self.table.high6[place + i] = start >> 64
            self.table.low6[place + i] = start & LOW_64
            self.table.value6[place + i] = values[i]

    def move(self, old, version, place, first, count):
        """Copy `count` intervals of `old` from index `first` on to index `place`."""
        if version == 4:
            memcpy(self.table.start4 + place, old.table.start4 + first, count * cython.sizeof(uint32_t))
            memcpy(self.table.value4 + place, old.table.value4 + first, count * cython.sizeof(uint32_t))
        else:
            memcpy(self.table.high6 + place, old.table.high6 + first, count * cython.sizeof(uint64_t))
            memcpy(self.table.low6 + place, old.table.low6 + first, count * cython.sizeof(uint64_t))
            memcpy(self.table.value6 + place, old.table.value6 + first, count * cython.sizeof(uint32_t))

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

    def __eq__(self, other):
        """Whether both compiled forms are the same, byte for byte."""
        if not isinstance(other, Fib):
            return NotImplemented
        return self.table_bytes() == cython.cast(Fib, other).table_bytes()

    __hash__ = None

    def table_bytes(self):
        return (
            cython.cast(cython.p_char, self.table.start4)[: self.table.count4 * 4],
            cython.cast(cython.p_char, self.table.value4)[: self.table.count4 * 4],
            cython.cast(cython.p_char, self.table.high6)[: self.table.count6 * 8],
            cython.cast(cython.p_char, self.table.low6)[: self.table.count6 * 8],
            cython.cast(cython.p_char, self.table.value6)[: self.table.count6 * 4],
        )

    def __len__(self):
        return self.prefix_count
