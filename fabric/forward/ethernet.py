# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""TAP ports: pods that need Ethernet get a wire with one neighbour, the gateway.

Theory of operation. A frame counts only from the pod's own MAC and to the gateway's; the IP packet behind its header
then goes the way of any other. ARP requests and neighbour solicitations of the pod are answered here, for whatever
address it asks (but its own), with the gateway's MAC (RFC 826, RFC 4861 section 7.2.4): nothing is learned, flooded
or passed on. Frames to the pod carry both MACs as the table has them. Offsets of the virtio-net header count from the
start of the frame, so the Ethernet header's 14 bytes are taken off and put on.

Limits: no VLAN tags, no other neighbours, no other Ethernet types; packets from the underlay are written one by one,
joined only where they came joined.
"""

import cython
from cython.cimports.encap.bytes import load16, load32, load64, store16
from cython.cimports.encap.checksum import fold, header_sum
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, WHOLE, Inner
from cython.cimports.fabric.forward.lane import Lane, drop, write_frame, write_port
from cython.cimports.fabric.forward.snapshot import LINK_HEADER, PortEntry
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcmp, memcpy, memset
from cython.cimports.tun.checksum import (
    CHECKSUM_GOOD,
    CHECKSUM_NONE,
    CHECKSUM_PARTIAL,
    Verdict,
    complete,
    pseudo_sum,
    verify,
)
from cython.cimports.tun.split import Superframe, split_header, split_open
from cython.cimports.tun.vnet import (
    FEATURE_CSUM,
    FEATURE_TSO,
    FEATURE_USO,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    VNET_HEADER_SIZE,
    VNET_NEEDS_CSUM,
    VnetHeader,
)

ARP = cython.declare(uint32_t, 0x0806)
IPV4 = cython.declare(uint32_t, 0x0800)
IPV6 = cython.declare(uint32_t, 0x86DD)
SOLICITATION = cython.declare(uint8_t, 135)
ADVERTISEMENT = cython.declare(uint8_t, 136)


def unwrap(e, port, frame, length, vnet):
    """Check the Ethernet header and answer the pod's questions about neighbours."""
    kind: uint32_t
    if length < LINK_HEADER + 20 or memcmp(frame + 6, cython.address(port.link[0]), 6) != 0:
        drop(cython.address(e.lane), DropReason.PORT_ETHERNET)
        return False
    kind = load16(frame + 12)
    if kind == ARP:
        answer_arp(e, port, frame, length)
        return False
    if kind == IPV6 and is_solicitation(frame, length):
        answer_solicitation(e, port, frame, length)
        return False
    if (
        memcmp(frame, cython.address(port.link[6]), 6) != 0
        or (kind != IPV4 and kind != IPV6)
        or (kind == IPV6) != (frame[LINK_HEADER] >> 4 == 6)
        or (vnet.flags & VNET_NEEDS_CSUM and vnet.csum_start < LINK_HEADER)
    ):
        drop(cython.address(e.lane), DropReason.PORT_ETHERNET)
        return False
    if vnet.flags & VNET_NEEDS_CSUM:
        vnet.csum_start -= LINK_HEADER
    if vnet.hdr_len >= LINK_HEADER:
        vnet.hdr_len -= LINK_HEADER
    return True


def write_answer(e, port, frame, length):
    """A frame of our own to the port, whole."""
    none: VnetHeader
    memset(cython.address(none), 0, VNET_HEADER_SIZE)
    e.neighbours += 1
    # Not counted when the port refuses it: nobody gave us this frame.
    write_frame(
        port.fds[e.lane.shared.worker], cython.cast(cython.pointer(uint8_t), cython.address(none)), VNET_HEADER_SIZE,
        frame, length, cython.NULL, 0,
    )


def answer_arp(e, port, frame, length):
    """The pod asks for any address but its own: it is at the gateway's MAC. A probe (RFC 5227) gets no answer."""
    out = cython.declare(uint8_t[42])
    if (
        length < 42
        or load32(frame + 14) != 0x00010800
        or load32(frame + 18) != 0x06040001
        or memcmp(frame + 22, cython.address(port.link[0]), 6) != 0
        or not port.has4
        or load32(frame + 28) != port.address4
        or load32(frame + 38) == port.address4
    ):
        drop(cython.address(e.lane), DropReason.PORT_ETHERNET)
        return
    memcpy(cython.address(out[0]), cython.address(port.link[0]), 12)
    memcpy(cython.address(out[12]), frame + 12, 8)
    store16(cython.address(out[20]), 2)
    memcpy(cython.address(out[22]), cython.address(port.link[6]), 6)
    memcpy(cython.address(out[28]), frame + 38, 4)
    memcpy(cython.address(out[32]), frame + 22, 10)
    write_answer(e, port, cython.address(out[0]), 42)


def is_solicitation(frame, length):
    """Whether an IPv6 frame is a neighbour solicitation."""
    return length >= LINK_HEADER + 64 and frame[20] == IPPROTO_ICMPV6 and frame[LINK_HEADER + 40] == SOLICITATION


