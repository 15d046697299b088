"""virtio_net_hdr: the 10 bytes before every frame of a port with IFF_VNET_HDR (`include/uapi/linux/virtio_net.h`).

```
 0 u8  flags         NEEDS_CSUM 1, DATA_VALID 2
 1 u8  gso_type      NONE 0, TCPV4 1, TCPV6 4, UDP_L4 5, ECN 0x80 or-ed to a TCP type
 2 u16 hdr_len       bytes up to the payload; a hint, and on read not even that: the linear part of the kernel's buffer
 4 u16 gso_size      payload bytes of each segment
 6 u16 csum_start    offset of the transport header from the start of the frame
 8 u16 csum_offset   offset of the checksum field from there: TCP 16, UDP 6
```

All fields are in the byte order of the machine. NEEDS_CSUM means that the checksum field holds the folded, non-inverted
pseudo-header sum and that the reader has to finish it. `tun/vnet.pxd` declares the same layout for compiled modules.
"""

import struct
from typing import NamedTuple, Self

VNET_HEADER_SIZE = 10

VNET_NEEDS_CSUM = 1
VNET_DATA_VALID = 2

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80

FEATURE_CSUM = 1
FEATURE_TSO = 2
FEATURE_USO = 4

_LAYOUT = struct.Struct("=BBHHHH")


class VnetHeader(NamedTuple):
    """One header; the default is "a plain frame with a complete checksum"."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Header in the first 10 bytes of `data`; ValueError when there are fewer."""
        if len(data) < VNET_HEADER_SIZE:
            raise ValueError(f"virtio-net header needs {VNET_HEADER_SIZE} bytes, got {len(data)}")
        return cls._make(_LAYOUT.unpack_from(data))

    def emit(self) -> bytes:
        """The 10 bytes; ValueError when a field does not fit its width."""
        try:
            return _LAYOUT.pack(*self)
        except struct.error as error:
            raise ValueError(f"virtio-net header field out of range in {self}: {error}") from None
