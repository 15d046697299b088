from libc.stdint cimport uint8_t, uint32_t, uint64_t
from fabric.policy.judge cimport Answer, PolicySnapshot, PolicyTables, Question

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

# What would be judged by if the staged policies were in force.
cdef struct StagedRules:
    const PolicyTables* tables
    uint64_t** hits              # as in Rules: the flows that each rule would have decided
    uint64_t** changes           # those of them whose verdict would have been the other one

# What a generation knows of policy.
cdef struct Rules:
    const PolicyTables* tables   # NULL: none
    uint64_t** hits              # HITS_BLOCKS blocks, NULL where no rule has such a number
    const StagedRules* staged    # NULL: nothing is staged
    uint32_t number              # of this state of rules and ports; flows remember under which they were judged
    uint32_t service_count
    uint8_t active               # 0: nothing is judged
    ServiceNetwork services[MOST_SERVICES]

cdef bint is_service(const Rules* rules, uint8_t family, uint64_t high, uint64_t low) noexcept nogil
cdef void count_rules(uint64_t** hits, const Answer* a) noexcept nogil
cdef void count_rule(uint64_t** hits, uint32_t number) noexcept nogil
# Judge by the staged policies as well what was answered by `a`, and count what they would have done.
cdef void count_staged(const StagedRules* staged, const Question* q, const Answer* a) noexcept nogil
cdef bint passes(const Question* q, const Answer* a) noexcept nogil

cdef class RuleHits:
    cdef uint64_t** blocks

cdef class Staged:
    cdef StagedRules rules
    cdef readonly PolicySnapshot policy
    cdef readonly RuleHits hits
    cdef readonly RuleHits changes

cdef class Enforcement:
    cdef Rules rules
    cdef PolicySnapshot policy
    cdef RuleHits hits
    cdef Staged staged
