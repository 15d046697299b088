from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from routes.fib cimport FibTable

cdef enum:
    NO_RULE = 0xFFFFFFFF
    INGRESS = 0
    EGRESS = 1
    DENY = 0
    ALLOW = 1
    PASS = 2

# What becomes of an established flow that is refused: fabric.policy.rules.Established.
cdef enum:
    RE_EVALUATE = 0
    KEEP = 1
    RESET = 2

# A flow's first packet, as encap.inner.Inner has it: host order, IPv4 addresses in *_low.
cdef struct Question:
    uint8_t family
    uint8_t protocol
    uint8_t icmp_type
    uint8_t icmp_code
    uint16_t sport
    uint16_t dport        # 0 where the protocol has none
    uint64_t src_high
    uint64_t src_low
    uint64_t dst_high
    uint64_t dst_low
    uint8_t live          # of an established flow: a refusal that lets it go on is not the last word

cdef struct Answer:
    uint8_t allowed
    uint8_t established   # of a refused one: the choice of who refuses it
    uint8_t asked         # the rules were asked; `policing` settles some flows before
    uint32_t egress_rule  # numbers for hit counters, NO_RULE where no rule decided
    uint32_t ingress_rule

cdef struct PolicyStep:
    uint32_t action
    uint32_t rule
    uint32_t sources_at   # first of its ranges of source ports
    uint32_t sources_count  # 0: every source port
    uint32_t established

# One tier for one kind of endpoint: for each address set of its rules, intervals of traffic keys with candidate steps.
cdef struct PolicyStage:
    const uint32_t* sets         # ascending
    const uint32_t* first        # set i has the intervals first[i] .. first[i + 1] - 1
    uint32_t set_count
    const uint32_t* keys         # interval j begins at keys[j]; the first of a set at 0
    const uint32_t* candidates_at  # interval j has candidates[candidates_at[j] .. candidates_at[j + 1] - 1]
    const uint32_t* candidates   # steps, ascending
    const PolicyStep* steps
    const uint32_t* sources      # pairs (first, last)
    uint32_t default_action
    uint32_t default_rule
    uint32_t default_established

# What is known of an address. All members are uint32_t: the compiler writes them as one array.
cdef struct PolicyEntry:
    uint32_t sets_at
    uint32_t sets_count
    uint32_t stages_at[2]
    uint32_t stages_count[2]
    uint32_t owner               # number of the pod, 0: none
    uint32_t node                # number of the node: of the pod, or whose address it is; 0: unknown
    uint32_t is_node
    uint32_t local               # it is that of a pod whose own rules were compiled, if any select it

cdef struct PolicyTables:
    FibTable addresses           # intervals of all addresses; value: position in entries
    FibTable points              # single addresses, each with its position; looked at first
    const PolicyEntry* entries
    const uint32_t* sets         # of all entries, ascending within each
    const PolicyStage** stages

cdef void judge(const PolicyTables* t, const Question* q, Answer* a) noexcept nogil
cdef const PolicyEntry* find_entry(const PolicyTables* t, uint8_t family, uint64_t high, uint64_t low) noexcept nogil
cdef uint32_t point4(const FibTable* points, uint32_t address) noexcept nogil
cdef uint32_t point6(const FibTable* points, uint64_t high, uint64_t low) noexcept nogil
cdef fill(FibTable* table, tuple arrays)
cdef uint32_t traffic_key(const Question* q) noexcept nogil
cdef bint decide(const PolicyTables* t, const PolicyEntry* own, int direction, const PolicyEntry* other,
                 const Question* q, uint32_t* rule, uint8_t* established) noexcept nogil
cdef uint32_t first_match(const PolicyStage* stage, const uint32_t* sets, uint32_t count, uint32_t key, uint16_t sport) noexcept nogil
cdef uint32_t find_set(const uint32_t* sets, uint32_t count, uint32_t wanted) noexcept nogil
cdef uint32_t match_in_set(const PolicyStage* stage, uint32_t position, uint32_t key, uint16_t sport, uint32_t best) noexcept nogil
cdef bint source_matches(const PolicyStage* stage, const PolicyStep* step, uint16_t sport) noexcept nogil
cdef const uint32_t* words(bytes data)
cdef object number_of(uint32_t rule)

cdef class Stage:
    cdef PolicyStage table
    cdef readonly object label
    cdef readonly tuple arrays

cdef class PolicySnapshot:
    cdef PolicyTables tables
    cdef readonly uint64_t number
    cdef readonly list stages
    cdef readonly object names
    cdef tuple arrays
    cdef Question ask(self, src, dst, protocol, dport, sport, icmp) except *
