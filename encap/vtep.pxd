from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    NO_VTEP = 0xFFFFFFFF
    FORMAT_VXLAN = 0
    FORMAT_UDP = 1
    FORMAT_NONE = 2              # not sent to by us, only accepted from
    SOCKADDR_SIZE = 28
    PEER_SLOTS = 8192            # VTEPs that are counted one by one; slot 0 is all others'

# One remote VTEP as the hot path needs it.
cdef struct Vtep:
    uint8_t format               # FORMAT_VXLAN, FORMAT_UDP (flannel's headerless format) or FORMAT_NONE
    uint8_t family               # of the underlay: 4 or 6
    uint16_t mtu                 # largest inner IP packet
    uint16_t address_length      # of the socket address
    uint16_t slot                # where it is counted (Carried), the same for as long as it is a peer
    uint8_t address[SOCKADDR_SIZE]   # struct sockaddr_in or sockaddr_in6, port included
    uint8_t header[22]           # VXLAN and inner Ethernet header, ready to copy
    uint8_t mac[6]               # the only inner source accepted, unless `any_mac`
    uint8_t own_mac[6]           # ours on this underlay family: the only inner destination accepted
    uint8_t accepts              # bit 1 << FORMAT_*: what is taken from it
    uint8_t any_mac
    uint64_t high                # underlay address: IPv4 in low, high = 0
    uint64_t low

# What one thread has carried to or from one VTEP: inner packets, a superframe's segments one by one, and their bytes.
cdef struct Carried:
    uint64_t packets
    uint64_t bytes

cdef struct VtepArray:
    uint32_t count               # places in vteps; the free ones among them are zero and not in the index
    uint32_t mask                # of the hash index, size - 1
    Vtep* vteps
    uint32_t* index              # slot -> position in vteps or NO_VTEP

# Position of the VTEP with this underlay socket address, or NO_VTEP.
cdef uint32_t find_vtep(const VtepArray* table, uint8_t family, uint64_t high, uint64_t low) noexcept nogil
cdef uint32_t slot_of(uint64_t high, uint64_t low, uint32_t mask) noexcept nogil

cdef class VtepTable:
    cdef VtepArray table
    cdef list names              # by position; None at a free one
    cdef _room(self, uint32_t count, uint32_t size)
    cdef _copy(self, VtepTable old, uint32_t count)
    cdef _place(self, uint32_t position, tuple row)
    cdef _index(self, uint32_t position)
    cdef _free(self, uint32_t position)
