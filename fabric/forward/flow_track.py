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

`admit_flow` is where a new flow is decided: by policy (`policing`), once, and what is refused leaves no record. A flow
remembers the number of the rules under which it was judged. When that is not the generation's, its next packet has it
judged again; refused then, it is kept or cut (`standing`). A flow for which there is no room is not tracked: each of
its packets follows the routes and is judged as a first one.

Limits: TCP flows that began before the daemon did are met in the middle; the side that speaks first then counts as the
one that began, for policy too: where only the other side may begin, it has to speak first.
"""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, LATER_FRAGMENT, WHOLE
from cython.cimports.fabric.forward.denials import note_denial
from cython.cimports.fabric.forward.flow_key import (
    NO_QUOTE,
    FlowKey,
    flow_hash,
    flow_key,
    is_echo,
    is_echo_reply,
    is_error,
    quoted_key,
)
from cython.cimports.fabric.forward.flow_state import (
    KEPT,
    OWED,
    TCP_ACK,
    TCP_RST,
    TCP_SYN,
    first_state,
    gives_way,
    is_settled,
    next_state,
)
from cython.cimports.fabric.forward.flow_table import (
    ACCOUNTS,
    NO_ENTRY,
    NODE_ENTRY,
    Flow,
    FlowRest,
    Found,
    flow_lookup,
)
from cython.cimports.fabric.forward.flow_write import PLACED, REFUSED, flow_insert, flow_store, flow_sweep
from cython.cimports.fabric.forward.fragments import UNMATCHED, fragment_note, fragment_verdict
from cython.cimports.fabric.forward.hold import hold_decide
from cython.cimports.fabric.forward.policing import ask, ask_again, ask_fragment, may_report, police, police_fragment
from cython.cimports.fabric.forward.snapshot import KIND_SHIFT, POSITION_MASK, TO_PORT
from cython.cimports.fabric.forward.standing import cut_verdict, goes_on, judge_again, pass_second, record, set_rules
from cython.cimports.fabric.policy.judge import NO_RULE as NOBODY
from cython.cimports.fabric.policy.judge import Answer, Question
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t
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


def track_flow(k, g, inner, packet, entry, hash):
    """`track` of a packet that is not like the last one."""
    verdict: uint32_t
    if inner.fragment == LATER_FRAGMENT:
        return track_fragment(k, g, inner, entry)
    if inner.protocol == IPPROTO_ICMP or inner.protocol == IPPROTO_ICMPV6:
        verdict = track_icmp(k, g, inner, packet, entry)
    else:
        verdict = follow(
            k, g, inner, packet, packet[inner.l4 + 13] if inner.protocol == IPPROTO_TCP else 0, entry, hash
        )
    if inner.fragment != WHOLE:
        # Later ones are not answered: they quote no ports.
        fragment_note(cython.address(k.fragments), inner, verdict & ~ANSWER, g.rules_number, k.now)
        if k.hold.count:
            hold_decide(cython.address(k.hold), inner, entry, verdict & ~ANSWER)
    return verdict


def track_fragment(k, g, inner, entry):
    """A later fragment shares the lot of the first one. POLICY_FRAGMENT: it may wait for that (`release`)."""
    reason: uint8_t
    verdict: uint32_t = fragment_verdict(cython.address(k.fragments), inner, g.rules_number, k.now)
    if verdict != UNMATCHED:
        return verdict
    reason = police_fragment(g, inner, entry)
    if reason != DropReason.PASS and reason != DropReason.POLICY_FRAGMENT:
        deny(k, inner, reason)
    return cython.cast(uint32_t, reason) << REFUSED_SHIFT


def deny(k, inner, reason):
    """For the sample of what policy refuses."""
    question: Question
    ask_fragment(inner, cython.address(question))
    note_denial(cython.address(k.denials), cython.address(question), reason, NOBODY, k.now)


def track_icmp(k, g, inner, packet, entry):
    """An error belongs to the flow that it quotes; what is neither error nor echo has no flow that could speak for it.

    Such a query is judged by itself each time. Only then it takes the way of the record that all those between two
    addresses share.
    """
    reason: uint8_t
    if is_error(inner, packet):
        return track_error(k, g, inner, packet, entry)
    if g.rules.active and not is_echo(inner.family, inner.protocol, packet[inner.l4]):
        reason = refuse_packet(k, g, inner, packet, entry)
        if reason != DropReason.PASS:
            return cython.cast(uint32_t, reason) << REFUSED_SHIFT
    return follow(k, g, inner, packet, 0, entry, 0)


def follow(k, g, inner, packet, flags, entry, hash):
    """Find or make the packet's flow and bring it forward; the verdict."""
    key: FlowKey
    found: Found
    rest: FlowRest
    side: uint32_t = flow_key(inner, packet, cython.address(key))
    verdict: uint32_t
    result: uint32_t
    refused: uint8_t = DropReason.PASS
    stale: cython.bint
    _turn: uint32_t
    if hash == 0:
        hash = flow_hash(cython.address(key), cython.address(g.flows.secret[0]))
    for _turn in range(TRIES):
        if not flow_lookup(g.flows, cython.address(key), hash, cython.address(found)) or is_over(
            cython.address(found), flags, k.now
        ):
            result = admit_flow(
                k, g, inner, packet, cython.address(key), side, flags, entry, hash, cython.address(found),
                cython.address(refused),
            )
            if result == REFUSED:
                return cython.cast(uint32_t, refused) << REFUSED_SHIFT
            if result == PLACED:
                break
        stale = found.flow.policy != g.rules_number
        if stale:
            judge_again(k, g, cython.address(found.flow), cython.address(rest))
        if flags & (TCP_SYN | TCP_ACK) == TCP_SYN and (side != found.flow.origin or found.flow.standing & KEPT):
            # A reply does not open connections, nor does one that is kept: this is another.
            refused = refuse_packet(k, g, inner, packet, entry)
            if refused != DropReason.PASS:
                if stale:  # what has become of the flow itself counts from now on all the same
                    flow_store(g.flows, cython.address(found), cython.address(rest), k.now)
                return cython.cast(uint32_t, refused) << REFUSED_SHIFT
        # Somebody else may change the bucket between reading and storing.
        if not advance(cython.address(found.flow), side, flags, entry, k.now) and not stale:
            break
        if flow_store(
            g.flows, cython.address(found), cython.address(rest) if stale else cython.NULL, k.now
        ):
            break
    verdict = way_of(cython.address(found.flow), side, entry)
    if found.flow.refused:
        verdict = cut_verdict(k, cython.address(found.flow), side, verdict)
    if not found.flow.standing & OWED:
        remember(k, g, inner, entry, cython.address(found), verdict)
    return verdict


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def is_over(found: cython.pointer(cython.const[Found]), flags: uint32_t, now: uint32_t) -> cython.bint:
    """Whether the flow has expired, or this packet begins a new connection between the ends of a closing or cut one."""
    return found.expires <= now or (
        flags & (TCP_SYN | TCP_ACK) == TCP_SYN and gives_way(found.flow.state)
    )


