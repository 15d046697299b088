from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from tun.vnet cimport VnetHeader

cdef enum:
    SPLIT_HEADER = 256       # header_length of an opened superframe is never larger

    TCP_FIN = 0x01
    TCP_PSH = 0x08
    TCP_ACK = 0x10
    TCP_ECE = 0x40
    TCP_CWR = 0x80

# A superframe prepared for cutting. Segment i is the header written by split_header(i) followed by the bytes
# frame[header_length + i * gso_size :][: returned length]; the payload is never copied.
cdef struct Superframe:
    const uint8_t* frame
    uint32_t header_length
    uint32_t l4
    uint32_t gso_size
    uint32_t payload_length
    uint32_t segments
    uint8_t family
    uint8_t protocol
    uint16_t ip_id
    uint32_t tcp_seq
    uint8_t tcp_flags
    uint64_t ip_base
    uint64_t l4_base

# 0, or -1 when the frame and its vnet header do not describe a well-formed superframe.
cdef int split_open(Superframe* s, const uint8_t* frame, uint32_t length, const VnetHeader* header) noexcept nogil
# Writes header_length bytes (complete, all checksums final) to out; returns the payload length of segment `index`,
# or 0 without writing when there is no such segment.
cdef uint32_t split_header(const Superframe* s, uint32_t index, uint8_t* out) noexcept nogil

# Used inside this module.
cdef int open_ipv4(Superframe* s, uint32_t length) noexcept nogil
cdef int open_ipv6(Superframe* s, uint32_t length) noexcept nogil
cdef int open_l4(Superframe* s, uint32_t length, const VnetHeader* header) noexcept nogil
cdef void stamp_l4(const Superframe* s, uint32_t index, uint32_t payload, uint8_t* out) noexcept nogil
