"""Calico's `projectcalico.org/v3` NetworkPolicy, GlobalNetworkPolicy, Tier, NetworkSet and GlobalNetworkSet.

Refused, since a rule would be wider or narrower than written: HTTP matches, services, service-account selectors, named
source ports, named ports in `notPorts`, and policies that are not applied to pods (`doNotTrack`, `preDNAT`).
Sources: Calico `api/pkg/apis/projectcalico/v3`, `libcalico-go/lib/backend/syncersv1/updateprocessors/rules.go`.
"""

from __future__ import annotations

import math
from typing import Any

from fabric.policy.calico_ports import read_traffic
from fabric.policy.errors import PolicyError
from fabric.policy.fields import Fields, directions
from fabric.policy.grammar import parse_selector
from fabric.policy.rules import (
    EVERYWHERE,
    Action,
    Identity,
    NetSet,
    Peer,
    Policy,
    Rule,
    Tier,
)
from fabric.policy.selectors import Selector

ACTIONS = {"Allow": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS, "Log": Action.LOG}
SPEC = ("tier", "order", "ingress", "egress", "selector", "types", "serviceAccountSelector", "performanceHints")
GLOBAL_SPEC = (*SPEC, "namespaceSelector", "doNotTrack", "preDNAT", "applyOnForward")
MAX_RULES = 1_024


def read_calico_policy(namespace: str, name: str, spec: Fields) -> Policy:
    """A NetworkPolicy, or with an empty `namespace` a GlobalNetworkPolicy."""
    spec.only(*(SPEC if namespace else GLOBAL_SPEC))
    for field in ("doNotTrack", "preDNAT", "applyOnForward"):
        if spec.value.get(field):
            raise PolicyError(spec.at(field), "is for host endpoints, which are not enforced")
    if spec.text("serviceAccountSelector", ""):
        raise PolicyError(spec.at("serviceAccountSelector"), "is not supported: service accounts have no labels here")
    order = _read_order(spec)
    types = _policy_types(spec)
    rules = [
        tuple(_read_rule(rule, namespace, egress=side == "egress") for rule in spec.children(side, MAX_RULES))
        for side in ("ingress", "egress")
    ]
    return Policy(
        "Calico NetworkPolicy" if namespace else "GlobalNetworkPolicy",
        namespace,
        name,
        spec.text("tier", "") or "default",
        (order, f"{namespace}/{name}"),
        _read_subject(spec, namespace),
        (rules[0] if "Ingress" in types else None, rules[1] if "Egress" in types else None),
    )


def read_tier(name: str, spec: Fields) -> Tier:
    spec.only("order", "defaultAction")
    action = ACTIONS[spec.choice("defaultAction", "Deny", "Pass", default="Deny")]
    return Tier((1, _read_order(spec), name), action, name)


def read_net_set(namespace: str, name: str, labels: dict[str, str], spec: Fields) -> NetSet:
    spec.only("nets")
    return NetSet(namespace, name, tuple(sorted(labels.items())), spec.networks("nets", 100_000))


def _read_order(spec: Fields) -> float:
    value: Any = spec.value.get("order")
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PolicyError(spec.at("order"), f"is {value!r}, not a number")
    return float(value)


def _policy_types(spec: Fields) -> set[str]:
    if given := directions(spec, "types"):
        return given
    ingress, egress = bool(spec.items("ingress")), bool(spec.items("egress"))
    return {name for name, there in (("Ingress", ingress or not egress), ("Egress", egress)) if there}


def _read_subject(spec: Fields, namespace: str) -> Identity:
    pods = _selector(spec, "selector")
    if namespace:
        return Identity(namespace=namespace, pods=pods, calico=True)
    namespaces, scoped = _namespaces(spec)
    return Identity(namespaces=namespaces, scoped=scoped, pods=pods, calico=True)


def _selector(fields: Fields, name: str) -> Selector:
    return parse_selector(fields.text(name, ""), fields.at(name))


def _namespaces(fields: Fields) -> tuple[Selector | None, bool | None]:
    """(selector, scoped) of a namespaceSelector; `all()` and `global()` are about being in a namespace at all."""
    text = fields.text("namespaceSelector", "").strip()
    if text in ("", "all()", "global()"):
        return None, {"": None, "all()": True, "global()": False}[text]
    if "global()" in text:
        raise PolicyError(fields.at("namespaceSelector"), "has global() within a larger expression: not supported")
    return parse_selector(text, fields.at("namespaceSelector")), True


def _read_rule(fields: Fields, namespace: str, *, egress: bool) -> Rule:
    fields.only(
        "action", "metadata", "ipVersion", "protocol", "notProtocol", "icmp", "notICMP", "source", "destination", "http"
    )
    if "http" in fields:
        raise PolicyError(fields.at("http"), "is not supported: requests are not looked into")
    family = fields.number("ipVersion", 4, 6) if "ipVersion" in fields else None
    if family == 5:
        raise PolicyError(fields.at("ipVersion"), "is 5, not 4 or 6")
    source = _read_entity(fields.child("source"), namespace, family)
    destination = _read_entity(fields.child("destination"), namespace, family)
    return Rule(
        ACTIONS[fields.choice("action", *ACTIONS)],
        (destination if egress else source,),
        own=source if egress else destination,
        traffic=read_traffic(fields),
        path=fields.path,
    )


def _read_entity(fields: Fields, namespace: str, family: int | None) -> Peer:
    fields.only(
        "nets", "notNets", "selector", "notSelector", "namespaceSelector", "ports", "notPorts", "serviceAccounts",
        "services",
    )  # fmt: skip
    if "services" in fields:
        raise PolicyError(fields.at("services"), "is not supported: endpoints of Services are not known here")
    nets = fields.networks("nets") if fields.items("nets") else None
    excluded = fields.text("notSelector", "").strip()
    peer = Peer(
        identity=_read_identity(fields, namespace),
        nets=nets,
        not_nets=fields.networks("notNets"),
        not_identity=Identity(pods=_selector(fields, "notSelector"), calico=True) if excluded else None,
        family=family,
    )
    return EVERYWHERE if peer == EVERYWHERE else peer


def _read_identity(fields: Fields, namespace: str) -> Identity | None:
    """Any selector, also notSelector alone, limits a namespaced policy's rule to its own namespace."""
    accounts = _accounts(fields)
    selected = bool(fields.text("selector", "").strip()) or accounts is not None
    named = bool(fields.text("namespaceSelector", "").strip())
    if not (selected or named or (namespace and fields.text("notSelector", "").strip())):
        return None
    namespaces, scoped = _namespaces(fields)
    pods = _selector(fields, "selector")
    own = namespace if namespace and not named else None
    return Identity(own, namespaces, scoped, pods, accounts, calico=True)


def _accounts(fields: Fields) -> frozenset[str] | None:
    if "serviceAccounts" not in fields:
        return None
    accounts = fields.child("serviceAccounts")
    accounts.only("names", "selector")
    if accounts.text("selector", ""):
        raise PolicyError(accounts.at("selector"), "is not supported: labels of service accounts are not known")
    names = accounts.items("names")
    if not names:
        return None
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise PolicyError(f"{accounts.at('names')}[{i}]", "is not a text")
    return frozenset(names)