def admit_flow(k, g, inner, packet, key, side, flags, entry, hash, found, refused):
    """Decide about a new flow and put it into the table; one that may not begin leaves nothing there."""
    flow: Flow
    rest: FlowRest
    question: Question
    answer: Answer
    ask(inner, packet, cython.address(question))
    refused[0] = refuse(k, g, cython.address(question), entry, cython.address(answer))
    if refused[0] != DropReason.PASS or flags & TCP_RST:
        return REFUSED
    if is_echo_reply(inner.family, inner.protocol, question.icmp_type):
        return REFUSED
    memset(cython.address(flow), 0, cython.sizeof(Flow))
    memset(cython.address(rest), 0, cython.sizeof(FlowRest))
    flow.key = key[0]
    flow.origin = side
    flow.state = first_state(inner.protocol, flags)
    flow.seen[side] = k.now
    flow.entry[side] = cython.cast(uint16_t, entry)
    flow.entry[1 - side] = NO_ENTRY
    flow.account = cython.cast(uint16_t, account_of(g, inner, entry))
    flow.policy = g.rules_number
    flow.icmp_type = question.icmp_type
    flow.icmp_code = question.icmp_code
    set_rules(cython.address(rest), cython.address(answer))
    return flow_insert(g.flows, cython.address(flow), cython.address(rest), hash, k.now, found)


def refuse(k, g, q, entry, a):
    """Ask policy; counted by rule, and noted when it refuses."""
    reason: uint8_t = police(g, q, entry, a)
    record(k, g, q, reason, a)
    return reason


def refuse_packet(k, g, inner, packet, entry):
    """The same for a packet as if nothing had been before it."""
    question: Question
    answer: Answer
    ask(inner, packet, cython.address(question))
    return refuse(k, g, cython.address(question), entry, cython.address(answer))


def advance(flow, side, flags, entry, now):
    """One more packet of `side`; True when the record changed."""
    state: uint8_t = flow.state
    if flow.refused:
        if flow.seen[side] == now:
            return False
        flow.seen[side] = now
        pass_second(flow, side)
        return True
    if side != flow.origin or flow.key.protocol == IPPROTO_TCP:
        state = next_state(state, flags, side != flow.origin)
    if state == flow.state and flow.entry[side] == entry and flow.seen[side] == now:
        return False
    flow.state = state
    flow.entry[side] = cython.cast(uint16_t, entry)
    flow.seen[side] = now
    return True


def way_of(flow, side, entry):
    """What a flow means for the way of a packet of `side` that came in by `entry`."""
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
    """An ICMP error goes the way of a reply to the packet that it quotes, if it goes to that packet's sender.

    Such an error passes policy like a reply. Any other is judged as a packet of its own.
    """
    key: FlowKey
    found: Found
    reason: uint8_t
    side: uint32_t = quoted_key(inner, packet, cython.address(key))
    live: cython.bint = (
        side != NO_QUOTE
        and key.low[side] == inner.dst_low
        and key.high[side] == inner.dst_high
        and flow_lookup(
            g.flows, cython.address(key), flow_hash(cython.address(key), cython.address(g.flows.secret[0])),
            cython.address(found),
        )
        and found.expires > k.now
    )
    if g.rules.active and not (live and may_pass_error(g, inner, cython.address(found.flow), side)):
        reason = refuse_packet(k, g, inner, packet, entry)
        if reason != DropReason.PASS:
            return cython.cast(uint32_t, reason) << REFUSED_SHIFT
    return way_of(cython.address(found.flow), 1 - side, entry) if live else FOLLOW_ROUTE


def may_pass_error(g, inner, flow, side):
    """Whether a live flow speaks for an error about it that goes to `side`."""
    question: Question
    answer: Answer
    if not may_report(g, flow, side, inner):
        return False
    if flow.policy == g.rules_number:
        return flow.refused == DropReason.PASS
    ask_again(flow, cython.address(question))
    reason: uint8_t = police(g, cython.address(question), flow.entry[flow.origin], cython.address(answer))
    return reason == DropReason.PASS or goes_on(flow, reason, cython.address(answer))


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
