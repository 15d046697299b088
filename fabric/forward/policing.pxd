from libc.stdint cimport uint8_t, uint32_t, uint64_t
from encap.inner cimport Inner
from fabric.forward.flow_table cimport Flow
from fabric.forward.snapshot cimport Generation
from fabric.policy.judge cimport Answer, Question

cdef void ask(const Inner* inner, const uint8_t* packet, Question* q) noexcept nogil
cdef void ask_fragment(const Inner* inner, Question* q) noexcept nogil
# The question that the first packet of a flow was.
cdef void ask_again(const Flow* flow, Question* q) noexcept nogil
# PASS, or the DropReason by which a flow that came in by `entry` may not begin; `a` has the rules that decided.
cdef uint8_t police(const Generation* g, const Question* q, uint32_t entry, Answer* a) noexcept nogil
# The same for a later fragment of which nothing more is known.
cdef uint8_t police_fragment(const Generation* g, const Inner* inner, uint32_t entry) noexcept nogil
# Whether this address may send ICMP errors about a flow: the flow's other end, and whoever is no pod.
cdef bint may_report(const Generation* g, const Flow* flow, uint32_t side, const Inner* inner) noexcept nogil
cdef uint8_t gate(const Generation* g, const Question* q, uint32_t entry, bint* settled) noexcept nogil
cdef bint is_own(const Generation* g, uint8_t family, uint64_t high, uint64_t low) noexcept nogil
cdef uint32_t route_to(const Generation* g, uint8_t family, uint64_t high, uint64_t low) noexcept nogil
