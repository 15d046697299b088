"""What plain Python needs around the virtio-net header of `tun.vnet`: the tunnel header and the kernel's write rules.

For slow paths and tests; compiled modules do the same on the bytes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tun.vnet import GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VNET_HEADER_SIZE, VNET_NEEDS_CSUM, VnetHeader

TUNNEL_HEADER_SIZE = 24
HEADER_SIZES = (VNET_HEADER_SIZE, TUNNEL_HEADER_SIZE)
MAX_FRAME = 65535

UDP_TUNNEL_CSUM = 8
GSO_UDP_TUNNEL_IPV4 = 0x20
GSO_UDP_TUNNEL_IPV6 = 0x40

CSUM_OFFSET_TCP = 16
CSUM_OFFSET_UDP = 6
UDP_MAX_SEGMENTS = 128

_TUNNEL = struct.Struct("=BBHHHHHHHHHHH")


class TunnelVnetHeader(NamedTuple):
    """`struct virtio_net_hdr_v1_hash_tunnel`: 24 bytes, for writing a UDP-tunnel superframe to a TAP (Linux 6.17).

    `csum_start`/`csum_offset` are those of the inner transport header; `num_buffers` and the hash fields stay zero.
    """

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int
    outer_th_offset: int
    inner_nh_offset: int

    def emit(self) -> bytes:
        """The 24 bytes; struct.error when a field does not fit."""
        return _TUNNEL.pack(*self[:6], 0, 0, 0, 0, 0, *self[6:])

    @classmethod
    def parse(cls, data: bytes) -> TunnelVnetHeader:
        """Reads the first 24 bytes of `data`; struct.error when there are fewer."""
        fields = _TUNNEL.unpack_from(data)
        return cls(*fields[:6], *fields[11:])


# gso_type without ECN: smallest IP header, transport header, in bytes, and the offset of its checksum.
_GSO_LAYOUT = {
    GSO_TCPV4: (20, 20, CSUM_OFFSET_TCP),
    GSO_TCPV6: (40, 20, CSUM_OFFSET_TCP),
    GSO_UDP_L4: (20, 8, CSUM_OFFSET_UDP),
}


def refusal(header: VnetHeader, frame: bytes) -> str:
    """Why a TUN device would refuse this write with EINVAL, or "" when it takes it.

    Written from the checks of `tun_get_user` (drivers/net/tun.c) and `__virtio_net_hdr_to_skb`
    (include/linux/virtio_net.h); a test compares it with a real device. UFO counts as refused: nobody here
    writes it.
    """
    needs_csum = bool(header.flags & VNET_NEEDS_CSUM)
    kind = header.gso_type & ~GSO_ECN
    if not frame or frame[0] >> 4 not in (4, 6):
        return "first nibble is neither 4 nor 6"
    if header.hdr_len > len(frame):
        return "hdr_len is beyond the frame"
    if header.gso_type != GSO_NONE and kind not in _GSO_LAYOUT:
        return f"unknown gso_type {header.gso_type:#x}"
    minimum, transport, csum_offset = _GSO_LAYOUT.get(kind, (20, 0, 0))
    if needs_csum and header.csum_start < minimum:
        return "csum_start is inside the IP header"
    if needs_csum and header.csum_start + max(transport, header.csum_offset + 2) > len(frame):
        return "checksum field or transport header is beyond the frame"
    if header.gso_type == GSO_NONE:
        return ""
    headers = (header.csum_start if needs_csum else minimum) + transport
    if headers > len(frame):
        return "headers are beyond the frame"
    if header.gso_size in (0, 0xFFFF):
        return f"gso_size {header.gso_size}"
    if needs_csum and header.csum_offset != csum_offset:
        return "csum_offset does not fit the protocol"
    return _udp_refusal(header, len(frame) - headers) if kind == GSO_UDP_L4 else ""


def _udp_refusal(header: VnetHeader, payload: int) -> str:
    if not header.flags & VNET_NEEDS_CSUM:
        return "UDP superframe without NEEDS_CSUM"
    if header.gso_type & GSO_ECN:
        return "ECN on a UDP superframe"
    return "more than 128 segments" if payload > header.gso_size * UDP_MAX_SEGMENTS else ""
