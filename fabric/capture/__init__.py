"""`fabricctl capture`: packets of the underlay, the node port and pod ports, and those that the data path refused.

    pcapng    the file format                                          pure
    bpf       classic BPF programs: put together, moved, taken apart   pure
    libpcap   its compiler and its interpreter, by ctypes
    wanted    what was asked for, as one filter text per kind of place pure
    comments  what is said about a packet                              pure
    trains    datagrams that the kernel still has in one piece, taken apart   pure
    taps      packet sockets on interfaces, in the pods' namespaces too
    session   the loop: from taps and the daemon's refused packets to a file

Theory of operation. What passes is taken by the kernel's packet sockets, as tcpdump takes it: the data path is not
touched, and costs a copy of each packet that the filter lets through. Filters are libpcap's own, run in the kernel; one
that is about inner packets is moved behind the tunnel's headers (`bpf.behind`). What the data path refuses never comes
to another place, so the kernel cannot show it: the workers put the first bytes of such packets with the reason into a
ring of fixed size (`fabric.forward.drop_ring`) for as long as somebody asks for them; a full ring loses records, which
is counted, and never waits.

Limits: in the kernel an inner filter looks at the first packet of a train only, so a train whose first packet does not
pass is not seen; an inner filter finds IPv4 outer headers without options; what the kernel refuses at the very end
(`drop_send_*`, `drop_port_*`) is only counted; 802.1Q tags that the interface took off are not put back.
"""
