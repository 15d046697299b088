from libc.stdint cimport uint8_t, uint32_t, uint64_t
from encap.inner cimport Inner
from fabric.forward.flow_track cimport Tracker
from fabric.forward.snapshot cimport Snapshot

cdef class FlowProbe:
    cdef Snapshot snapshot
    cdef Tracker* tracker
    cdef Inner* inners
    cdef uint8_t* bytes
    cdef uint32_t* starts
    cdef uint32_t count
    cdef uint64_t denied_seen
    cdef uint32_t _track(self, bytes packet, uint32_t entry, uint32_t now) except *
    cdef uint64_t _torn(self, uint32_t spread) noexcept nogil
