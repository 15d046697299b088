"""`networking.k8s.io/v1` NetworkPolicy, read with the API's own meaning of empty and missing.

Source: kubernetes `staging/src/k8s.io/api/networking/v1/types.go`, `pkg/apis/networking/{v1/defaults,validation}`.
"""

from __future__ import annotations

from typing import Any

from fabric.policy.errors import PolicyError
from fabric.policy.fields import Fields, directions, network, whole_number
from fabric.policy.rules import (
    ANY_TRAFFIC,
    DEFAULT,
    EVERYWHERE,
    KUBERNETES_ORDER,
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


def read_network_policy(namespace: str, name: str, spec: Fields) -> Policy:
    spec.only("podSelector", "policyTypes", "ingress", "egress")
    types = _policy_types(spec)
    subject = Identity(namespace=namespace, pods=read_selector(spec.child("podSelector")))
    ingress = tuple(_read_rule(rule, "from", namespace) for rule in spec.children("ingress"))
    egress = tuple(_read_rule(rule, "to", namespace) for rule in spec.children("egress"))
    rules = (ingress if "Ingress" in types else None, egress if "Egress" in types else None)
    order = (KUBERNETES_ORDER, f"{namespace}/{name}")
    return Policy("NetworkPolicy", namespace, name, DEFAULT.name, order, subject, rules)


def _policy_types(spec: Fields) -> set[str]:
    if given := directions(spec, "policyTypes"):
        return given
    return {"Ingress", "Egress"} if spec.items("egress") else {"Ingress"}


def _read_rule(fields: Fields, side: str, namespace: str) -> Rule:
    fields.only(side, "ports")
    peers = tuple(_read_peer(peer, namespace) for peer in fields.children(side)) or (EVERYWHERE,)
    ports = tuple(_read_port(port) for port in fields.children("ports")) or ANY_TRAFFIC
    return Rule(Action.ALLOW, peers, traffic=Traffic(ports), path=fields.path)


def _read_peer(fields: Fields, namespace: str) -> Peer:
    fields.only("podSelector", "namespaceSelector", "ipBlock")
    pods, namespaces = "podSelector" in fields, "namespaceSelector" in fields
    if "ipBlock" in fields:
        if pods or namespaces:
            raise PolicyError(fields.path, "has ipBlock beside a selector; they exclude each other")
        return _read_block(fields.child("ipBlock"))
    if not pods and not namespaces:
        raise PolicyError(fields.path, "has none of podSelector, namespaceSelector, ipBlock")
    return Peer(
        Identity(
            namespace=None if namespaces else namespace,
            namespaces=read_selector(fields.child("namespaceSelector")) if namespaces else None,
            pods=read_selector(fields.child("podSelector")) if pods else EVERYTHING,
        )
    )


def _read_block(fields: Fields) -> Peer:
    fields.only("cidr", "except")
    block = network(fields.text("cidr"), fields.at("cidr"), strict=True)
    exceptions = fields.networks("except", strict=True)
    for i, inner in enumerate(exceptions):
        if inner.version != block.version or inner == block or not inner.subnet_of(block):  # type: ignore[arg-type]
            raise PolicyError(f"{fields.at('except')}[{i}]", f"{inner} is not strictly within {block}")
    return Peer(nets=(block,), not_nets=exceptions)


def _read_port(fields: Fields) -> PortMatch:
    fields.only("protocol", "port", "endPort")
    protocol = PROTOCOLS[fields.choice("protocol", "TCP", "UDP", "SCTP", default="TCP")]
    port: Any = fields.value.get("port")
    if "endPort" in fields:
        if not isinstance(port, int):
            raise PolicyError(fields.at("endPort"), "needs a numeric port beside it")
        low = whole_number(port, fields.at("port"), 1, LAST_PORT)
        return PortMatch(protocol, low, whole_number(fields.value["endPort"], fields.at("endPort"), low, LAST_PORT))
    if port is None:
        return PortMatch(protocol)
    if isinstance(port, str):
        if not port:
            raise PolicyError(fields.at("port"), "is an empty name")
        return PortMatch(protocol, name=port)
    low = whole_number(port, fields.at("port"), 1, LAST_PORT)
    return PortMatch(protocol, low, low)
