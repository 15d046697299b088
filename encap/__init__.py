"""Bytes to bytes, and bytes to the underlay: what stands between an IP packet of a pod and a UDP datagram of a node.

Theory of operation. Outward a packet gets a 22-byte header (VXLAN, RFC 7348, and inner Ethernet) that was built once
per VTEP (`vtep`), or none in flannel's udp format, and joins a train of equal datagrams on the socket that its flow
hash picks (`transmit`). Inward messages come in batches (`receive`), are held to the VXLAN rules (`vxlan`), to the
congestion rules of RFC 6040 (`ecn`) and to one strict parser of the inner packet (`inner`). Whatever is refused has
exactly one reason (`drops`). `sockets` opens the sockets; everything else is compiled, takes pointers, allocates
nothing and holds no lock.

Limits: inner IPv4 and IPv6 only, no ARP, no neighbour discovery, no flooding, no learning; VXLAN without GBP and GPE;
transport checksums belong to `tun`, which sees whole superframes.
"""
