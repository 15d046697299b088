from libc.stdint cimport uint32_t
from encap.inner cimport Inner
from fabric.forward.batch cimport Egress, Frame
from fabric.forward.hold cimport Held
from fabric.forward.ingress cimport Arrival, Ingress
from fabric.forward.lane cimport Lane
from fabric.forward.snapshot cimport Generation

cdef enum:
    ALL_EXPIRED = 0xFFFFFFFF     # as `now` of `lose_expired`

# Keep a later fragment that policy cannot judge yet; False when it is to be dropped, which is then noted as a denial.
cdef bint hold_frame(Egress* e, const Generation* g, uint32_t position, const Frame* frame) noexcept nogil
cdef bint hold_datagram(Ingress* s, const Generation* g, const Arrival* a) noexcept nogil
# Forward what is due: the first fragments have just come by the port at `position`, or from the underlay.
cdef void release_frames(Egress* e, const Generation* g, uint32_t position) noexcept nogil
cdef void release_datagrams(Ingress* s, const Generation* g) noexcept nogil
# Drop what has waited too long. `g` NULL: not shown to captures.
cdef void lose_expired(Lane* lane, const Generation* g, uint32_t now) noexcept nogil
cdef void lose(Lane* lane, const Generation* g, Held* held) noexcept nogil
cdef Held* make_room(Lane* lane, const Generation* g, const Inner* inner, uint32_t entry, uint32_t owner) noexcept nogil
