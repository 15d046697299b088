from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    VNET_HEADER_SIZE = 10

    VNET_NEEDS_CSUM = 1
    VNET_DATA_VALID = 2

    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80

    # What a port accepts on write (bits of `features`, see tun.offload.Features).
    FEATURE_CSUM = 1
    FEATURE_TSO = 2
    FEATURE_USO = 4

cdef packed struct VnetHeader:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset
