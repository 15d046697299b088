from libc.stdint cimport uint8_t, uint32_t
from fabric.forward.flow_table cimport Flow, FlowRest
from fabric.forward.flow_track cimport Tracker
from fabric.forward.snapshot cimport Generation
from fabric.policy.judge cimport Answer, Question

# Judge a flow under rules that are newer than its verdict.
cdef void judge_again(Tracker* k, const Generation* g, Flow* flow, FlowRest* rest) noexcept nogil
# Write down in the flow what the answer means for it: PASS, or the reason for which it is cut.
cdef uint8_t settle(Flow* flow, uint8_t reason, const Answer* a) noexcept nogil
cdef bint goes_on(const Flow* flow, uint8_t reason, const Answer* a) noexcept nogil
# Verdict on a packet of `side` of a flow that is cut.
cdef uint32_t cut_verdict(Tracker* k, const Flow* flow, uint32_t side, uint32_t way) noexcept nogil
cdef void pass_second(Flow* flow, uint32_t side) noexcept nogil
# Keep account of an answer of policy.
cdef void record(Tracker* k, const Generation* g, const Question* q, uint8_t reason, const Answer* a) noexcept nogil
cdef void set_rules(FlowRest* rest, const Answer* a) noexcept nogil
