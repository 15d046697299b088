from libc.stdint cimport uint8_t, uint32_t, uint64_t
from fabric.policy.judge cimport Question

cdef enum:
    DENIALS = 128                # the last ones that are kept
    DENIALS_PER_SECOND = 32

cdef struct Denial:
    Question question
    uint32_t rule                # NO_RULE of fabric.policy.judge: no rule decided
    uint8_t reason               # DropReason

# One thread's ring.
cdef struct Denials:
    Denial ring[DENIALS]
    uint64_t head                # records written so far
    uint32_t second              # in which `taken` were written
    uint32_t taken

cdef void note_denial(Denials* d, const Question* q, uint8_t reason, uint32_t rule, uint32_t now) noexcept nogil
# The records from number `since` on that are still there: [(reason, rule or None, family, source, destination,
# protocol, first, second), ...] with both ports, or ICMP type and code; `since` moves on.
cdef list read_denials(Denials* d, uint64_t* since)
