# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What the ends of a flow are told when policy cuts it and is to let them know (`podfabric.io/established: reset`).

`standing` says which refused packets are answered: those of a few seconds, within a rate. TCP: an RST to both ends. The
sender's goes back by the way the packet came, the receiver's takes the way that the packet would have taken. Other
protocols: an ICMP error "administratively prohibited" to the sender, as for any packet that a router refuses.
"""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import IPPROTO_TCP, Inner
from cython.cimports.encap.vtep import FORMAT_NONE, FORMAT_VXLAN
from cython.cimports.encap.vxlan import ENCAPSULATION
from cython.cimports.fabric.forward.flow_track import ANSWER, BY_NODE_PORT, REFUSED_SHIFT
from cython.cimports.fabric.forward.icmp import PROHIBITED, build_error
from cython.cimports.fabric.forward.lane import drop, write_packet
from cython.cimports.fabric.forward.release import hold_frame
from cython.cimports.fabric.forward.reset import build_reset
from cython.cimports.fabric.forward.snapshot import KIND_SHIFT, NODE_PORT, POSITION_MASK, TO_PORT, TO_VTEP
from cython.cimports.fabric.forward.tunnel import MADE_BUFFER, send_made
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.libc.string import memset
from cython.cimports.routes.fib import NO_ROUTE
from cython.cimports.tun.vnet import VNET_HEADER_SIZE, VnetHeader


def refuse_frame(e, g, position, route, verdict, frame):
    """Counted, and answered where the flow's policy wants it; a later fragment may wait."""
    inner: cython.pointer(Inner) = cython.address(frame.inner)
    out = cython.declare(uint8_t[MADE_BUFFER])
    packet: cython.pointer(uint8_t) = cython.address(out[ENCAPSULATION])
    length: uint32_t
    if verdict >> REFUSED_SHIFT == DropReason.POLICY_FRAGMENT and hold_frame(e, g, position, frame):
        return False
    drop(cython.address(e.lane), verdict >> REFUSED_SHIFT)
    if verdict & ANSWER:
        length = build_back(packet, g, frame.data, inner)
        if length:
            write_made(cython.address(e.lane), g, position, packet, length)
        length = build_reset(packet, frame.data, inner, False)
        if length:
            send_on(e, g, position, route, verdict, packet, length, inner)
    return False


def answer_cut(s, g, vtep, verdict, packet, inner):
    """The same of a packet from the underlay, which the caller counts."""
    out = cython.declare(uint8_t[MADE_BUFFER])
    made: cython.pointer(uint8_t) = cython.address(out[ENCAPSULATION])
    length: uint32_t = build_back(made, g, packet, inner)
    if length:
        send_made(cython.address(s.lane), g, vtep, made, length, inner)
    length = build_reset(made, packet, inner, False)
    if length:
        write_made(cython.address(s.lane), g, 0 if verdict & BY_NODE_PORT else s.target, made, length)


def build_back(out, g, packet, inner):
    """What the sender gets; its length, 0 for nothing."""
    if inner.protocol == IPPROTO_TCP:
        return build_reset(out, packet, inner, True)
    return build_error(out, packet, inner, PROHIBITED, 0, g.address4, g.high6, g.low6)


def write_made(lane, g, position, packet, length):
    """To a port. Not counted when the port refuses it: nobody gave us this packet."""
    none: VnetHeader
    if g.ports[position].fds[lane.shared.worker] < 0:
        return
    memset(cython.address(none), 0, VNET_HEADER_SIZE)
    write_packet(
        cython.address(g.ports[position]), lane.shared.worker, cython.address(none), packet, length, cython.NULL, 0
    )


def send_on(e, g, position, route, verdict, packet, length, inner):
    """Where the refused frame was going: see `egress_frame`."""
    kind: uint32_t = route >> KIND_SHIFT
    pod: cython.bint = g.ports[position].kind != NODE_PORT
    if verdict & BY_NODE_PORT:
        write_made(cython.address(e.lane), g, 0, packet, length)
    elif route == cython.cast(uint32_t, NO_ROUTE) or (pod and kind != TO_PORT and kind != TO_VTEP):
        if pod:
            write_made(cython.address(e.lane), g, 0, packet, length)
    elif kind == TO_PORT:
        write_made(cython.address(e.lane), g, route & POSITION_MASK, packet, length)
    else:
        vtep = cython.address(g.vteps.vteps[route & POSITION_MASK])
        if vtep.format == FORMAT_VXLAN or (vtep.format != FORMAT_NONE and inner.family == 4):
            send_made(cython.address(e.lane), g, vtep, packet, length, inner)
