"""What the daemon says about itself: the ready line and the answers of the control socket."""

from __future__ import annotations

import os
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from fabric.daemon.control import Method
from fabric.errors import DataplaneError, FabricError
from fabric.explain import door as explaining
from fabric.leases import parse_mac
from fabric.model import Address, KernelDevice, KernelRoute, Lease
from fabric.policing import door as policing
from fabric.store.base import Snapshot

if TYPE_CHECKING:
    from fabric.calc import Verdict
    from fabric.daemon.interface import External
    from fabric.daemon.node import Node
    from fabric.daemon.pods import Pods


FLOWS = 1000
"""Connections in one answer."""


def methods(node: Node) -> Mapping[str, Method]:
    """The control socket's methods."""
    return {
        "status": lambda params, passed: status(node),
        "leases": lambda params, passed: leases(node),
        "peers": lambda params, passed: peers(node),
        "routes": lambda params, passed: routes(node),
        "counters": lambda params, passed: counters(node),
        "port.add": lambda params, passed: policing.add_port(node, _ready(node), params, passed),
        "flows": lambda params, passed: flows(node, params),
        "drops": lambda params, passed: drops(node, params),
        "explain": lambda params, passed: explaining.explain(node, peers(node), params),
        "port.delete": lambda params, passed: port_delete(node, params),
        "port.counters": lambda params, passed: node.forwarding.dataplane.port_counters(),
        "port.list": lambda params, passed: [item for item in node.pods.endpoints() if item["kind"] in ("tun", "tap")],
        "endpoint.add": lambda params, passed: policing.add_endpoint(node, params),
        "endpoint.delete": lambda params, passed: endpoint_delete(node, params),
        "endpoint.list": lambda params, passed: node.pods.endpoints(),
        "stop": lambda params, passed: stop(node),
        **policing.methods(node),
    }


def ready_line(node: Node) -> str:
    """One line: what was chosen and why."""
    external, lease, forwarding = node.external, node.cluster.own_lease, node.forwarding
    public = ",".join(str(address) for address in external.public)
    subnets = ",".join(str(subnet) for subnet in (lease.subnet, lease.ipv6_subnet) if subnet)
    backend = node.conf.backend
    vni = f" VNI {backend.vni}" if backend.type == "vxlan" else ""
    port = f" on UDP {backend.port}" if backend.port else ""
    device = f"device {node.device}" if backend.encapsulation else "pods"
    offloads = forwarding.dataplane.status().get("offloads")
    shown = " ".join(f"{name}={_word(value)}" for name, value in offloads.items()) if isinstance(offloads, dict) else ""
    peers_used = sum(verdict.used for verdict in forwarding.outcome.verdicts) if forwarding.outcome else 0
    rejected = f", not {'; not '.join(external.rejected)}" if external.rejected else ""
    return (
        f"ready after {monotonic() - node.started:.3f} s: interface {external.name} ({external.why},"
        f" MTU {external.mtu}{rejected}), public IP {public}, subnet {subnets}, {backend.type}"
        f"{' by the kernel' if backend.kernel else ''}{vni}{port}, {device} MTU {node.mtu}, {peers_used} peers,"
        f" offloads {shown or 'none'}"
    )


def moved_line(before: External, after: External, mtu: int) -> str:
    """One line about a change of the interface towards the other nodes: what is different, and the new overlay MTU."""
    changes = [f"interface {after.name} ({after.why}) instead of {before.name}"] if after.name != before.name else []
    pairs = (("address", before.underlay, after.underlay), ("public IP", before.public, after.public))
    for what, old, new in pairs:
        if new != old:
            changes.append(f"{what} {', '.join(map(str, new))} instead of {', '.join(map(str, old))}")
    if after.mtu != before.mtu:
        changes.append(f"MTU {after.mtu} instead of {before.mtu}, pods {mtu}")
    return f"interface {before.name} changed: {'; '.join(changes)}"


