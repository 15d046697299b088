from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    RING_SLOTS = 512             # a power of two
    RING_BYTES = 256             # of each packet
    FROM_PORT = 0                # `direction`: an IP packet a port sent; `position` is the port's
    FROM_PORT_ETHERNET = 1       # the same, a TAP's frame
    FROM_UNDERLAY = 2            # a datagram's payload; `high` and `low` are the outer source

# One refused packet.
cdef struct Refused:
    uint64_t time                # CLOCK_REALTIME, ns
    uint64_t high
    uint64_t low
    uint32_t position
    uint32_t length              # of the whole packet
    uint16_t captured            # bytes in `data`
    uint8_t reason               # DropReason
    uint8_t direction
    uint8_t family               # of the outer source
    uint8_t format               # FORMAT_* of the receiving socket
    uint8_t data[RING_BYTES]

# One writer (a thread of a worker), one reader (the control plane). `head` counts records written, `tail` those read.
cdef struct Ring:
    uint64_t head
    uint64_t lost                # not written because the ring was full
    uint64_t gap[6]
    uint64_t tail
    Refused slots[RING_SLOTS]

# Takes a packet down if there is room; never waits.
cdef void ring_record(Ring* ring, uint8_t direction, int reason, uint32_t position, const uint8_t* data,
                      uint32_t length) noexcept nogil
# The same with where it came from.
cdef void ring_record_from(Ring* ring, int reason, uint8_t family, uint64_t high, uint64_t low, uint8_t form,
                           const uint8_t* data, uint32_t length) noexcept nogil

cdef class DropRing:
    cdef Ring* ring
    cdef object _tuple(self, const Refused* r)
