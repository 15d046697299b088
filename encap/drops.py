# cython: language_level=3
"""Drop reasons: every packet that is refused is counted under exactly one of them.

`DropReason` is declared in `drops.pxd` so that the compiled loops use plain C constants; `TEXTS` explains each one to
people (`fabricctl counters`, docs).
"""

TEXTS: dict[str, str] = {
    "OUTER_TRUNCATED": "datagram longer than a receive buffer",
    "VXLAN_SHORT": "datagram too short for a VXLAN and an Ethernet header",
    "VXLAN_FLAGS": "VXLAN header without the I flag (RFC 7348 section 5)",
    "VXLAN_RESERVED": "VXLAN reserved bits set (dropped as Linux does; see --vxlan-reserved)",
    "VXLAN_VNI": "VXLAN network identifier is not ours",
    "UNKNOWN_VTEP": "outer source address is not a current VTEP",
    "FORMAT_REFUSED": "neither our own backend type's format nor that of the sending VTEP",
    "INNER_MAC": "inner MAC addresses are not those of this VTEP and of the sender",
    "INNER_ETHERTYPE": "inner frame is neither IPv4 nor IPv6",
    "ECN_CE_NOT_ECT": "outer congestion mark on a packet that cannot carry it (RFC 6040 section 4.2)",
    "SOURCE_NOT_LEASED": "inner source is outside the sending VTEP's lease",
    "DESTINATION_NOT_LOCAL": "inner destination is not on this node",
    "INNER_SHORT": "too short for an IP header",
    "INNER_VERSION": "IP version is neither 4 nor 6, or not that of the Ethernet type",
    "INNER_HEADER": "malformed IP header length",
    "INNER_LENGTH": "IP length disagrees with the bytes received",
    "INNER_CHECKSUM": "wrong IPv4 header checksum",
    "INNER_EXTENSION": "IPv6 extension headers malformed, too many, or a type 0 routing header (RFC 5095)",
    "INNER_FRAGMENT": "malformed fragment, or a first fragment without its transport header (RFC 1858, RFC 7112)",
    "INNER_TRANSPORT": "truncated or inconsistent TCP, UDP or ICMP header",
    "NO_ROUTE": "no route to the inner destination",
    "TTL_EXPIRED": "TTL or hop limit used up",
    "TOO_BIG": "larger than the path MTU and may not be fragmented",
    "NOT_UNICAST": "multicast, broadcast, loopback or unspecified address",
    "SOURCE_SPOOFED": "a pod sent from an address that is not its own",
    "POD_TO_VTEP": "a pod tried to speak to a node's tunnel port",
    "SUPERFRAME": "a port's GSO frame does not agree with its virtio-net header",
    "FAMILY_UNSUPPORTED": "no VTEP for this IP family",
    "SEND_QUEUE_FULL": "underlay send buffer full",
    "SEND_UNREACHABLE": "underlay has no route to the peer",
    "SEND_REFUSED": "underlay send refused by a local firewall rule",
    "SEND_FAILED": "underlay send failed for another reason",
    "PORT_QUEUE_FULL": "port's queue full",
    "PORT_DOWN": "port is down",
    "PORT_GONE": "port was deleted",
    "PORT_FAILED": "port read or write failed for another reason",
    "PORT_ETHERNET": "a TAP port's frame is no packet from the pod's MAC to the gateway's, and no question for it",
}
