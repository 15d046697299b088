from libc.stdint cimport uint64_t
from fabric.forward.batch cimport Egress
from fabric.forward.drop_ring cimport DropRing
from fabric.forward.ingress cimport Ingress
from fabric.forward.lane cimport Lane, Shared
from fabric.forward.snapshot cimport Snapshot

cdef class Worker:
    cdef Shared shared
    cdef Egress* egress
    cdef Ingress* ingress
    cdef Snapshot snapshot
    cdef list retired
    cdef DropRing egress_ring    # None: never asked for
    cdef DropRing ingress_ring
    cdef object wakes
    cdef uint64_t denied_seen[2]
    cdef void _open_lane(self, Lane* lane, int wake, object sockets4, object sockets6)