def status(node: Node) -> dict[str, Any]:
    """Everything about this node at a glance."""
    external, backend = node.external, node.conf.backend
    lease, forwarding = node.cluster.own_lease, node.forwarding
    verdicts = forwarding.outcome.verdicts if forwarding.outcome else ()
    return {
        "version": _version(),
        "pid": os.getpid(),
        "node": lease.node or node.options.node_name,
        "ready": node.ready,
        "uptime": round(monotonic() - node.started, 3),
        "interface": external.name,
        "underlay": [str(address) for address in external.underlay],
        "public": [str(address) for address in external.public],
        "subnets": [str(subnet) for subnet in (lease.subnet, lease.ipv6_subnet) if subnet],
        "lease": {"key": lease.key, "expires": lease.expires},
        "device": node.device,
        "mtu": node.mtu,
        "backend": {"type": backend.type, "kernel": backend.kernel, "vni": backend.vni, "port": backend.port},
        "store": _store(node),
        "health": _health(node),
        "peers": {
            "used": sum(1 for verdict in verdicts if verdict.used),
            "quarantined": sum(1 for verdict in verdicts if not verdict.used),
        },
        "kernel": {
            "problems": [*(forwarding.keeper.problems() if forwarding.keeper else ()), *node.steering.problems()]
        },
        "firewall": _firewall(node),
        "policy": policing.status(node.policy),
        "tasks": node.supervisor.names(),
        "dataplane": forwarding.dataplane.status(),
    }


def leases(node: Node) -> list[dict[str, Any]]:
    """One object per lease that is known, our own among them (`own`), the unreadable ones included."""
    now, own = node.clock(), node.cluster.own_lease
    known = {item["key"]: item for item in peers(node)}
    mine = {**_lease(own), "state": "own", "reason": "", "way": ""}
    return [
        {
            **item,
            "own": item is mine,
            "owner": item.get("node") or ", ".join(item["public"]),
            "ttl": None if item.get("expires") is None else round(max(0.0, item["expires"] - now), 3),
        }
        for item in sorted([mine, *known.values()], key=lambda item: str(item["key"]))
    ]


def peers(node: Node) -> list[dict[str, Any]]:
    """One object per foreign lease, the unreadable ones included: how it is reached, or why it is not.

    `traffic` is what the data path has carried to and from it; None where it carries nothing.
    """
    remembered = node.cluster.table.remembered()
    counts = node.forwarding.dataplane.peer_counters()
    found = [
        {**_peer(verdict, verdict.lease.key in remembered), "traffic": _traffic(verdict.lease, counts)}
        for verdict in (node.forwarding.outcome.verdicts if node.forwarding.outcome else ())
    ]
    known = {item["key"] for item in found}
    for key, reason in node.cluster.table.problems().items():
        if key not in known:
            bad = {"key": key, "state": "malformed", "reason": reason, "way": "", "subnets": [], "public": []}
            found.append({**bad, "traffic": None})
    return found


def routes(node: Node) -> list[dict[str, Any]]:
    """The routes that the kernel has to hold, one per peer prefix."""
    if node.forwarding.outcome is None:
        return []
    outcome = node.forwarding.outcome
    peers = {prefix: peer for peer in outcome.forwarding.peers for prefix in peer.prefixes}
    return [
        {
            "prefix": str(route.prefix),
            "via": str(route.gateway),
            "device": device.name,
            "underlay": str(peers[route.prefix].underlay if route.prefix in peers else underlay_of(device, route)),
            "mtu": peers[route.prefix].mtu if device.role == "node port" else device.mtu or node.external.mtu,
        }
        for device in outcome.kernel.devices
        for route in device.routes
    ]


def underlay_of(device: KernelDevice, route: KernelRoute) -> Address:
    """Where a route of the kernel's leads: itself a public address, or the VTEP that answers for its gateway."""
    macs = {neighbour.address: neighbour.mac for neighbour in device.neighbours}
    vteps = {entry.mac: entry.underlay for entry in device.fdb}
    return vteps[macs[route.gateway]] if device.vxlan else route.gateway


def counters(node: Node) -> dict[str, int]:
    """The data path's counters and the control plane's few own ones."""
    keeper = node.forwarding.keeper
    own = {
        "control_malformed_leases": node.cluster.table.malformed,
        **({f"kernel_{name}": value for name, value in keeper.counters().items()} if keeper else {}),
        **{f"firewall_{name}": value for name, value in node.firewall.traffic.counters().items()},
        **node.pods.counters(),
    }
    return {**node.forwarding.dataplane.counters(), **own}


