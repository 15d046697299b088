from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from fabric.forward.flow_key cimport SECRET_WORDS, FlowKey
from fabric.forward.kernel cimport prefetch

cdef enum:
    WAYS = 8                     # flows of a bucket
    ACCOUNTS = 4096              # who flows are charged to; 0 is nobody, without quota
    NODE_ENTRY = 0               # `entry` of the node port; pod ports have their account there
    UNDERLAY_ENTRY = 0xFFFF
    NO_ENTRY = 0xFFFE
    NO_RULE = 0x7FFFFFFF

# Positions of `counts`.
cdef enum:
    INSERTED
    EXPIRED
    REPLACED                     # by a new connection of the same ends
    EVICTED_CLOSING
    EVICTED_EMBRYONIC
    EVICTED_ANSWERED
    FORGOTTEN                    # with the pod whose they were
    REFUSED_FULL
    REFUSED_QUOTA
    FLOW_COUNTS

# One cache line. `sequence` is odd while somebody writes the bucket or its flows.
cdef struct Bucket:
    uint64_t sequence
    uint64_t tags[2]             # 16 bits of the hash per way, 0 = free
    uint32_t expires[WAYS]       # seconds, monotonic
    uint8_t classes[WAYS]        # FlowClass

# One cache line: what every lookup reads. Fields of both directions are indexed by the side that sends.
cdef struct Flow:
    FlowKey key
    uint32_t seen[2]             # last packet, seconds, monotonic
    uint16_t entry[2]            # port by which that side's packets come in
    uint16_t account             # who it is charged to
    uint8_t state                # FlowState
    uint8_t origin               # side that began
    uint32_t policy              # number of the policy snapshot that judged it, 0 = none
    uint8_t refused              # DropReason by which that policy cuts it, 0 = allowed
    uint8_t icmp_type            # of its first packet
    uint8_t icmp_code
    uint8_t standing             # what policies have said of it since it began: Standing of flow_state

# What only judging and showing need.
cdef struct FlowRest:
    uint32_t egress_rule         # numbers for hit counters, NO_RULE where none decided
    uint32_t ingress_rule
    uint64_t high[2]             # the ends after translation
    uint64_t low[2]
    uint16_t port[2]

cdef struct Table:
    Bucket* buckets
    Flow* flows                  # WAYS per bucket
    FlowRest* rests
    uint32_t mask                # buckets - 1
    uint32_t quota               # flows of an account
    uint64_t secret[SECRET_WORDS]
    uint64_t gap[8]              # what follows is written all the time, what is before is read
    uint64_t counts[FLOW_COUNTS]
    uint64_t cursor              # next bucket to sweep
    uint32_t charged[ACCOUNTS]

# A flow as it was at `sequence` of its bucket.
cdef struct Found:
    Flow flow
    Bucket* bucket
    uint32_t index
    uint32_t expires
    uint64_t sequence

cdef void pause(uint32_t turn) noexcept nogil
# The flow with this key, expired or not.
cdef bint flow_lookup(const Table* t, const FlowKey* key, uint64_t hash, Found* found) noexcept nogil
# A consistent copy of what is in one place; False when nothing is.
cdef bint flow_read(const Table* t, uint32_t index, Flow* flow, FlowRest* rest, uint32_t* expires) noexcept nogil


cdef inline bint same_key(const FlowKey* a, const FlowKey* b) noexcept nogil:
    return (a.low[0] == b.low[0] and a.low[1] == b.low[1] and a.port[0] == b.port[0] and a.port[1] == b.port[1]
            and a.protocol == b.protocol and a.high[0] == b.high[0] and a.high[1] == b.high[1]
            and a.family == b.family)


# 16 bits, never 0.
cdef inline uint64_t tag_of(uint64_t hash) noexcept nogil:
    return (hash >> 48) | 1


# The other bucket of a key; the first is `hash & mask`.
cdef inline uint32_t second_of(const Table* t, uint64_t hash) noexcept nogil:
    return <uint32_t>(hash >> 22) & t.mask


# Where in its bucket a flow is put if that place is free: most are found where a reader has looked ahead.
cdef inline uint32_t way_for(uint64_t hash) noexcept nogil:
    return <uint32_t>(hash >> 45) % WAYS


# Load what a lookup will most likely need: both cache lines are far when a flow has been silent for a while.
cdef inline void look_ahead(const Table* t, uint64_t hash) noexcept nogil:
    cdef uint32_t first = <uint32_t>hash & t.mask
    prefetch(t.buckets + first)
    prefetch(t.flows + first * WAYS + way_for(hash))


# The top bit of each 16-bit lane that may hold `tag`: the lowest one does, others have to be compared.
cdef inline uint64_t lanes_with(uint64_t word, uint64_t tag) noexcept nogil:
    cdef uint64_t ones = (<uint64_t>0x00010001 << 32) | 0x00010001
    word ^= tag * ones
    return (word - ones) & ~word & (ones << 15)
