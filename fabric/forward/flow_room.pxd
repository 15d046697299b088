from libc.stdint cimport uint32_t, uint64_t
from fabric.forward.flow_table cimport Bucket, Table

cdef enum:
    NOWHERE = 0x7FFFFFFF
    SEARCHED = 32                # buckets that are searched for a flow to give back, from the first of the new one on

# A flow that may make room, the lowest rank first, then the earliest expiry. `rank`: 0 expired, else a FlowClass.
cdef struct Least:
    uint32_t index
    uint32_t rank
    uint32_t expires

# Lock a bucket; the even sequence it had.
cdef uint64_t take(Bucket* bucket) noexcept nogil
# Take a flow out, counted under `reason`; its bucket is taken.
cdef void clear(Table* t, uint32_t index, int reason) noexcept nogil
# Whether an account may have no more.
cdef bint at_quota(const Table* t, uint32_t account) noexcept nogil
# Take out a flow of an account that is at its quota, for a new one of this hash. Whether there was one.
cdef bint give_back(Table* t, uint32_t account, uint64_t hash, uint32_t now) noexcept nogil
# A free place in the two buckets (taken) of a new flow, the `wanted` one where it can be had, or NOWHERE, counted as
# refused.
cdef uint32_t make_room(Table* t, uint32_t first, uint32_t second, uint32_t wanted, uint32_t now) noexcept nogil
