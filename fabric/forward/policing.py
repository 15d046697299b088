# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Whether a flow may begin: what the data path knows of its way, and then the policy's verdict.

Theory of operation. `police` is asked about the first packet of a flow, at the node of either end, and answers for the
ends that live here: the source's egress rules and the destination's ingress rules (`fabric.policy.judge`). Where a
packet came in counts only where it says more than addresses do:

1. From the node port with an address of the node's own: allowed. A node reaches its pods, whatever policies say.
2. Without a policy that has to be there, and to or from a local pod that the policy does not know: refused. A local pod
   is an address of this node's leases that is not the node's own, whether behind a pod port or behind the node port.
3. From a pod port to a Service network to which no route leads: allowed, unjudged. It leaves by the node port. If the
   host translates it to a pod it comes in there again, from the pod's address, and is judged as what it is then. A pod
   port cannot claim another address (`check_pod`), and what has a route is never taken for a Service.
4. Everything else: the judge.

Limits. What the host masquerades has the node's address and is the node's (1): kube-proxy's hairpin and node ports, and
all Services with --masquerade-all. A Service whose endpoint is no pod (the API server's) leaves by the host's other
interfaces after 3 and is not judged. Pods that the host's kernel connects are
seen where it is made to lead them here (`fabric.steering`): by the bridge port, which is a pod port to all of this.
"""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import IPPROTO_ICMP, IPPROTO_ICMPV6
from cython.cimports.fabric.forward.enforcement import is_service
from cython.cimports.fabric.forward.flow_state import CUT
from cython.cimports.fabric.forward.flow_table import NODE_ENTRY, UNDERLAY_ENTRY
from cython.cimports.fabric.forward.snapshot import KIND_SHIFT, POD_PORT, POSITION_MASK, TO_PORT, Generation
from cython.cimports.fabric.policy.judge import (
    EGRESS,
    INGRESS,
    NO_RULE,
    RE_EVALUATE,
    PolicyEntry,
    Question,
    find_entry,
    judge,
)
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.routes.fib import NO_ROUTE, lookup4, lookup6


def ask(inner, packet, q):
    """The question that a packet is as the first of its flow; no later fragment."""
    ask_fragment(inner, q)
    if inner.protocol == IPPROTO_ICMP or inner.protocol == IPPROTO_ICMPV6:
        q.icmp_type = packet[inner.l4]
        q.icmp_code = packet[inner.l4 + 1]


def ask_fragment(inner, q):
    """The same of a later fragment, which has neither ports nor ICMP type."""
    q.family = inner.family
    q.protocol = inner.protocol
    q.icmp_type = 0
    q.icmp_code = 0
    q.sport = inner.sport
    q.dport = inner.dport
    q.src_high = inner.src_high
    q.src_low = inner.src_low
    q.dst_high = inner.dst_high
    q.dst_low = inner.dst_low
    q.live = False


def ask_again(flow, q):
    """From the side that began it. What a policy has cut is established no more: others cannot keep it."""
    origin: uint8_t = flow.origin
    other: uint8_t = 1 - origin
    icmp: cython.bint = flow.key.protocol == IPPROTO_ICMP or flow.key.protocol == IPPROTO_ICMPV6
    q.family = flow.key.family
    q.protocol = flow.key.protocol
    q.icmp_type = flow.icmp_type
    q.icmp_code = flow.icmp_code
    q.sport = 0 if icmp else flow.key.port[origin]
    q.dport = 0 if icmp else flow.key.port[other]
    q.src_high = flow.key.high[origin]
    q.src_low = flow.key.low[origin]
    q.dst_high = flow.key.high[other]
    q.dst_low = flow.key.low[other]
    q.live = not flow.standing & CUT


def police(g, q, entry, a):
    """PASS or the drop reason of a new flow."""
    settled: cython.bint = False
    reason: uint8_t = DropReason.PASS
    a.allowed = True
    a.asked = False
    a.established = RE_EVALUATE
    a.egress_rule = NO_RULE
    a.ingress_rule = NO_RULE
    if not g.rules.active:
        return DropReason.PASS
    reason = gate(g, q, entry, cython.address(settled))
    if settled:
        return reason
    judge(g.rules.tables, q, a)
    a.asked = True
    if a.allowed:
        return DropReason.PASS
    # Ingress is asked only when egress allows.
    return DropReason.POLICY_EGRESS if a.ingress_rule == NO_RULE else DropReason.POLICY_INGRESS


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def is_pod(route: uint32_t, own: cython.bint) -> cython.bint:
    """Whether an address with this route is that of a pod of this node."""
    return route >> KIND_SHIFT == TO_PORT and not own


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def is_unknown(
    g: cython.pointer(cython.const[Generation]), route: uint32_t, own: cython.bint, family: uint8_t,
    high: uint64_t, low: uint64_t,
) -> cython.bint:
    """Whether the address is that of a local pod for which the policy was not compiled.

    One that it has for a pod of another node, or of none, is among them: no rules of its own were compiled.
    """
    if not is_pod(route, own):
        return False
    entry: cython.pointer(cython.const[PolicyEntry]) = find_entry(g.rules.tables, family, high, low)
    # Behind these ports an address of the lease may be the host's, such as a bridge's.
    return not entry.local and not (entry.is_node and g.ports[route & POSITION_MASK].kind != POD_PORT)


def gate(g, q, entry, settled):
    """What is decided before the rules are asked; `settled` says whether anything was."""
    source: uint32_t = route_to(g, q.family, q.src_high, q.src_low)
    target: uint32_t = route_to(g, q.family, q.dst_high, q.dst_low)
    from_own: cython.bint = is_own(g, q.family, q.src_high, q.src_low)
    to_own: cython.bint = is_own(g, q.family, q.dst_high, q.dst_low)
    settled[0] = True
    if entry == NODE_ENTRY and from_own:
        return DropReason.PASS
    if g.rules.tables == cython.NULL:
        return DropReason.POLICY_MISSING if is_pod(source, from_own) or is_pod(target, to_own) else DropReason.PASS
    if is_unknown(g, source, from_own, q.family, q.src_high, q.src_low) or is_unknown(
        g, target, to_own, q.family, q.dst_high, q.dst_low
    ):
        return DropReason.POLICY_UNKNOWN_POD
    if (
        target == cython.cast(uint32_t, NO_ROUTE)
        and entry != NODE_ENTRY
        and entry != UNDERLAY_ENTRY
        and is_service(g.rules, q.family, q.dst_high, q.dst_low)
    ):
        return DropReason.PASS
    settled[0] = False
    return DropReason.PASS


def police_fragment(g, inner, entry):
    """Without ports there is no verdict: it may pass where no rule would be asked."""
    q: Question
    settled: cython.bint = False
    reason: uint8_t
    if not g.rules.active:
        return DropReason.PASS
    ask_fragment(inner, cython.address(q))
    reason = gate(g, cython.address(q), entry, cython.address(settled))
    if settled:
        return reason
    src = find_entry(g.rules.tables, inner.family, inner.src_high, inner.src_low)
    dst = find_entry(g.rules.tables, inner.family, inner.dst_high, inner.dst_low)
    if src.owner and src.owner == dst.owner:
        return DropReason.PASS
    if src.stages_count[EGRESS] or (
        dst.stages_count[INGRESS] and not (src.is_node and src.node and src.node == dst.node)
    ):
        return DropReason.POLICY_FRAGMENT
    return DropReason.PASS


def may_report(g, flow, side, inner):
    """`side` is the one that the error goes to."""
    if inner.src_low == flow.key.low[1 - side] and inner.src_high == flow.key.high[1 - side]:
        return True
    return g.rules.tables == cython.NULL or not find_entry(
        g.rules.tables, inner.family, inner.src_high, inner.src_low
    ).owner


def is_own(g, family, high, low):
    """Whether this is an address of the node itself, on the overlay or the underlay."""
    if family == 4:
        return low != 0 and (low == g.address4 or low == g.underlay4)
    return high != 0 and (
        (low == g.low6 and high == g.high6) or (low == g.underlay_low6 and high == g.underlay_high6)
    )


def route_to(g, family, high, low):
    """Route value of an address."""
    return lookup4(g.fib, cython.cast(uint32_t, low)) if family == 4 else lookup6(g.fib, high, low)
