from libc.stdint cimport uint8_t, uint32_t, uint64_t
from fabric.policy.judge cimport Answer, PolicySnapshot, PolicyTables

cdef enum:
    MOST_SERVICES = 16
    HITS_SHIFT = 12
    HITS_BLOCK = 4096            # counters that are allocated together
    HITS_BLOCKS = 1024

# Host order as in Inner.
cdef struct ServiceNetwork:
    uint64_t mask_high
    uint64_t mask_low
    uint64_t high
    uint64_t low
    uint8_t family

# What a generation knows of policy.
cdef struct Rules:
    const PolicyTables* tables   # NULL: none
    uint64_t** hits              # HITS_BLOCKS blocks, NULL where no rule has such a number
    uint32_t number              # of this state of rules and ports; flows remember under which they were judged
    uint32_t service_count
    uint8_t active               # 0: nothing is judged
    ServiceNetwork services[MOST_SERVICES]

cdef bint is_service(const Rules* rules, uint8_t family, uint64_t high, uint64_t low) noexcept nogil
cdef void count_rules(const Rules* rules, const Answer* a) noexcept nogil
cdef void count_rule(const Rules* rules, uint32_t number) noexcept nogil

cdef class RuleHits:
    cdef uint64_t** blocks

cdef class Enforcement:
    cdef Rules rules
    cdef PolicySnapshot policy
    cdef RuleHits hits
