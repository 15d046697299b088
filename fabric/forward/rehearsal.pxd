from libc.stdint cimport uint8_t, uint32_t, uint64_t
from encap.inner cimport Inner
from encap.transmit cimport Transmitter
from fabric.forward.batch cimport Egress
from fabric.forward.enforcement cimport RuleHits, Rules
from fabric.forward.flow_key cimport FlowKey
from fabric.forward.flows cimport FlowTable
from fabric.forward.ingress cimport Ingress
from fabric.forward.lane cimport Lane, Shared
from fabric.forward.snapshot cimport Generation, PortEntry, Snapshot

cdef class Rehearsal:
    cdef Snapshot snapshot
    cdef FlowTable live          # only read
    cdef FlowTable flows         # ours: what the packet meets of the live one, and what it would have written
    cdef RuleHits hits           # no counters
    cdef Generation generation   # the snapshot's, with what follows in place of what is written
    cdef Rules rules
    cdef PortEntry* ports
    cdef int source              # position of the port it comes by, -1: the underlay
    cdef Shared shared
    cdef Egress* egress
    cdef Ingress* ingress
    cdef Inner inner
    cdef FlowKey key
    cdef bint keyed              # the packet is of a flow
    cdef _copy_generation(self, int back, int on)
    cdef _open_lane(self, Lane* lane, Transmitter* t, int wire, uint32_t sockets4, uint32_t sockets6)
    cdef _meet(self, const uint8_t* packet, uint32_t length)
    cdef _copy_flows(self, const FlowKey* key)
    cdef _copy_place(self, uint32_t index)
    cdef object _found(self, FlowTable table)
    cdef Lane* _lane(self)
