# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One packet and its flow: found or made, brought forward, and what follows from it for the packet's way.

Theory of operation. A flow remembers the port by which each side's packets come in. Its replies leave by the port by
which it entered, where that is the node port: the host's kernel may have translated the addresses on the way (a pod's
packet to a Service goes out by the node port, and comes in again with a pod's address as its destination), and only
there can it be undone. `track` says so by BY_NODE_PORT, for replies that were going to a pod port directly or came
from the underlay. A reply that comes from the node port has been there and follows its route, so nothing can go round.
The last port counts: when the side that began sends by another port, replies follow it.

Where a flow came in by a pod port or from the underlay, its replies find the way back by the routes: a pod port sends
its own addresses only, and a VTEP those of its lease. A flow whose port is gone falls back to routing by that.

`admit_flow` is where a new flow is decided. A flow for which there is no room is not tracked and follows the routes.

Limits: TCP flows that began before the daemon did are met in the middle; the side that speaks first then counts as the
one that began.
"""

import cython
from cython.cimports.encap.inner import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, LATER_FRAGMENT, WHOLE
from cython.cimports.fabric.forward.flow_key import NO_QUOTE, FlowKey, flow_hash, flow_key, is_error, quoted_key
from cython.cimports.fabric.forward.flow_state import (
    CLOSING,
    TCP_ACK,
    TCP_RST,
    TCP_SYN,
    class_of,
    first_state,
    is_settled,
    next_state,
)
from cython.cimports.fabric.forward.flow_table import (
    ACCOUNTS,
    NO_ENTRY,
    NO_RULE,
    NODE_ENTRY,
    Flow,
    FlowRest,
    Found,
    flow_lookup,
)
from cython.cimports.fabric.forward.flow_write import PLACED, REFUSED, flow_insert, flow_store, flow_sweep
from cython.cimports.fabric.forward.fragments import fragment_note, fragment_verdict
from cython.cimports.fabric.forward.snapshot import KIND_SHIFT, POSITION_MASK, TO_PORT
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.posix.time import clock_gettime, timespec
from cython.cimports.routes.fib import lookup4, lookup6

CLOCK_MONOTONIC_COARSE = cython.declare(cython.int, 6)
TRIES = cython.declare(uint32_t, 8)


def track_batch(k, g):
    """Once per batch: the time, and a few buckets swept."""
    now: timespec
    if g.flows == cython.NULL:
        return
    clock_gettime(CLOCK_MONOTONIC_COARSE, cython.address(now))
    k.now = cython.cast(uint32_t, now.tv_sec)
    flow_sweep(g.flows, SWEEP, k.now)


def track_flow(k, g, inner, packet, entry):
    """`track` of a packet that is not like the last one."""
    key: FlowKey
    found: Found
    side: uint32_t
    flags: uint32_t = 0
    verdict: uint32_t = FOLLOW_ROUTE
    if inner.fragment == LATER_FRAGMENT:
        return fragment_verdict(cython.address(k.fragments), inner, k.now)
    if inner.protocol in (IPPROTO_ICMP, IPPROTO_ICMPV6) and is_error(inner, packet):
        return track_error(k, g, inner, packet, entry)
    if inner.protocol == IPPROTO_TCP:
        flags = packet[inner.l4 + 13]
    side = flow_key(inner, packet, cython.address(key))
    if follow(k, g, inner, cython.address(key), side, flags, entry, cython.address(found)):
        verdict = verdict_of(cython.address(found.flow), side, entry)
        remember(k, g, inner, entry, cython.address(found), verdict)
    if inner.fragment != WHOLE:
        fragment_note(cython.address(k.fragments), inner, verdict, k.now)
    return verdict


def follow(k, g, inner, key, side, flags, entry, found):
    """Find or make the packet's flow and bring it forward; False when it is not tracked."""
    hash: uint64_t = flow_hash(key, cython.address(g.flows.secret[0]))
    result: uint32_t
    _turn: uint32_t
    for _turn in range(TRIES):
        if not flow_lookup(g.flows, key, hash, found) or is_over(found, flags, k.now):
            if flags & TCP_RST:
                return False
            result = admit_flow(k, g, inner, key, side, flags, entry, hash, found)
            if result == REFUSED:
                return False
            if result == PLACED:
                return True
        # Somebody else may change the bucket between reading and storing.
        if not advance(cython.address(found.flow), side, flags, entry, k.now) or flow_store(g.flows, found, k.now):
            return True
    return True


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def is_over(found: cython.pointer(cython.const[Found]), flags: uint32_t, now: uint32_t) -> cython.bint:
    """Whether the flow has expired, or this packet begins a new connection between the ends of a closing one."""
    return found.expires <= now or (
        flags & (TCP_SYN | TCP_ACK) == TCP_SYN and class_of(found.flow.state) == CLOSING
    )


