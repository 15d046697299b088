from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from encap.inner cimport Inner
from fabric.forward.fragments cimport FragmentNote
from tun.vnet cimport VnetHeader

cdef enum:
    HOLD_SLOTS = 256
    HOLD_SLOT = 2048             # bytes
    HOLD_HEADROOM = 22           # of them in front of an IP packet: its tunnel's headers, those it came with or will get
    HOLD_OF_DATAGRAM = 64        # slots: 65,535 bytes in fragments as small as IPv6's least MTU
    HOLD_OF_SOURCE = 96          # slots of one source address
    HOLD_OWNERS = 256            # ports or VTEPs are counted by their number modulo this
    HOLD_SECONDS = 2             # by a clock of whole seconds: one at least, two at most
    HOLD_MS = 1000               # how long a thread sleeps at most while it holds something

cdef enum HoldState:
    HOLD_FREE = 0
    HOLD_MORE = 1                # belongs to the slot before
    HOLD_WAITING = 2
    HOLD_DUE = 3                 # its first fragment has come
    HOLD_SENT = 4                # forwarded; a queue may still refer to its bytes

# One fragment, of the slots from `first` on.
cdef struct Held:
    FragmentNote note            # of its own expiry; the first fragment's verdict once it is due
    Inner inner
    VnetHeader vnet              # of a port's frame
    uint64_t high                # of a datagram: its outer source
    uint64_t low
    uint32_t age                 # the lowest came first
    uint32_t entry               # by which it came in, as in `flow_track`
    uint32_t prefix              # bytes of tunnel headers in front of the packet that are its own
    uint32_t gso_size
    uint16_t slot                # of the port that its loss is counted for
    uint8_t owner
    uint8_t first
    uint8_t count
    uint8_t outer                # family of the outer source, 0: a frame of a port
    uint8_t form

cdef struct HoldRoom:
    uint64_t salt                # so that nobody can choose what shares a tag
    uint8_t states[HOLD_SLOTS]
    uint32_t tags[HOLD_SLOTS]    # of the datagram, 0: free
    uint32_t sources[HOLD_SLOTS]
    uint32_t owned[HOLD_OWNERS]  # slots by owner
    Held held[HOLD_SLOTS]        # by first slot
    uint8_t bytes[HOLD_SLOTS * HOLD_SLOT]

# One thread's.
cdef struct Hold:
    HoldRoom* room               # NULL until something is held
    uint32_t count               # fragments in it
    uint32_t due                 # of them, those that are to go on now
    uint32_t soonest             # nothing expires before
    uint32_t age
    uint8_t closed               # nothing is ever held
    uint64_t taken               # fragments so far

cdef void hold_close(Hold* h) noexcept nogil
# Whether this later fragment may wait at all: within what its datagram and its source may have.
cdef bint hold_admits(Hold* h, const Inner* inner, uint32_t entry) noexcept nogil
# Room for its bytes, NULL when there is none; the caller fills in what it needs.
cdef Held* hold_take(Hold* h, const Inner* inner, uint32_t entry, uint32_t owner, uint32_t now) noexcept nogil
# Whose place a fragment of `owner` may take: the oldest of the owner that has most, if that one has more; else NULL.
cdef Held* hold_victim(Hold* h, const Inner* inner, uint32_t owner) noexcept nogil
# The first fragment has this verdict: what waits for it is due.
cdef void hold_decide(Hold* h, const Inner* inner, uint32_t entry, uint32_t verdict) noexcept nogil
# The oldest in this state, NULL for none.
cdef Held* hold_oldest(Hold* h, uint8_t state) noexcept nogil
# The oldest that has expired, or NULL.
cdef Held* hold_expired(Hold* h, uint32_t now) noexcept nogil
cdef void hold_sent(Hold* h, Held* held) noexcept nogil
cdef void hold_free(Hold* h, Held* held) noexcept nogil
# Free all that was sent.
cdef void hold_clear(Hold* h) noexcept nogil
# Where the IP packet lies; HOLD_HEADROOM bytes in front of it are its own.
cdef uint8_t* hold_packet(Hold* h, const Held* held) noexcept nogil
