from libc.stdint cimport uint32_t, uint64_t
from fabric.forward.batch cimport Egress
from fabric.forward.ingress cimport Ingress
from fabric.forward.lane cimport Shared

cdef enum:
    SOCKET_TOKEN = 0x80000000    # event of a receive socket in the egress thread's epoll set

# Egress thread: have the sockets in its epoll set while it serves both directions, and only then.
cdef void follow(Egress* e) noexcept nogil
# Egress thread: how long it may sleep, in milliseconds; -1: for ever.
cdef int patience(Egress* e) noexcept nogil
# Egress thread: after a turn of so many packets of its own.
cdef void weigh(Egress* e, uint64_t packets) noexcept nogil
# Ingress thread: after a turn of so many datagrams; hands its sockets over when both directions have been calm.
cdef void offer(Ingress* s, uint64_t datagrams) noexcept nogil
# Ingress thread: sleep until it is woken; the caller looks whether its sockets are its own again.
cdef void park(Ingress* s) noexcept nogil
cdef void count_calm(Shared* shared, int side, uint64_t packets) noexcept nogil
cdef void wake_thread(Shared* shared, int side) noexcept nogil