def flows(node: Node, params: Mapping[str, Any]) -> dict[str, Any]:
    """A page of the flow table: at most `limit` connections from `cursor` on; `next` is the next page's cursor."""
    cursor, limit = params.get("cursor", 0), params.get("limit", FLOWS)
    if type(cursor) is not int or type(limit) is not int or not 0 <= cursor < 1 << 31 or not 1 <= limit <= FLOWS:
        raise FabricError(f"flows: cursor must be a whole number from 0, limit one from 1 to {FLOWS}")
    found, after = node.forwarding.dataplane.flows(cursor, limit)
    return {"flows": found, "next": after}


def drops(node: Node, params: Mapping[str, Any]) -> dict[str, Any]:
    """Packets that were refused after the one of number `since`; asking has them taken down for a few seconds."""
    since = params.get("since")
    if since is not None and type(since) is not int:
        raise FabricError("drops: since must be a whole number")
    return node.drops.read(since)


def port_delete(node: Node, params: Mapping[str, Any]) -> dict[str, Any]:
    """`name`."""
    _ready(node).delete_port(_text(params, "name", "port.delete"))
    return {}


def endpoint_delete(node: Node, params: Mapping[str, Any]) -> dict[str, Any]:
    """`name`."""
    node.pods.delete_endpoint(_text(params, "name", "endpoint.delete"))
    return {}


def stop(node: Node) -> dict[str, Any]:
    """Stop the daemon, orderly."""
    node.stop_requested.set()
    return {"stopping": True}


def _ready(node: Node) -> Pods:
    if not node.ready:
        raise DataplaneError("the data path is not ready yet")
    return node.pods


def _text(params: Mapping[str, Any], name: str, method: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise FabricError(f"{method}: {name} must be a non-empty string of printable characters")
    return value


def _health(node: Node) -> dict[str, Any]:
    """Ready, where that can be asked over HTTP, and what is wrong besides store, kernel and firewall."""
    options = node.options
    endpoint = f"{options.healthz_ip}:{options.healthz_port}" if options.healthz_port else None
    dead = [f"task {name} is not running" for name, alive in node.supervisor.names().items() if not alive]
    extension = node.extension.problems() if node.extension else ()
    problems = [*filter(None, (node.uplink.problem(),)), *dead, *extension]
    return {"ready": node.ready, "endpoint": endpoint, "problems": problems}


def _firewall(node: Node) -> dict[str, Any]:
    """What rules the host is to have for pods, and what is wrong with them."""
    traffic = node.options.traffic
    return {
        "masquerade": traffic.masquerade,
        "forward_rules": traffic.forward_rules,
        "problems": list(node.firewall.traffic.problems()),
    }


def _store(node: Node) -> dict[str, Any]:
    state = node.cluster.state
    available = isinstance(state, Snapshot)
    return {
        "kind": node.cluster.source.kind,
        "url": node.cluster.source.url,
        "available": available,
        "reason": "" if state is None or isinstance(state, Snapshot) else state.reason,
        "revision": state.revision if isinstance(state, Snapshot) else None,
        "malformed": len(node.cluster.table.problems()),
    }


def _peer(verdict: Verdict, remembered: bool) -> dict[str, Any]:
    state = "quarantined" if not verdict.used else "remembered" if remembered else "used"
    return {**_lease(verdict.lease), "state": state, "reason": verdict.reason, "way": verdict.way}


def _traffic(lease: Lease, counts: Mapping[str, Mapping[str, int]]) -> dict[str, int] | None:
    """Of a lease's subnets together: the data path has one peer for each."""
    found = [counts[name] for subnet in (lease.subnet, lease.ipv6_subnet) if subnet and (name := str(subnet)) in counts]
    return {name: sum(each[name] for each in found) for name in found[0]} if found else None


def _lease(lease: Lease) -> dict[str, Any]:
    macs = [mac for mac in (parse_mac(lease.backend_data), parse_mac(lease.backend_v6_data)) if mac]
    return {
        "key": lease.key,
        "node": lease.node,
        "subnets": [str(subnet) for subnet in (lease.subnet, lease.ipv6_subnet) if subnet],
        "public": [str(address) for address in (lease.public_ip, lease.public_ipv6) if address],
        "backend": lease.backend_type or "udp",
        "macs": [mac.hex(":") for mac in macs],
        "expires": lease.expires,
    }


def _word(value: object) -> str:
    return "on" if value is True else "off" if value is False else str(value)


def _version() -> str:
    from fabric.flags import version

    return version()
