from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    TCP_FIN = 1
    TCP_SYN = 2
    TCP_RST = 4
    TCP_ACK = 16

# What may be evicted for what: the lower goes first, ANSWERED only for flows of the same account, ESTABLISHED never.
cdef enum FlowClass:
    FREE = 0
    CLOSING = 1
    EMBRYONIC = 2
    ANSWERED = 3                 # not TCP, seen in both directions: nothing says that it goes on
    ESTABLISHED = 4

cdef enum FlowState:
    UNREPLIED = 0                # not TCP: seen in one direction
    REPLIED = 1                  # not TCP: in both
    SYN_SENT = 2
    SYN_RECEIVED = 3
    TCP_ESTABLISHED = 4
    PICKED_UP = 5                # TCP met in the middle, in one direction so far
    FIN_ORIGIN = 6               # one side has closed
    FIN_REPLY = 7
    FIN_BOTH = 8
    RESET = 9
    DENIED = 10                  # was established, and a later policy does not allow it
    DENIED_EARLY = 11            # the same before it was
    STATES = 12

# Bits of a flow's `standing`. Above them, two bits for each side: in how many more seconds its packets are answered.
cdef enum Standing:
    KEPT = 1                     # a policy refuses it, and lets what was established go on
    CUT = 2                      # a policy refuses it
    TOLD = 4                     # ... and lets its ends know
    OWED_SHIFT = 4
    OWED = 0xF0
    OWED_SECONDS = 3             # ... at most

cdef uint8_t first_state(uint8_t protocol, uint32_t flags) noexcept nogil
# After a packet with these TCP flags from the side that began (or, with `reply`, from the other).
cdef uint8_t next_state(uint8_t state, uint32_t flags, bint reply) noexcept nogil
cdef uint8_t class_of(uint8_t state) noexcept nogil
cdef uint8_t denied_state(uint8_t state) noexcept nogil
# Whether a SYN begins another connection of the same ends.
cdef bint gives_way(uint8_t state) noexcept nogil
# Seconds without a packet after which the flow is gone.
cdef uint32_t timeout_of(uint8_t state, uint8_t protocol) noexcept nogil


# Whether no packet without SYN, FIN or RST can change the state any more. UNREPLIED counts: its own side cannot change
# it, and the other side's packet is another direction.
cdef inline bint is_settled(uint8_t state) noexcept nogil:
    return state <= REPLIED or state == TCP_ESTABLISHED or state >= FIN_ORIGIN
