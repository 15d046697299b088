"""What the daemon answers about policy: the list, an explanation, the hits. `explanation` runs in a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from fabric.errors import FabricError
from fabric.forward.policies import Denied
from fabric.model import Network
from fabric.policing import objects
from fabric.policing.compiler import Known, Outcome
from fabric.policing.diff import NAMES
from fabric.policing.documents import Given
from fabric.policing.hits import RuleInForce
from fabric.policy import Pod, PolicySnapshot, explain
from fabric.policy.rules import PROTOCOLS, Action

SERVICE = (
    "the target is a Service's address: packets to it are not judged, but when they come back with the address of "
    "one of its pods; ask for that"
)
WORDS = {Action.ALLOW: "allowed", Action.DENY: "denied", Action.PASS: "passed on"}


class QuestionError(FabricError):
    """The question cannot be answered: an end that does not exist, a port that is none."""


def listing(outcome: Outcome, seen: Mapping[str, Given]) -> list[dict[str, Any]]:
    """One item for every policy object, the refused ones included; `seen` is what the sources have now."""
    found = []
    for key in sorted(outcome.accepted.keys() | outcome.staged.keys() | outcome.refused.keys()):
        if objects.is_around(key) and key not in outcome.refused:
            continue
        given = seen.get(key) or outcome.accepted.get(key) or outcome.staged.get(key)
        version, kind, namespace, name = key.rsplit("/", 3)
        reason = outcome.refused.get(key, "")
        state = "staged" if key in outcome.staged else "in force"
        if reason:
            state = "last good one" if key in outcome.accepted else "refused"
        warnings = list(outcome.warnings.get(key, ()))
        found.append(
            {
                "apiVersion": version,
                "kind": kind,
                "namespace": namespace,
                "name": name,
                "place": given.place() if given else "",
                "state": state,
                "reason": reason,
                "warnings": warnings,
            }
        )
    return found


def parse_port(text: str) -> tuple[str, int | None]:
    """`80`, `53/udp`, `icmp` to protocol and port. Raises QuestionError."""
    port, _, protocol = text.partition("/")
    if not port.isdecimal():
        port, protocol = "", port
    names = {name.lower(): name for name in PROTOCOLS}
    name = names.get((protocol or "tcp").lower())
    if name is None or (port and not 0 < int(port) < 65_536) or (not port and name in ("TCP", "UDP", "SCTP")):
        raise QuestionError(f"{text[:60]!r} is no port: give PORT[/PROTOCOL] such as 80, 53/udp, or icmp")
    return name, int(port) if port else None


def explanation(
    known: Known, source: str, target: str, port_text: str, services: Sequence[Network] = ()
) -> dict[str, Any]:
    """The verdict on a new flow from `source` to `target`, with every tier that was asked at both ends.

    An end is an address or a pod as `NAMESPACE/NAME`; of several addresses the pair of one family is taken, IPv4
    first. `services` are the networks of Service addresses. Raises QuestionError.
    """
    protocol, port = parse_port(port_text)
    ends = _ends(known, source), _ends(known, target)
    pair = next(((a, b) for a in ends[0][1] for b in ends[1][1] if a.version == b.version), None)
    if pair is None:
        raise QuestionError(f"{source} and {target} have no addresses of one family")
    pods = [end[0] for end in ends]
    judge = known.judge_for(frozenset(pod.key for pod in pods if pod is not None))
    result = explain(judge, str(pair[0]), str(pair[1]), protocol, port)
    places = _Places(known.accepted)
    tiers = [
        {
            "direction": tier.direction,
            "tier": tier.tier,
            "policies": list(tier.policies),
            "action": WORDS[tier.action],
            "rule": tier.rule or "",
            "place": places.of(tier.rule),
        }
        for tier in result.tiers
    ]
    return {
        "allowed": result.allowed,
        "rule": result.rule or "",
        "place": places.of(result.rule),
        "source": _described(known, pods[0], str(pair[0]), judge),
        "target": _described(known, pods[1], str(pair[1]), judge),
        "protocol": protocol,
        "port": port,
        "tiers": tiers,
        "note": SERVICE if any(pair[1] in network for network in services) else "",
    }


def _ends(known: Known, text: str) -> tuple[Pod | None, list[Any]]:
    """The pod, if it is one, and its addresses, IPv4 first."""
    try:
        address = ip_address(text)
    except ValueError:
        namespace, slash, name = text.partition("/")
        pod = known.pods.get((namespace, name) if slash else (objects.DEFAULT_NAMESPACE, text))
        if pod is None:
            raise QuestionError(f"no pod {text[:80]!r} is known: give NAMESPACE/NAME or an address") from None
        if not pod.addresses:
            raise QuestionError(f"pod {text} has no address yet") from None
        return pod, sorted(pod.addresses, key=lambda item: item.version)
    return known.pod_at(str(address)), [address]


def _described(known: Known, pod: Pod | None, address: str, judge: PolicySnapshot) -> dict[str, Any]:
    if pod is not None:
        what = f"pod {pod.namespace}/{pod.name}" + (" in its node's network" if pod.host_network else "")
        return {"address": address, "what": what, "node": pod.node, "here": pod.node == known.own}
    node = known.node_at(address)
    what = f"node {node}" if node else "outside"
    return {"address": address, "what": what, "node": node, "here": node == known.own}


class _Places:
    """Where a rule stands, from its description `NetworkPolicy default/web spec.ingress[0]`."""

    def __init__(self, accepted: Mapping[str, Given]) -> None:
        self._by_title = {objects.title(key): given for key, given in accepted.items()}

    def of(self, rule: str | None) -> str:
        words = (rule or "").split(" ")
        given = self._by_title.get(" ".join(words[:2]))
        return given.place(words[2] if len(words) > 2 else "") if given else ""


def denied(flows: Sequence[Denied], rules: Sequence[RuleInForce]) -> list[dict[str, Any]]:
    """One item for each denied flow, the newest last; `ports` of ICMP are its type and code."""
    places = {rule.description: rule.place for rule in rules}
    return [
        {
            "protocol": NAMES.get(flow.protocol, str(flow.protocol)), "source": str(flow.src),
            "destination": str(flow.dst), "ports": list(flow.ports), "direction": flow.direction, "rule": flow.rule,
            "place": places.get(flow.rule, ""),
        }
        for flow in flows
    ]  # fmt: skip


def hits(counts: Mapping[str, int], rules: Sequence[RuleInForce]) -> list[dict[str, Any]]:
    """One item for each rule in force, and for each that is not any more but was counted; most hits first."""
    places = {rule.description: rule.place for rule in rules}
    every = {**dict.fromkeys(places, 0), **counts}
    items = sorted(every.items(), key=lambda item: (-item[1], item[0]))
    return [{"rule": rule, "hits": count, "place": places.get(rule, ""), "staged": False} for rule, count in items]


def staged_hits(
    counts: Mapping[str, tuple[int, int]], staged: Sequence[RuleInForce], others: Sequence[RuleInForce]
) -> list[dict[str, Any]]:
    """What the staged policies would have done, most changes first: one item for each of their rules, and for what else
    would have decided on a flow the other way, such as the end of a tier. `others` are the rules in force.
    """
    own = {rule.description: rule for rule in staged}
    known = {**{rule.description: rule for rule in others}, **own}
    every = dict.fromkeys(own, (0, 0)) | {rule: both for rule, both in counts.items() if rule in own or both[1]}
    items = sorted(every.items(), key=lambda item: (-item[1][1], -item[1][0], item[0]))
    return [
        {"rule": rule, "hits": count, "place": known[rule].place if rule in known else "", "staged": True,
         "action": known[rule].action if rule in known else "deny", "changes": changes}
        for rule, (count, changes) in items
    ]  # fmt: skip