def admit_flow(k, g, inner, key, side, flags, entry, hash, found):
    """Decide about a new flow and put it into the table."""
    flow: Flow
    rest: FlowRest
    memset(cython.address(flow), 0, cython.sizeof(Flow))
    memset(cython.address(rest), 0, cython.sizeof(FlowRest))
    flow.key = key[0]
    flow.origin = side
    flow.state = first_state(inner.protocol, flags)
    flow.seen[side] = k.now
    flow.entry[side] = cython.cast(uint16_t, entry)
    flow.entry[1 - side] = NO_ENTRY
    flow.account = cython.cast(uint16_t, account_of(g, inner, entry))
    flow.allowed = True
    rest.egress_rule = NO_RULE
    rest.ingress_rule = NO_RULE
    return flow_insert(g.flows, cython.address(flow), cython.address(rest), hash, k.now, found)


def advance(flow, side, flags, entry, now):
    """One more packet of `side`; True when the record changed."""
    state: uint8_t = flow.state
    if side != flow.origin or flow.key.protocol == IPPROTO_TCP:
        state = next_state(state, flags, side != flow.origin)
    if state == flow.state and flow.entry[side] == entry and flow.seen[side] == now:
        return False
    flow.state = state
    flow.entry[side] = cython.cast(uint16_t, entry)
    flow.seen[side] = now
    return True


def verdict_of(flow, side, entry):
    """What a flow means for a packet of `side` that came in by `entry`."""
    if side != flow.origin and entry != NODE_ENTRY and flow.entry[flow.origin] == NODE_ENTRY:
        return BY_NODE_PORT
    return FOLLOW_ROUTE


def remember(k, g, inner, entry, found, verdict):
    """Keep the verdict for packets of the same flow; not of ICMP, whose identifier is no port, nor while TCP opens."""
    if inner.protocol == IPPROTO_ICMP or inner.protocol == IPPROTO_ICMPV6 or not is_settled(found.flow.state):
        return
    k.memo.bucket = found.bucket
    k.memo.sequence = found.sequence
    k.memo.number = g.number
    k.memo.src_high = inner.src_high
    k.memo.src_low = inner.src_low
    k.memo.dst_high = inner.dst_high
    k.memo.dst_low = inner.dst_low
    k.memo.now = k.now
    k.memo.entry = entry
    k.memo.verdict = verdict
    k.memo.sport = inner.sport
    k.memo.dport = inner.dport
    k.memo.protocol = inner.protocol


def track_error(k, g, inner, packet, entry):
    """An ICMP error goes the way of a reply to the packet that it quotes, if it goes to that packet's sender."""
    key: FlowKey
    found: Found
    side: uint32_t = quoted_key(inner, packet, cython.address(key))
    if side == NO_QUOTE or key.low[side] != inner.dst_low or key.high[side] != inner.dst_high:
        return FOLLOW_ROUTE
    if not flow_lookup(
        g.flows, cython.address(key), flow_hash(cython.address(key), cython.address(g.flows.secret[0])),
        cython.address(found),
    ) or found.expires <= k.now:
        return FOLLOW_ROUTE
    return verdict_of(cython.address(found.flow), 1 - side, entry)


def account_of(g, inner, entry):
    """Who a new flow is charged to: the pod that sends it, else the pod that gets it, else nobody."""
    account: uint32_t = 0
    if entry < ACCOUNTS and entry != NODE_ENTRY:
        return entry
    if entry == NODE_ENTRY:
        account = local_account(g, inner.family, inner.src_high, inner.src_low)
    return account or local_account(g, inner.family, inner.dst_high, inner.dst_low)


def local_account(g, family, high, low):
    """Account of the pod port with this address, 0 when there is none."""
    route: uint32_t = lookup4(g.fib, cython.cast(uint32_t, low)) if family == 4 else lookup6(g.fib, high, low)
    return g.ports[route & POSITION_MASK].account if route >> KIND_SHIFT == TO_PORT else 0
