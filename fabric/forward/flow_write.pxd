from libc.stdint cimport uint8_t, uint32_t, uint64_t
from fabric.forward.flow_table cimport Flow, FlowRest, Found, Table

cdef enum Insertion:
    PLACED = 0
    PRESENT = 1                  # somebody was faster; `found` has it
    REFUSED = 2

# Store the changed `found.flow`, and `rest` unless NULL, unless the bucket has changed since it was found.
cdef bint flow_store(Table* t, Found* found, const FlowRest* rest, uint32_t now) noexcept nogil
# Put a new flow in, unless it is there or nothing makes room; `found` has what is there then.
cdef Insertion flow_insert(Table* t, const Flow* fresh, const FlowRest* rest, uint64_t hash, uint32_t now,
                           Found* found) noexcept nogil
# Take expired flows out of the next `count` buckets; the threads share the work by a common cursor.
cdef void flow_sweep(Table* t, uint32_t count, uint32_t now) noexcept nogil
# Take out every flow that is charged to `account`, or has this address at one of its ends; how many there were.
cdef uint32_t flow_forget(Table* t, uint32_t account, uint8_t family, uint64_t high, uint64_t low) noexcept nogil