def answer_solicitation(e, port, frame, length):
    """The same for IPv6 (RFC 4861 section 7.1.1); duplicate address detection gets no answer."""
    out = cython.declare(uint8_t[86])
    packet: cython.pointer(cython.const[uint8_t]) = frame + LINK_HEADER
    size: uint32_t = load16(packet + 4)
    own: cython.bint = port.has6 and load64(packet + 8) == port.high6 and load64(packet + 16) == port.low6
    about_own: cython.bint = port.has6 and load64(packet + 48) == port.high6 and load64(packet + 56) == port.low6
    total: uint64_t
    if (
        packet[7] != 255
        or packet[41] != 0
        or size < 24
        or size + 40 > length - LINK_HEADER
        or packet[48] == 0xFF
        or about_own
        or not (own or load16(packet + 8) & 0xFFC0 == 0xFE80)
        or fold(pseudo_sum(packet, IPPROTO_ICMPV6, size) + header_sum(packet + 40, size)) != 0xFFFF
    ):
        drop(cython.address(e.lane), DropReason.PORT_ETHERNET)
        return
    memset(cython.address(out[0]), 0, 86)
    memcpy(cython.address(out[0]), cython.address(port.link[0]), 12)
    store16(cython.address(out[12]), IPV6)
    out[14] = 0x60
    store16(cython.address(out[18]), 32)
    out[20] = IPPROTO_ICMPV6
    out[21] = 255
    memcpy(cython.address(out[22]), packet + 48, 16)
    memcpy(cython.address(out[38]), packet + 8, 16)
    out[54] = ADVERTISEMENT
    out[58] = 0xE0
    memcpy(cython.address(out[62]), packet + 48, 16)
    out[78] = 2
    out[79] = 1
    memcpy(cython.address(out[80]), cython.address(port.link[6]), 6)
    total = pseudo_sum(cython.address(out[14]), IPPROTO_ICMPV6, 32) + header_sum(cython.address(out[54]), 32)
    store16(cython.address(out[56]), fold(total) ^ 0xFFFF)
    write_answer(e, port, cython.address(out[0]), 86)


def deliver(lane, port, packet, inner, gso_size):
    """A packet, or a superframe that came as one, to a TAP port."""
    vnet: VnetHeader
    s: Superframe
    verdict: Verdict = CHECKSUM_NONE
    memset(cython.address(vnet), 0, VNET_HEADER_SIZE)
    if inner.fragment == WHOLE and inner.protocol in (IPPROTO_TCP, IPPROTO_UDP):
        verdict = verify(packet, inner.length, inner.l4, inner.protocol)
    if verdict == CHECKSUM_PARTIAL or (gso_size and verdict == CHECKSUM_GOOD):
        vnet.flags = VNET_NEEDS_CSUM
        vnet.csum_start = inner.l4
        vnet.csum_offset = 16 if inner.protocol == IPPROTO_TCP else 6
        vnet.hdr_len = inner.l4
    if gso_size and vnet.flags and open_superframe(
        cython.address(s), port, packet, inner, gso_size, cython.address(vnet)
    ):
        return write_cut(lane, port, cython.address(s))
    if verdict == CHECKSUM_PARTIAL and not port.features & FEATURE_CSUM:
        complete(packet, inner.length, vnet.csum_start, vnet.csum_offset)
        verdict = CHECKSUM_GOOD
    if verdict != CHECKSUM_PARTIAL and vnet.gso_type == 0:
        memset(cython.address(vnet), 0, VNET_HEADER_SIZE)
    return write_port(lane, port, cython.address(vnet), packet, inner.length, cython.NULL, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_superframe(
    s: cython.pointer(Superframe), port: cython.pointer(cython.const[PortEntry]), packet: cython.pointer(uint8_t),
    inner: cython.pointer(cython.const[Inner]), gso_size: uint32_t, vnet: cython.pointer(VnetHeader),
) -> cython.bint:
    """Fill `vnet` for a superframe the port takes whole; True when it has to be cut. What is none stays a packet."""
    need: uint32_t = FEATURE_TSO if inner.protocol == IPPROTO_TCP else FEATURE_USO
    vnet.gso_size = gso_size
    vnet.gso_type = GSO_UDP_L4
    if inner.protocol == IPPROTO_TCP:
        vnet.gso_type = GSO_TCPV4 if inner.family == 4 else GSO_TCPV6
    if gso_size > 65534 or split_open(s, packet, inner.length, vnet) < 0 or s.segments == 1:
        vnet.gso_type = 0
        vnet.gso_size = 0
        return False
    if not port.features & need:
        return True
    vnet.hdr_len = s.header_length
    store16(
        packet + inner.l4 + vnet.csum_offset, fold(pseudo_sum(packet, inner.protocol, inner.length - inner.l4))
    )
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_cut(
    lane: cython.pointer(Lane), port: cython.pointer(cython.const[PortEntry]), s: cython.pointer(Superframe)
) -> cython.bint:
    """A superframe packet by packet; it is lost, once, with the first that the port refuses."""
    none: VnetHeader
    head = cython.declare(uint8_t[512])
    payload: uint32_t
    i: uint32_t
    memset(cython.address(none), 0, VNET_HEADER_SIZE)
    if s.header_length > 512:
        drop(lane, DropReason.SUPERFRAME)
        return False
    for i in range(s.segments):
        payload = split_header(s, i, cython.address(head[0]))
        if not write_port(
            lane, port, cython.address(none), cython.address(head[0]), s.header_length,
            cython.cast(cython.pointer(uint8_t), s.frame) + s.header_length + i * s.gso_size, payload,
        ):
            return False
    return True
