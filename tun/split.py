# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""GSO split: cut a TCP or UDP superframe read from a port into the packets that go on the wire.

Theory of operation. `split_open` checks the frame against its virtio-net header once and sums every header word that is
equal in all segments. `split_header` then copies the header, changes what differs and sums only the payload:

| field | TCP | UDP |
| --- | --- | --- |
| IPv4 total length, IPv6 payload length | per segment | per segment |
| IPv4 identification | seed + index | seed + index |
| sequence number | seed + index * gso_size | - |
| FIN, PSH | last segment only | - |
| CWR | first segment only (RFC 3168 section 6.1.2; Linux SKB_GSO_TCP_ECN) | - |
| UDP length | - | 8 + payload |
| IPv4 header checksum, transport checksum | computed | computed, 0 becomes 0xFFFF (RFC 768) |

Limits. IPv4 with options; IPv6 with hop-by-hop, routing and destination headers in front of the transport header; at
most SPLIT_HEADER (256) header bytes. Never fragments. The header length is computed from csum_start and the transport
header, because the kernel's hdr_len is the linear length of its buffer. The IPv4 header checksum and the UDP length of
the superframe are not read. The transport checksum field is read only behind an IPv6 routing header, where the
destination that counts is not in the fixed header (RFC 8200 section 8.1).
"""

import cython
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.tun.checksum import fold, payload_sum, pseudo_sum
from cython.cimports.tun.vnet import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VNET_NEEDS_CSUM, VnetHeader
from cython.cimports.tun.wire import load16, load32, store16

from tun.vnet import VnetHeader as Header


def open_ipv4(s, length):
    """IPv4 part of split_open: header words that do not change, and the pseudo-header addresses."""
    frame = s.frame
    if s.l4 < 20 or s.l4 != cython.cast(uint32_t, frame[0] & 0x0F) * 4 or s.l4 > length:
        return -1
    if load16(frame + 2) != length or load16(frame + 6) & 0x3FFF or frame[9] != s.protocol:
        return -1
    s.ip_id = load16(frame + 4)
    s.ip_base = payload_sum(frame, s.l4) + (load16(frame + 2) ^ 0xFFFF) + (s.ip_id ^ 0xFFFF)
    s.ip_base += load16(frame + 10) ^ 0xFFFF
    s.l4_base = pseudo_sum(frame, s.protocol, 0)
    return 0


def open_ipv6(s, length):
    """IPv6 part of split_open: the chain of headers has to end exactly at the transport header."""
    frame = s.frame
    next_header: uint32_t = 0
    offset: uint32_t = 40
    routed: cython.bint = False
    if length < 40 or s.l4 > length or load16(frame + 4) + 40 != length:
        return -1
    next_header = frame[6]
    while offset < s.l4:
        if (next_header != 0 and next_header != 43 and next_header != 60) or offset + 8 > s.l4:
            return -1
        routed = routed or next_header == 43
        next_header = frame[offset]
        offset += (cython.cast(uint32_t, frame[offset + 1]) + 1) * 8
    if offset != s.l4 or next_header != s.protocol:
        return -1
    s.l4_base = pseudo_sum(frame, s.protocol, 0)
    if routed:
        offset = s.l4 + (16 if s.protocol == 6 else 6)
        if offset + 2 > length:
            return -1
        s.l4_base = load16(frame + offset) + (cython.cast(uint32_t, fold(length - s.l4)) ^ 0xFFFF)
    return 0


def open_l4(s, length, header):
    """Transport part of split_open: header length, and the sum of its words that do not change."""
    l4 = s.frame + s.l4
    if s.protocol == 17:
        if header.csum_offset != 6 or s.l4 + 8 >= length:
            return -1
        s.header_length = s.l4 + 8
        s.l4_base += payload_sum(l4, 4)
        return 0
    if header.csum_offset != 16 or s.l4 + 20 > length:
        return -1
    s.header_length = s.l4 + (l4[12] >> 4) * 4
    if s.header_length < s.l4 + 20 or s.header_length >= length:
        return -1
    s.tcp_seq = load32(l4 + 4)
    s.tcp_flags = l4[13]
    s.l4_base += payload_sum(l4, 4) + payload_sum(l4 + 8, 4) + (cython.cast(uint32_t, l4[12]) << 8)
    s.l4_base += load16(l4 + 14) + payload_sum(l4 + 18, s.header_length - s.l4 - 18)
    return 0


def split_open(s, frame, length, header):
    """Check a superframe of `length` bytes and prepare `s`; 0, or -1 when it is malformed (see the limits above).

    `frame` has to stay unchanged as long as `s` is used.
    """
    kind: uint32_t = header.gso_type & ~GSO_ECN
    s.frame = frame
    s.l4 = header.csum_start
    s.gso_size = header.gso_size
    if not header.flags & VNET_NEEDS_CSUM or s.gso_size == 0 or length < 28 or length > 65535:
        return -1
    s.family = frame[0] >> 4
    if kind == GSO_UDP_L4 and not header.gso_type & GSO_ECN:
        s.protocol = 17
    elif (kind == GSO_TCPV4 and s.family == 4) or (kind == GSO_TCPV6 and s.family == 6):
        s.protocol = 6
    else:
        return -1
    if s.family == 4:
        if open_ipv4(s, length) < 0:
            return -1
    elif s.family != 6 or open_ipv6(s, length) < 0:
        return -1
    if open_l4(s, length, header) < 0 or s.header_length > SPLIT_HEADER:
        return -1
    s.payload_length = length - s.header_length
    s.segments = (s.payload_length + s.gso_size - 1) // s.gso_size
    return 0


def stamp_l4(s, index, payload, out):
    """Transport fields and checksum of one segment; `out` is its whole header."""
    l4 = out + s.l4
    length: uint32_t = s.header_length - s.l4 + payload
    seq: uint32_t = s.tcp_seq + index * s.gso_size
    flags: uint32_t = s.tcp_flags
    total: uint64_t = s.l4_base + length + payload_sum(s.frame + s.header_length + index * s.gso_size, payload)
    check: uint32_t = 0
    if s.protocol == 17:
        store16(l4 + 4, length)
        check = fold(total + length) ^ 0xFFFF
        store16(l4 + 6, check if check else 0xFFFF)
        return
    if index:
        flags &= ~TCP_CWR
    if index + 1 < s.segments:
        flags &= ~(TCP_FIN | TCP_PSH)
    store16(l4 + 4, seq >> 16)
    store16(l4 + 6, seq)
    l4[13] = flags
    store16(l4 + 16, fold(total + (seq >> 16) + (seq & 0xFFFF) + flags) ^ 0xFFFF)


def split_header(s, index, out):
    """Write the header (header_length bytes) of segment `index` to `out`; its payload length or 0 past the end."""
    payload: uint32_t = s.gso_size
    length: uint32_t = 0
    ip_id: uint32_t = 0
    if index >= s.segments:
        return 0
    if index + 1 == s.segments:
        payload = s.payload_length - index * s.gso_size
    length = s.header_length + payload
    memcpy(out, s.frame, s.header_length)
    if s.family == 4:
        ip_id = cython.cast(uint16_t, s.ip_id + index)
        store16(out + 2, length)
        store16(out + 4, ip_id)
        store16(out + 10, fold(s.ip_base + length + ip_id) ^ 0xFFFF)
    else:
        store16(out + 4, length - 40)
    stamp_l4(s, index, payload, out)
    return payload


@cython.cfunc
def open_frame(s: cython.pointer(Superframe), frame: bytes, header: Header):
    """split_open for the Python entry points; `frame` has to outlive `s`."""
    raw: VnetHeader
    wire: bytes = Header(*header).emit()
    memcpy(cython.address(raw), cython.cast(cython.p_uchar, wire), 10)
    data = cython.declare(cython.p_uchar, frame)
    if len(frame) > 65535 or split_open(s, data, cython.cast(uint32_t, len(frame)), cython.address(raw)) < 0:
        raise ValueError(f"{len(frame)} bytes with {header} are not a well-formed superframe")


def headers(frame: bytes, header: Header) -> bytes:
    """Headers of all segments of one superframe side by side, each as long as the superframe's own header.

    For callers that gather the payload from `frame` themselves. Arguments and errors as for `split`.
    """
    s: Superframe
    index: uint32_t = 0
    open_frame(cython.address(s), frame, header)
    out = bytearray(s.segments * s.header_length)
    view: cython.uchar[::1] = out
    for index in range(s.segments):
        split_header(cython.address(s), index, cython.address(view[index * s.header_length]))
    return bytes(out)


def split(frame: bytes, header: Header) -> list[bytes]:
    """Cut one superframe (IP header on, no virtio-net header) into complete packets, all checksums final.

    `header` is what the kernel put before the frame: `gso_type`, `gso_size`, `csum_start`, `csum_offset` and
    NEEDS_CSUM in `flags` count. Raises ValueError when the two do not describe a well-formed superframe.
    """
    s: Superframe
    out = cython.declare(cython.uchar[SPLIT_HEADER])
    index: uint32_t = 0
    start: uint32_t = 0
    length: uint32_t = 0
    open_frame(cython.address(s), frame, header)
    packets = []
    for index in range(s.segments):
        length = split_header(cython.address(s), index, out)
        start = s.header_length + index * s.gso_size
        packets.append(out[: s.header_length] + frame[start : start + length])
    return packets
