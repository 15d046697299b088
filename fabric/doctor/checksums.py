"""Whether the outer UDP checksum of a packet is wrong (RFC 768, RFC 8200 section 8.1). Pure."""

from __future__ import annotations

import struct


def is_wrong(packet: bytes) -> bool:
    """True for a whole IP packet with UDP whose checksum does not agree; False for anything else.

    No checksum (0) is right over IPv4, and over IPv6 for tunnels (RFC 6935).
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 28 and packet[9] == 17 and not struct.unpack(">H", packet[6:8])[0] & 0x3FFF:
        header, ends = (packet[0] & 15) * 4, packet[12:20]
        datagram = packet[header : struct.unpack(">H", packet[2:4])[0]]
    elif version == 6 and len(packet) >= 48 and packet[6] == 17:
        ends, datagram = packet[8:40], packet[40 : 40 + struct.unpack(">H", packet[4:6])[0]]
    else:
        return False
    if len(datagram) < 8 or datagram[6:8] == b"\0\0" or struct.unpack(">H", datagram[4:6])[0] != len(datagram):
        return False
    data = ends + struct.pack(">HH", 17, len(datagram)) + datagram + bytes(len(datagram) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total != 0xFFFF
