"""`policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy: the Admin and Baseline tiers.

What this version does not know in a rule (another kind of peer or protocol, domain names) makes the rule fail closed,
as the API asks: an Accept rule matches nothing, a Deny or Pass rule denies everything. The policy carries a warning
then; it is not refused, since its other rules must hold. Source: network-policy-api `apis/v1alpha2`.
"""

from __future__ import annotations

from collections.abc import Iterator

from fabric.policy.errors import PolicyError
from fabric.policy.fields import Fields
from fabric.policy.rules import (
    ADMIN,
    ANY_TRAFFIC,
    BASELINE,
    EVERYWHERE,
    LAST_PORT,
    PROTOCOLS,
    Action,
    Identity,
    Peer,
    Policy,
    PortMatch,
    Rule,
    Traffic,
)
from fabric.policy.selectors import EVERYTHING, read_selector

ACTIONS = {"Accept": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS}
MAX_ITEMS = 25
NOT_SELECTABLE = ("networks", "nodes", "domainNames")


class _UnknownError(Exception):
    """Something in a rule that fails closed; the message says what."""


def read_cluster_policy(name: str, spec: Fields) -> Policy:
    spec.only("tier", "priority", "subject", "ingress", "egress")
    tier = ADMIN if spec.choice("tier", "Admin", "Baseline") == "Admin" else BASELINE
    priority = spec.number("priority", 0, 1_000)
    subject = _read_subject(spec.child("subject"))
    warnings: list[str] = []
    ingress = tuple(_read_rule(rule, "from", warnings) for rule in spec.children("ingress", MAX_ITEMS))
    egress = tuple(_read_rule(rule, "to", warnings) for rule in spec.children("egress", MAX_ITEMS))
    order = (float(priority), name)
    return Policy(
        "ClusterNetworkPolicy", "", name, tier, order, subject, (ingress or None, egress or None), tuple(warnings)
    )


def _read_subject(fields: Fields) -> Identity:
    fields.only("namespaces", "pods")
    if ("namespaces" in fields) == ("pods" in fields):
        raise PolicyError(fields.path, "needs exactly one of namespaces, pods")
    return _read_identity(fields)


def _read_identity(fields: Fields) -> Identity:
    if "namespaces" in fields:
        return Identity(namespaces=read_selector(fields.child("namespaces")), pods=EVERYTHING)
    pods = fields.child("pods")
    pods.only("namespaceSelector", "podSelector")
    if "podSelector" not in pods:
        raise PolicyError(pods.at("podSelector"), "is missing")
    return Identity(
        namespaces=read_selector(pods.child("namespaceSelector")), pods=read_selector(pods.child("podSelector"))
    )


def _read_rule(fields: Fields, side: str, warnings: list[str]) -> Rule:
    fields.only("name", "action", side, "protocols")
    action = ACTIONS[fields.choice("action", *ACTIONS)]
    name = fields.text("name", "")
    given = list(fields.children(side, MAX_ITEMS))
    if not given:
        raise PolicyError(fields.at(side), "is empty; a rule needs at least one peer")
    if "protocols" in fields and not fields.items("protocols", MAX_ITEMS):
        raise PolicyError(fields.at("protocols"), "is empty; leave it out for all protocols")
    try:
        peers = tuple(peer for item in given for peer in _read_peer(item, egress=side == "to"))
        matches = tuple(_read_protocol(item) for item in fields.children("protocols", MAX_ITEMS)) or ANY_TRAFFIC
    except _UnknownError as unknown:
        return _closed(action, fields.path, name, str(unknown), warnings)
    if any(match.name for match in matches) and any(kind in item for item in given for kind in NOT_SELECTABLE):
        raise PolicyError(fields.path, "has a named port beside networks, nodes or domainNames, which have none")
    return Rule(action, peers, traffic=Traffic(matches), path=fields.path, name=name)


def _closed(action: Action, path: str, name: str, unknown: str, warnings: list[str]) -> Rule:
    if action is Action.ALLOW:
        warnings.append(f"{unknown}: the Accept rule {path} matches nothing")
        return Rule(action, (), path=path, name=name)
    warnings.append(f"{unknown}: the rule {path} denies everything")
    return Rule(Action.DENY, (EVERYWHERE,), path=path, name=name)


def _read_peer(fields: Fields, *, egress: bool) -> Iterator[Peer]:
    known = ("namespaces", "pods", "nodes", "networks") if egress else ("namespaces", "pods")
    given = [key for key in fields.value if key in fields]
    unknown = [str(key) for key in given if key not in known]
    if unknown or not given:
        raise _UnknownError(f"{fields.path} has {'no peer' if not given else f'{unknown[0]}, which is not supported'}")
    if len(given) > 1:
        raise PolicyError(fields.path, f"has {' and '.join(map(str, given))}; exactly one is allowed")
    if "nodes" in fields:
        yield Peer(nodes=read_selector(fields.child("nodes")))
    elif "networks" in fields:
        nets = fields.networks("networks", MAX_ITEMS, strict=True)
        if not nets:
            raise PolicyError(fields.at("networks"), "is empty")
        yield Peer(nets=nets)
    else:
        yield Peer(_read_identity(fields))


def _read_protocol(fields: Fields) -> PortMatch:
    given = [str(key) for key in fields.value if key in fields]
    if len(given) != 1 or given[0] not in ("tcp", "udp", "sctp", "destinationNamedPort"):
        if len(given) > 1:
            raise PolicyError(fields.path, f"has {' and '.join(given)}; exactly one is allowed")
        raise _UnknownError(f"{fields.path} has {given[0] if given else 'no protocol'}, which is not supported")
    if given[0] == "destinationNamedPort":
        return PortMatch(name=fields.text("destinationNamedPort"))
    protocol = PROTOCOLS[given[0].upper()]
    inner = fields.child(given[0])
    if "destinationPort" not in inner:
        if any(key in inner for key in inner.value):
            raise _UnknownError(f"{inner.path} has {next(iter(inner.value))}, which is not supported")
        return PortMatch(protocol)
    inner.only("destinationPort")
    port = inner.child("destinationPort")
    port.only("number", "range")
    if ("number" in port) == ("range" in port):
        raise PolicyError(port.path, "needs exactly one of number, range")
    if "number" in port:
        number = port.number("number", 1, LAST_PORT)
        return PortMatch(protocol, number, number)
    ends = port.child("range")
    ends.only("start", "end")
    start = ends.number("start", 1, LAST_PORT)
    return PortMatch(protocol, start, ends.number("end", start, LAST_PORT))
