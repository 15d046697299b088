"""Service rules in a node's namespace, shaped as kube-proxy's nftables mode writes them (pkg/proxy/nftables).

Differences: endpoints are taken in turn (`numgen inc`) where kube-proxy takes them at random, so that a test meets all
of them, and NodePorts hold on every local address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fabric.lab import Lab, system

End = tuple[str, int]


@dataclass(frozen=True)
class Service:
    """`address` and `port` lead to one of `endpoints`; `affinity` keeps a client with its first one."""

    name: str
    protocol: str
    address: str
    port: int
    endpoints: Sequence[End]
    node_port: int = 0
    affinity: bool = False


def apply(lab: Lab, node: str, services: Sequence[Service]) -> None:
    """Replace the rules of this node, in the families that have services."""
    for family in ("ip", "ip6"):
        own = [service for service in services if (":" in service.address) == (family == "ip6")]
        if own:
            system.run(lab.netns(node), ["nft", ruleset(family, own)])


def ruleset(family: str, services: Sequence[Service]) -> str:
    """One family's table."""
    kind = "ipv4_addr" if family == "ip" else "ipv6_addr"
    ips = ", ".join(f"{s.address} . {s.protocol} . {s.port} : goto service-{s.name}" for s in services)
    ports = ", ".join(f"{s.protocol} . {s.node_port} : goto external-{s.name}" for s in services if s.node_port)
    return f"""
table {family} kube-proxy {{
}}
delete table {family} kube-proxy
table {family} kube-proxy {{
{"".join(service_sets(s, kind) for s in services)}
    chain mark-for-masquerade {{
        meta mark set meta mark or 0x4000
    }}
    chain masquerading {{
        meta mark and 0x4000 == 0x0 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
    }}
{"".join(service_chains(s, family) for s in services)}
    map service-ips {{
        type {kind} . inet_proto . inet_service : verdict
        elements = {{ {ips} }}
    }}
    map service-nodeports {{
        type inet_proto . inet_service : verdict
        {f"elements = {{ {ports} }}" if ports else ""}
    }}
    chain services {{
        {family} daddr . meta l4proto . th dport vmap @service-ips
        fib daddr type local meta l4proto . th dport vmap @service-nodeports
    }}
    chain nat-prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        jump services
    }}
    chain nat-output {{
        type nat hook output priority -100; policy accept;
        jump services
    }}
    chain nat-postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        jump masquerading
    }}
}}
"""


def service_sets(service: Service, kind: str) -> str:
    """Clients of each endpoint."""
    if not service.affinity:
        return ""
    return "".join(
        f"    set affinity-{service.name}-{i} {{ type {kind}; flags dynamic,timeout; timeout 3h; }}\n"
        for i in range(len(service.endpoints))
    )


def service_chains(service: Service, family: str) -> str:
    """Endpoint chains, the chain that chooses, and that of the NodePort, whose clients are masqueraded."""
    lines: list[str] = []
    for i, (address, port) in enumerate(service.endpoints):
        target = f"{address}:{port}" if family == "ip" else f"[{address}]:{port}"
        lines += [
            f"    chain endpoint-{service.name}-{i} {{",
            f"        {family} saddr {address} jump mark-for-masquerade",
            *([f"        update @affinity-{service.name}-{i} {{ {family} saddr }}"] if service.affinity else []),
            f"        meta l4proto {service.protocol} dnat to {target}",
            "    }",
        ]
    numbers = range(len(service.endpoints))
    choice = ", ".join(f"{i} : goto endpoint-{service.name}-{i}" for i in numbers)
    lines.append(f"    chain service-{service.name} {{")
    if service.affinity:
        lines += [
            f"        {family} saddr @affinity-{service.name}-{i} goto endpoint-{service.name}-{i}" for i in numbers
        ]
    lines += [f"        numgen inc mod {len(numbers)} vmap {{ {choice} }}", "    }"]
    lines += [
        f"    chain external-{service.name} {{",
        "        jump mark-for-masquerade",
        f"        goto service-{service.name}",
        "    }",
    ]
    return "\n".join(lines) + "\n"
