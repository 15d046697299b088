from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from encap.inner cimport IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, WHOLE, Inner
from fabric.forward.denials cimport Denials
from fabric.forward.flow_key cimport FlowKey, flow_hash, flow_key
from fabric.forward.flow_state cimport TCP_FIN, TCP_RST, TCP_SYN
from fabric.forward.flow_table cimport Bucket, Flow, FlowRest, Found, look_ahead
from fabric.forward.flow_write cimport Insertion
from fabric.forward.fragments cimport Fragments
from fabric.forward.hold cimport Hold
from fabric.forward.icmp cimport IcmpLimiter
from fabric.forward.kernel cimport RELAXED, atomic_load
from fabric.forward.snapshot cimport Generation
from fabric.policy.judge cimport Answer, Question

cdef enum:
    SWEEP = 4                    # buckets per batch

# A packet's verdict: a way, and above REFUSED_SHIFT the DropReason by which policy refuses it on that way.
cdef enum:
    FOLLOW_ROUTE = 0
    BY_NODE_PORT = 1             # a reply of a flow that entered by the node port
    ANSWER = 2                   # refused, and the ends of its flow are to be told (`cut`)
    REFUSED_SHIFT = 2

# The last packet's flow and verdict: a run of one flow is looked up once a second.
cdef struct FlowMemo:
    const Bucket* bucket
    uint64_t sequence
    uint64_t number              # of the generation
    uint64_t src_high
    uint64_t src_low
    uint64_t dst_high
    uint64_t dst_low
    uint32_t now
    uint32_t entry
    uint32_t verdict
    uint16_t sport
    uint16_t dport
    uint8_t protocol

# One thread's side of the flow table.
cdef struct Tracker:
    uint32_t now                 # seconds, monotonic, of this batch
    FlowMemo memo
    Hold hold
    Fragments fragments
    Denials denials
    IcmpLimiter limiter          # of answers to packets of cut flows, by their accounts

cdef void track_batch(Tracker* k, const Generation* g) noexcept nogil
cdef uint32_t track_flow(Tracker* k, const Generation* g, const Inner* inner, const uint8_t* packet,
                         uint32_t entry, uint64_t hash) noexcept nogil
cdef uint32_t track_fragment(Tracker* k, const Generation* g, const Inner* inner, uint32_t entry) noexcept nogil
# Note that a later fragment is refused without a verdict on its flow.
cdef void deny(Tracker* k, const Inner* inner, uint8_t reason) noexcept nogil
cdef uint32_t track_icmp(Tracker* k, const Generation* g, const Inner* inner, const uint8_t* packet,
                         uint32_t entry) noexcept nogil
cdef uint32_t track_error(Tracker* k, const Generation* g, const Inner* inner, const uint8_t* packet,
                          uint32_t entry) noexcept nogil
cdef uint32_t follow(Tracker* k, const Generation* g, const Inner* inner, const uint8_t* packet, uint32_t flags,
                     uint32_t entry, uint64_t hash) noexcept nogil
# Ask policy and keep account of its answer: PASS or the DropReason.
cdef uint8_t refuse(Tracker* k, const Generation* g, const Question* q, uint32_t entry, Answer* a) noexcept nogil
cdef uint8_t refuse_packet(Tracker* k, const Generation* g, const Inner* inner, const uint8_t* packet,
                           uint32_t entry) noexcept nogil
cdef bint may_pass_error(const Generation* g, const Inner* inner, const Flow* flow, uint32_t side) noexcept nogil
cdef Insertion admit_flow(Tracker* k, const Generation* g, const Inner* inner, const uint8_t* packet,
                          const FlowKey* key, uint32_t side, uint32_t flags, uint32_t entry, uint64_t hash,
                          Found* found, uint8_t* refused) noexcept nogil
cdef bint advance(Flow* flow, uint32_t side, uint32_t flags, uint32_t entry, uint32_t now) noexcept nogil
cdef uint32_t way_of(const Flow* flow, uint32_t side, uint32_t entry) noexcept nogil
cdef void remember(Tracker* k, const Generation* g, const Inner* inner, uint32_t entry, const Found* found,
                   uint32_t verdict) noexcept nogil
cdef uint32_t account_of(const Generation* g, const Inner* inner, uint32_t entry) noexcept nogil
cdef uint32_t local_account(const Generation* g, uint8_t family, uint64_t high, uint64_t low) noexcept nogil


# Some packets ahead: work out the hash of the packet's flow and have its record loaded meanwhile. 0 where nothing is
# worked out: for one more packet of the last flow, and for what has no flow of its own (see track_flow).
cdef inline uint64_t foresee(const Tracker* k, const Generation* g, const Inner* inner,
                             const uint8_t* packet) noexcept nogil:
    cdef const FlowMemo* m = &k.memo
    cdef FlowKey key
    cdef uint64_t hash
    if (g.flows == NULL or inner.fragment != WHOLE or inner.protocol == IPPROTO_ICMP
            or inner.protocol == IPPROTO_ICMPV6):
        return 0
    if (m.src_low == inner.src_low and m.dst_low == inner.dst_low and m.sport == inner.sport
            and m.dport == inner.dport):
        return 0
    flow_key(inner, packet, &key)
    hash = flow_hash(&key, &g.flows.secret[0])
    look_ahead(g.flows, hash)
    return hash


# Verdict on a packet that came in by `entry`: the account of a pod port, NODE_ENTRY or UNDERLAY_ENTRY. `hash` is that
# of `foresee`, or 0.
cdef inline uint32_t track(Tracker* k, const Generation* g, const Inner* inner, const uint8_t* packet,
                           uint32_t entry, uint64_t hash) noexcept nogil:
    cdef const FlowMemo* m = &k.memo
    if (m.src_low == inner.src_low and m.dst_low == inner.dst_low and m.sport == inner.sport
            and m.dport == inner.dport and m.protocol == inner.protocol and m.entry == entry and m.now == k.now
            and m.number == g.number and m.src_high == inner.src_high and m.dst_high == inner.dst_high
            and inner.fragment == WHOLE and atomic_load(&m.bucket.sequence, RELAXED) == m.sequence
            and not (inner.protocol == IPPROTO_TCP and packet[inner.l4 + 13] & (TCP_FIN | TCP_SYN | TCP_RST))):
        return m.verdict
    return track_flow(k, g, inner, packet, entry, hash)
