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

cdef class Fib:
    cdef FibTable table
    cdef Py_ssize_t prefix_count
    cdef fill4(self, list starts, list values)
    cdef fill6(self, list starts, list values)
