from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    NO_ROUTE = 0xFFFFFFFF

# Disjoint, sorted intervals: interval i covers start[i] .. start[i + 1] - 1; start[0] is 0.
cdef struct FibTable:
    uint32_t count4
    uint32_t* start4
    uint32_t* value4
    uint32_t count6
    uint64_t* high6
    uint64_t* low6
    uint32_t* value6

cdef uint32_t lookup4(const FibTable* table, uint32_t address) noexcept nogil
cdef uint32_t lookup6(const FibTable* table, uint64_t high, uint64_t low) noexcept nogil

# The interval that covers an address.
cdef uint32_t interval4(const FibTable* table, uint32_t address) noexcept nogil
cdef uint32_t interval6(const FibTable* table, uint64_t high, uint64_t low) noexcept nogil

cdef class Fib:
    cdef FibTable table
    cdef Py_ssize_t prefix_count
    cdef size_t interval(self, int version, object address)
    cdef object start(self, int version, size_t index)
    cdef object value(self, int version, size_t index)
    cdef room4(self, size_t count)
    cdef room6(self, size_t count)
    cdef fill4(self, size_t place, list starts, list values)
    cdef fill6(self, size_t place, list starts, list values)
    cdef move(self, Fib old, int version, size_t place, size_t first, size_t count)
    cdef tuple table_bytes(self)
