# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""RST segments that end a TCP connection at both ends, made from one packet of it that did not get through.

Theory of operation. Nothing is known of a connection's sequence numbers but what the packet says, and an RST counts
only with the number that its receiver expects next (RFC 5961 section 3.2).

- To the sender: what a host without the connection answers (RFC 9293 section 3.10.7.1). The packet's acknowledgment is
  the number that its sender expects. A packet without one opens a connection: it is acknowledged, so that SYN-SENT
  takes the RST. An RST is never answered by one.
- To the receiver: the packet's own number is what the receiver expects, if all before it has arrived; a SYN has taken
  one of its own. The packet's acknowledgment goes along, which SYN-SENT asks for (RFC 9293 section 3.10.7.3).

Limits: where the packet was not the next in order, or acknowledged less than its sender has meanwhile got, the end
answers by a challenge ACK or not at all, and the next packet has to do. Connections that sign their segments (TCP-AO,
MD5) take no RST that we could make.
"""

import cython
from cython.cimports.encap.bytes import load32, store16, store32
from cython.cimports.encap.checksum import fold, header_sum
from cython.cimports.encap.inner import IPPROTO_TCP
from cython.cimports.fabric.forward.flow_state import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN
from cython.cimports.fabric.forward.icmp import answerable
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset


def build_reset(out, packet, inner, back):
    """IP header without options, TCP header without options."""
    tcp: cython.pointer(cython.const[uint8_t]) = packet + inner.l4
    size: uint32_t = 4 if inner.family == 4 else 16
    header: uint32_t = 20 if inner.family == 4 else 40
    ends: cython.pointer(uint8_t) = out + header - 2 * size
    given: cython.pointer(cython.const[uint8_t]) = packet + header - 2 * size
    total: uint64_t
    if inner.protocol != IPPROTO_TCP or (back and tcp[13] & TCP_RST) or not answerable(packet, inner):
        return 0
    memset(out, 0, RESET_BUFFER)
    if back:
        memcpy(ends, given + size, size)
        memcpy(ends + size, given, size)
        write_back(out + header, tcp, inner.length - inner.l4)
    else:
        memcpy(ends, given, 2 * size)
        write_on(out + header, tcp)
    total = header_sum(ends, 2 * size) + IPPROTO_TCP + 20 + header_sum(out + header, 20)
    store16(out + header + 16, fold(total) ^ 0xFFFF)
    if inner.family == 4:
        out[0] = 0x45
        store16(out + 2, 40)
        out[6] = 0x40
        out[8] = 64
        out[9] = IPPROTO_TCP
        store16(out + 10, fold(header_sum(out, 20)) ^ 0xFFFF)
    else:
        out[0] = 0x60
        store16(out + 4, 20)
        out[6] = IPPROTO_TCP
        out[7] = 64
    return header + 20


def write_back(segment, tcp, length):
    """To the sender; the segment is zero so far, its checksum is the caller's."""
    memcpy(segment, tcp + 2, 2)
    memcpy(segment + 2, tcp, 2)
    segment[12] = 0x50
    segment[13] = TCP_RST
    if tcp[13] & TCP_ACK:
        memcpy(segment + 4, tcp + 8, 4)
    else:
        segment[13] = TCP_RST | TCP_ACK
        store32(segment + 8, load32(tcp + 4) + segment_length(tcp, length))


def write_on(segment, tcp):
    """To the receiver."""
    memcpy(segment, tcp, 4)
    store32(segment + 4, load32(tcp + 4) + (1 if tcp[13] & TCP_SYN else 0))
    segment[12] = 0x50
    segment[13] = TCP_RST
    if tcp[13] & TCP_ACK:
        segment[13] = TCP_RST | TCP_ACK
        memcpy(segment + 8, tcp + 8, 4)


def segment_length(tcp, bytes):
    """SEG.LEN of RFC 9293: payload, and one each for SYN and FIN."""
    header: uint32_t = cython.cast(uint32_t, tcp[12] >> 4) * 4
    length: uint32_t = bytes - header if bytes > header else 0
    return length + (1 if tcp[13] & TCP_SYN else 0) + (1 if tcp[13] & TCP_FIN else 0)
