# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Tunnel-GSO transmit: a superframe with its tunnel header written to a TAP, segmented by the kernel or the NIC.

From Linux 6.17 a TAP takes a frame with a 24-byte virtio-net header that says where outer and inner headers are
(`struct virtio_net_hdr_v1_hash_tunnel`, include/uapi/linux/virtio_net.h): no segment is cut here and no payload byte
is touched. The TAP is a second device; a rule at its ingress hook sends its frames out by the underlay interface to
neighbours on its link (`tunnel_gso`). Headers are

    Ethernet 14 | IP 20 or 40 | UDP 8 | VXLAN 8 | inner Ethernet 14 | the superframe as the port delivered it

with the inner transport checksum partial, as it is, and the outer one partial too.

Limits: VXLAN only, VTEPs on the underlay's link only (for others the caller cuts); it helps where the underlay passes
such superframes on unsegmented (tx-udp_tnl-segmentation) and costs a third of the throughput where the kernel has to
cut them in software.
"""

import cython
from cython.cimports.encap.bytes import store16, store32, store64
from cython.cimports.encap.checksum import fold, header_sum
from cython.cimports.encap.transmit import SendQueue, queue_for
from cython.cimports.encap.vtep import FORMAT_VXLAN, Carried
from cython.cimports.encap.vxlan import ENCAPSULATION, stamp
from cython.cimports.fabric.forward.batch import Link
from cython.cimports.fabric.forward.lane import write_frame
from cython.cimports.libc.errno import EAGAIN, ENOBUFS, ENOMEM, errno
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.tun.vnet import VNET_NEEDS_CSUM


def inject_superframe(e, g, vtep, frame, inner, s, vnet):
    """Write one superframe towards `vtep`; False: the caller cuts the frame itself.

    A refusal turns the path off for good, unless the TAP is only busy.
    """
    header = cython.declare(uint8_t[INJECT_HEADER])
    tunnel = cython.declare(uint8_t[TUNNEL_VNET])
    outer: uint32_t
    size: uint32_t
    carried: cython.pointer(Carried)
    udp_length: uint32_t = 8 + ENCAPSULATION + inner.length
    q: cython.pointer(SendQueue) = queue_for(cython.address(e.lane.transmitter), vtep.family, inner.hash)
    if q == cython.NULL or udp_length + 20 > 65535 or not vnet.flags & VNET_NEEDS_CSUM or not linked(e, vtep):
        return False
    memcpy(cython.address(header[0]), cython.address(e.tap_mac[0]), 6)
    memset(cython.address(header[6]), 0, 8)
    header[6] = 2
    if vtep.family == 4:
        outer = outer_ipv4(cython.address(header[0]), g, vtep, udp_length, inner.tos & 3, q.source_port)
    else:
        outer = outer_ipv6(cython.address(header[0]), g, vtep, udp_length, inner.tos & 3, q.source_port)
    stamp(cython.address(header[outer]), cython.address(vtep.header[0]), inner.family)
    outer += ENCAPSULATION
    tunnel_vnet(cython.address(tunnel[0]), outer, inner, s, vnet, vtep.family == 6)
    if not write_frame(
        e.tap, cython.address(tunnel[0]), TUNNEL_VNET, cython.address(header[0]), outer, frame, inner.length
    ):
        if errno not in (EAGAIN, ENOBUFS, ENOMEM):
            e.tap = -1
        return False
    e.injected += 1
    size = inner.length + (s.segments - 1) * s.header_length
    e.lane.packets += s.segments
    e.lane.bytes += size
    e.lane.superframes += 1
    carried = cython.address(e.lane.transmitter.carried[vtep.slot])
    carried.packets += s.segments
    carried.bytes += size
    return True


def linked(e, vtep):
    """Whether the VTEP is a neighbour on the underlay."""
    i: uint32_t
    link: cython.pointer(cython.const[Link])
    for i in range(e.tap_links):
        link = cython.address(e.tap_link[i])
        if (
            link.family == vtep.family
            and vtep.low & link.mask_low == link.low
            and vtep.high & link.mask_high == link.high
        ):
            return True
    return False


def outer_ipv4(out, g, vtep, udp_length, ecn, source_port):
    """Ethernet type, IPv4 and UDP header; length of all up to the VXLAN header. TTL 65: the kernel forwards once."""
    store16(out + 12, 0x0800)
    memset(out + 14, 0, 28)
    out[14] = 0x45
    out[15] = ecn
    store16(out + 16, 20 + udp_length)
    out[22] = 65
    out[23] = 17
    store32(out + 26, g.underlay4)
    store32(out + 30, cython.cast(uint32_t, vtep.low))
    store16(out + 24, fold(header_sum(out + 14, 20)) ^ 0xFFFF)
    store16(out + 34, source_port)
    store16(out + 36, g.tunnel_ports[FORMAT_VXLAN])
    store16(out + 38, udp_length)
    store16(out + 40, fold(header_sum(out + 26, 8) + 17 + udp_length))
    return 42


def outer_ipv6(out, g, vtep, udp_length, ecn, source_port):
    """The same for IPv6."""
    store16(out + 12, 0x86DD)
    memset(out + 14, 0, 48)
    out[14] = 0x60
    out[15] = cython.cast(uint8_t, ecn << 4)
    store16(out + 18, udp_length)
    out[20] = 17
    out[21] = 65
    store64(out + 22, g.underlay_high6)
    store64(out + 30, g.underlay_low6)
    store64(out + 38, vtep.high)
    store64(out + 46, vtep.low)
    store16(out + 54, source_port)
    store16(out + 56, g.tunnel_ports[FORMAT_VXLAN])
    store16(out + 58, udp_length)
    store16(out + 60, fold(header_sum(out + 22, 32) + 17 + udp_length))
    return 62


def tunnel_vnet(out, outer, inner, s, vnet, ipv6):
    """The 24 bytes: offsets from the start of the frame, `outer` is where the inner IP header begins."""
    words: cython.pointer(uint16_t) = cython.cast(cython.pointer(uint16_t), out)
    memset(out, 0, TUNNEL_VNET)
    out[0] = VNET_NEEDS_CSUM | VNET_UDP_TUNNEL_CSUM
    out[1] = vnet.gso_type | (GSO_UDP_TUNNEL_IPV6 if ipv6 else GSO_UDP_TUNNEL_IPV4)
    words[1] = cython.cast(uint16_t, outer + s.header_length)
    words[2] = vnet.gso_size
    words[3] = cython.cast(uint16_t, outer + inner.l4)
    words[4] = vnet.csum_offset
    words[10] = cython.cast(uint16_t, outer - ENCAPSULATION - 8)
    words[11] = cython.cast(uint16_t, outer)
