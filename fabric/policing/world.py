"""Everything that policy is compiled from, merged from who knows it best. Pure.

A pod on this node has the addresses of its endpoint record, whatever an API says: the record is what is connected. Its
labels and named ports are those of its Pod object where there is one, else the runtime's. An endpoint without a pod's
name (a port made by hand) is the pod of the port's name in namespace `default`. No other pod can have the address of an
endpoint. A pod without an endpoint that has an address of our subnet is on this node, whatever its object says: its
rules are compiled before its port is there. Where an API has all pods, one that it does not have (yet) is none, and its
endpoint stays closed.

A node has the addresses that its lease and its Node object say: public ones, and of each subnet the address itself
(the node port's) and the first host's (a bridge's). A lease without a node's name belongs to the Node object with one
of its public addresses, else it is the node of the lease's key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fabric.model import Endpoint, Lease, Network
from fabric.policing.documents import Given
from fabric.policing.objects import DEFAULT_NAMESPACE
from fabric.policy import Node, Pod
from fabric.policy.model import Address

PodKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class OwnNode:
    """This node: its name in the API (or --node-name), all addresses it sends from, and its pods' networks."""

    name: str
    addresses: tuple[Address, ...] = ()
    subnets: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """The inputs of one compilation. `objects` by key (`objects.normal`). With `strict` a pod of which only an endpoint
    is known does not exist yet: an API has its object, with the labels that decide about it.
    """

    own: OwnNode
    objects: Mapping[str, Given] = field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()
    leases: tuple[Lease, ...] = ()
    strict: bool = False


def lease_addresses(lease: Lease) -> tuple[Address, ...]:
    """All addresses from which the node of this lease may send."""
    found: list[Address | None] = [lease.public_ip, lease.public_ipv6]
    for subnet in (lease.subnet, lease.ipv6_subnet):
        if subnet is not None:
            found.append(subnet.network_address)
            if subnet.num_addresses > 2:
                found.append(subnet.network_address + 1)
    return tuple(address for address in found if address is not None)


def merged_nodes(own: OwnNode, objects: Iterable[Node], leases: Iterable[Lease]) -> dict[str, Node]:
    """All nodes by name."""
    found = {node.name: node for node in objects}
    named = {address: node.name for node in found.values() for address in node.addresses}
    _add(found, own.name, own.addresses)
    for lease in leases:
        by_address = [named.get(address) for address in (lease.public_ip, lease.public_ipv6) if address]
        name = lease.node or next(filter(None, by_address), lease.key)
        if not set(lease_addresses(lease)) <= set(own.addresses):  # our own lease is `own`
            _add(found, name, lease_addresses(lease))
    return found


def _add(found: dict[str, Node], name: str, addresses: tuple[Address, ...]) -> None:
    known = found.get(name) or Node(name)
    found[name] = replace(known, addresses=tuple(dict.fromkeys((*known.addresses, *addresses))))


class Endpoints:
    """The endpoints of this node by pod, to merge pods one by one."""

    def __init__(self, own: OwnNode, endpoints: Iterable[Endpoint], strict: bool = False) -> None:
        self._own = own
        self._strict = strict
        self._by_pod: dict[PodKey, list[Endpoint]] = {}
        for endpoint in endpoints:
            self._by_pod.setdefault(endpoint_pod(endpoint), []).append(endpoint)
        self._taken = {a for found in self._by_pod.values() for endpoint in found for a in endpoint.addresses}

    def keys(self) -> Iterable[PodKey]:
        """The pods that have endpoints."""
        return self._by_pod.keys()

    def merged(self, key: PodKey, pod: Pod | None) -> Pod | None:
        """The pod that the object `pod` (None: there is none) and the endpoints make together; None: no pod."""
        here = self._by_pod.get(key)
        if here is None:
            return self._elsewhere(pod) if pod is not None and not pod.host_network else pod
        if pod is None and self._strict and here[0].pod_name:
            return None
        known = pod or Pod(*key, labels=dict(here[0].labels))
        addresses = tuple(address for endpoint in here for address in endpoint.addresses)
        return replace(known, addresses=addresses, node=self._own.name, host_network=False)

    def _elsewhere(self, pod: Pod) -> Pod:
        """A pod without an endpoint. With an address of our subnet it is ours, whatever its object says."""
        if not self._taken.isdisjoint(pod.addresses):
            pod = replace(pod, addresses=tuple(a for a in pod.addresses if a not in self._taken))
        if pod.node != self._own.name and any(a in n for n in self._own.subnets for a in pod.addresses):
            pod = replace(pod, node=self._own.name)
        return pod


def merged_pods(own: OwnNode, objects: Mapping[PodKey, Pod], endpoints: Iterable[Endpoint]) -> dict[PodKey, Pod]:
    """All pods by namespace and name."""
    known = Endpoints(own, endpoints)
    merged = {key: known.merged(key, objects.get(key)) for key in (*objects, *known.keys())}
    return {key: pod for key, pod in merged.items() if pod is not None}


def endpoint_pod(endpoint: Endpoint) -> PodKey:
    """Which pod an endpoint belongs to."""
    if endpoint.pod_name:
        return endpoint.pod_namespace or DEFAULT_NAMESPACE, endpoint.pod_name
    return DEFAULT_NAMESPACE, endpoint.name
