from libc.stdint cimport uint8_t, uint32_t, uint64_t
from encap.inner cimport Inner

cdef enum:
    FRAGMENT_SETS = 64
    FRAGMENT_WAYS = 4
    FRAGMENT_SECONDS = 30        # ip_frag_time of Linux
    UNMATCHED = 0x100

# What became of the first fragment of a packet.
cdef struct FragmentNote:
    uint64_t src_high
    uint64_t src_low
    uint64_t dst_high
    uint64_t dst_low
    uint32_t id
    uint32_t expires             # seconds, monotonic; 0 = free
    uint32_t rules               # number of the rules under which it was judged
    uint8_t family
    uint8_t protocol             # IPv4 only: in IPv6 it may differ between fragments
    uint8_t verdict

cdef struct Fragments:
    FragmentNote notes[FRAGMENT_SETS * FRAGMENT_WAYS]
    uint64_t unmatched           # later fragments whose first one was not seen

cdef bint is_of(const FragmentNote* note, const Inner* inner) noexcept nogil
cdef void note_packet(FragmentNote* note, const Inner* inner) noexcept nogil
cdef void fragment_note(Fragments* f, const Inner* inner, uint32_t verdict, uint32_t rules, uint32_t now) noexcept nogil
# Verdict of the first fragment under these rules, UNMATCHED when it was not seen.
cdef uint32_t fragment_verdict(Fragments* f, const Inner* inner, uint32_t rules, uint32_t now) noexcept nogil
