# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""How far a flow has come, how long it may be silent, and what it is worth when memory is short.

TCP is followed by its flags alone, as far as is needed to tell a half-open flow from an established and from a closing
one. Nothing becomes established by packets of one side: the other side has to answer. Times are those of Linux'
conntrack (nf_conntrack_proto_*.c), but a half-open TCP flow lives 10 s only, and SCTP and other protocols have the
generic 600 s.

Limits: sequence numbers are not looked at.
"""

from cython.cimports.encap.inner import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP


def first_state(protocol, flags):
    """State of a flow after its first packet."""
    if protocol != IPPROTO_TCP:
        return UNREPLIED
    return SYN_SENT if flags & (TCP_SYN | TCP_ACK) == TCP_SYN else PICKED_UP


def next_state(state, flags, reply):
    """State after one more packet."""
    if state <= REPLIED:
        return REPLIED if reply else state
    if flags & TCP_RST:
        return RESET
    if state == SYN_SENT:
        return SYN_RECEIVED if reply else state
    if state == PICKED_UP:
        return TCP_ESTABLISHED if reply else state
    if flags & TCP_FIN and state in (SYN_RECEIVED, TCP_ESTABLISHED):
        return FIN_REPLY if reply else FIN_ORIGIN
    if state == SYN_RECEIVED:
        return state if reply or flags & TCP_SYN or not flags & TCP_ACK else TCP_ESTABLISHED
    if flags & TCP_FIN and ((state == FIN_ORIGIN and reply) or (state == FIN_REPLY and not reply)):
        return FIN_BOTH
    return state


def class_of(state):
    """What the flow is worth."""
    if state == REPLIED:
        return FlowClass.ANSWERED
    if state in (TCP_ESTABLISHED, DENIED):
        return FlowClass.ESTABLISHED
    if state >= FIN_ORIGIN:
        # A half-closed connection may still carry data for hours.
        return FlowClass.ESTABLISHED if state <= FIN_REPLY else FlowClass.CLOSING
    return FlowClass.EMBRYONIC


def denied_state(state):
    """State of a flow that policy cuts. It keeps its place as it did before: nobody can push a cut connection out."""
    return DENIED if class_of(state) >= FlowClass.ANSWERED else DENIED_EARLY


def gives_way(state):
    """Closing and cut connections do."""
    return state == DENIED or class_of(state) == FlowClass.CLOSING


def timeout_of(state, protocol):
    """Seconds of silence that end it.

    A connection that policy has cut is remembered as long as its ends may take it for open, and a keepalive (2 h in
    Linux) counts as a packet: if it were forgotten, a packet of the side that did not begin could begin it anew, the
    other way round.
    """
    if protocol == IPPROTO_TCP:
        if state in (SYN_SENT, SYN_RECEIVED, RESET):
            return 10
        if state == TCP_ESTABLISHED:
            return 432_000
        if state == DENIED:
            return 14_400
        return 300 if state == PICKED_UP else 120
    if protocol == IPPROTO_UDP:
        return 120 if state in (REPLIED, DENIED) else 30
    if protocol in (IPPROTO_ICMP, IPPROTO_ICMPV6):
        return 30
    return 600
