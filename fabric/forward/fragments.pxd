from libc.stdint cimport uint8_t, uint32_t, uint64_t
from encap.inner cimport Inner

cdef enum:
    FRAGMENT_SETS = 64
    FRAGMENT_WAYS = 4
    FRAGMENT_SECONDS = 30        # ip_frag_time of Linux

# What became of the first fragment of a packet.
cdef struct FragmentNote:
    uint64_t src_high
    uint64_t src_low
    uint64_t dst_high
    uint64_t dst_low
    uint32_t id
    uint32_t expires             # seconds, monotonic; 0 = free
    uint8_t family
    uint8_t protocol             # IPv4 only: in IPv6 it may differ between fragments
    uint8_t verdict

cdef struct Fragments:
    FragmentNote notes[FRAGMENT_SETS * FRAGMENT_WAYS]
    uint64_t unmatched           # later fragments whose first one was not seen

cdef void fragment_note(Fragments* f, const Inner* inner, uint32_t verdict, uint32_t now) noexcept nogil
# Verdict of the first fragment, 0 when it was not seen.
cdef uint32_t fragment_verdict(Fragments* f, const Inner* inner, uint32_t now) noexcept nogil
