# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Flows that were let begin and are judged again under other rules: what they are from then on.

Theory of operation. Who refuses such a flow chooses (`podfabric.io/established`, `Answer.established`), and the flow
remembers what came of it (`Flow.standing`), so that the next packet only compares numbers again.

- *keep*: the flow goes on, under these rules and all that would keep it, until it ends or somebody else refuses it. A
  SYN of the same ends is another connection, which `follow` has judged as one.
- *re-evaluate*: it is cut. It keeps its place, and nothing of it passes in either direction until it has been silent
  for long or the rules let it begin again. What is cut is not established: rules that would keep it come too late.
- *reset*: it is cut, and refused packets are answered (`cut`), within a rate, in the first OWED_SECONDS seconds in
  which their side sends any. One answer would not do. The number of an RST may be old: of a transfer, acknowledgments
  for all that is under way are still to come, and only the last one names the number that its sender expects then. Or
  the end answers with a challenge ACK that has the right one for the next (RFC 5961 section 3.2).

A refusal in which no rule was asked, such as of a pod that is not known for a moment, changes none of this.

Limits: what is kept is told from what is new by TCP's SYN alone. Other protocols go on for as long as their ends send
by the same ports.
"""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import IPPROTO_TCP
from cython.cimports.fabric.forward.denials import note_denial
from cython.cimports.fabric.forward.enforcement import count_rules, count_staged
from cython.cimports.fabric.forward.flow_state import (
    CUT,
    KEPT,
    OWED,
    OWED_SECONDS,
    OWED_SHIFT,
    PICKED_UP,
    TOLD,
    UNREPLIED,
    denied_state,
)
from cython.cimports.fabric.forward.flow_table import NO_RULE, FlowRest
from cython.cimports.fabric.forward.flow_track import ANSWER, REFUSED_SHIFT
from cython.cimports.fabric.forward.icmp import allow
from cython.cimports.fabric.forward.policing import ask_again, police
from cython.cimports.fabric.policy.judge import KEEP, RESET, Answer, Question
from cython.cimports.fabric.policy.judge import NO_RULE as NOBODY
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.posix.time import clock_gettime, timespec

CLOCK_MONOTONIC_COARSE = cython.declare(cython.int, 6)


def set_rules(rest, a):
    """The rules that decided."""
    rest.egress_rule = NO_RULE if a.egress_rule == NOBODY else a.egress_rule
    rest.ingress_rule = NO_RULE if a.ingress_rule == NOBODY else a.ingress_rule


def record(k, g, q, reason, a):
    """What policy has answered, for people."""
    if not g.rules.active:
        return
    count_rules(g.rules.hits, a)
    if g.rules.staged != cython.NULL and a.asked:
        count_staged(g.rules.staged, q, a)
    if reason != DropReason.PASS:
        note_denial(
            cython.address(k.denials), q, reason, a.egress_rule if a.ingress_rule == NOBODY else a.ingress_rule, k.now
        )


def goes_on(flow, reason, a):
    """Whether it is kept although it is refused."""
    by_rule: cython.bint = reason == DropReason.POLICY_EGRESS or reason == DropReason.POLICY_INGRESS
    return by_rule and a.established == KEEP and not flow.standing & CUT


def judge_again(k, g, flow, rest):
    """A flow that is cut stays in the table: forgotten, it could begin anew the other way round."""
    question: Question
    answer: Answer
    reason: uint8_t
    memset(rest, 0, cython.sizeof(FlowRest))
    ask_again(flow, cython.address(question))
    reason = police(g, cython.address(question), flow.entry[flow.origin], cython.address(answer))
    reason = settle(flow, reason, cython.address(answer))
    record(k, g, cython.address(question), reason, cython.address(answer))
    if reason != DropReason.PASS:
        flow.state = denied_state(flow.state)
    elif flow.refused:
        flow.state = PICKED_UP if flow.key.protocol == IPPROTO_TCP else UNREPLIED
    flow.refused = reason
    flow.policy = g.rules_number
    set_rules(rest, cython.address(answer))


def settle(flow, reason, a):
    """What follows from the answer to a question about a flow under way."""
    if reason == DropReason.PASS:
        flow.standing = 0
    elif goes_on(flow, reason, a):
        flow.standing = KEPT
        return DropReason.PASS
    elif reason == DropReason.POLICY_EGRESS or reason == DropReason.POLICY_INGRESS:
        flow.standing = flow.standing & ~KEPT | CUT
        if a.established == RESET and not flow.standing & TOLD:
            flow.standing |= TOLD | OWED
    return reason


def pass_second(flow, side):
    """`side` has sent in another second."""
    if flow.standing >> (OWED_SHIFT + 2 * side) & OWED_SECONDS:
        flow.standing -= cython.cast(uint8_t, 1 << (OWED_SHIFT + 2 * side))


def cut_verdict(k, flow, side, way):
    """Refused, on the `way` that it would have gone, and answered while answers are owed."""
    verdict: uint32_t = cython.cast(uint32_t, flow.refused) << REFUSED_SHIFT | way
    now: timespec
    if not flow.standing >> (OWED_SHIFT + 2 * side) & OWED_SECONDS:
        return verdict
    clock_gettime(CLOCK_MONOTONIC_COARSE, cython.address(now))
    if not allow(
        cython.address(k.limiter), flow.account,
        cython.cast(uint64_t, now.tv_sec) * 1_000_000_000 + cython.cast(uint64_t, now.tv_nsec),
    ):
        return verdict
    return verdict | ANSWER
