"""From evidence to findings: the first cause that explains what was seen, its name, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fabric.doctor.evidence import POLICY, NodeEvidence, PeerEvidence

MAC_REASONS = ("inner_mac",)


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. `name` is for programs, `peer` empty where it is about this node."""

    name: str
    text: str
    fix: str
    peer: str = ""


def of_node(seen: NodeEvidence) -> Iterator[Finding]:
    """What is wrong with this node by itself."""
    if not seen.ready:
        yield Finding("not_ready", "the daemon does not forward yet", "look at its log")
    if seen.store:
        yield Finding("store_away", f"the store does not answer: {seen.store}",
                      "forwarding goes on with what is known; bring the store back")  # fmt: skip
    for name in seen.vxlan_devices:
        text = f"kernel VXLAN device {name} has our VNI or port and is not ours: it may take packets away"
        yield Finding("stale_kernel_device", text, f"if nothing uses it: ip link delete {name}")
    off = [family for family, on in seen.forwarding.items() if not on]
    for family in off if seen.kernel_pods else ():
        sysctl = "net.ipv4.ip_forward" if family == "IPv4" else "net.ipv6.conf.all.forwarding"
        text = f"the kernel does not forward {family}: {seen.kernel_pods} pods on bridges are cut off"
        yield Finding("forwarding_off", text, f"sysctl -w {sysctl}=1")
    for problem in seen.problems:
        if not (off and "forward" in problem):
            yield Finding("daemon_problem", problem, "see fabricctl status")
    yield from _policy("", seen.refused)


def of_peer(seen: PeerEvidence) -> Iterator[Finding]:
    """What is wrong between here and a peer; nothing when it is well."""

    def found(name: str, text: str, fix: str) -> Finding:
        return Finding(name, text, fix, seen.name)

    if seen.state not in ("used", "remembered"):
        yield found("peer_not_used", f"its lease is {seen.state}: {seen.reason}", "repair the lease, or remove it")
        return
    if seen.device != seen.expected_device:
        yield found(
            "stale_kernel_device",
            f"the kernel sends its pods' packets into {seen.device or 'nothing'}, not {seen.expected_device}",
            f"remove that route (ip route show dev {seen.device}), and the device if nothing uses it"
            if seen.device else "see the daemon's kernel problems in fabricctl status",
        )  # fmt: skip
        return
    yield from _policy(seen.name, seen.refused)
    if seen.small:
        yield from (Finding(*each, seen.name) for each in _answered(seen))
        return
    yield Finding(*_silent(seen), seen.name)


def of_policy(source: str, target: str, port: str, found: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether policy forbids it; `found` is the daemon's `policy.explain` of a new flow."""
    if not found["allowed"]:
        place = f" at {found['place']}" if found["place"] else ""
        yield Finding(
            "policy",
            f"{source} may not reach {target} at {port}: {found['rule'] or 'no rule allows it'}{place}",
            f"change the policy; fabricctl policy explain {source} {target} {port} shows every step",
        )


Found = tuple[str, str, str]


def _answered(seen: PeerEvidence) -> Iterator[Found]:
    """Small packets come through."""
    if not seen.big:
        fits = f"packets of more than {seen.fits} bytes" if seen.fits else f"packets of {seen.mtu} bytes"
        outer = seen.fits + (50 if seen.tunnel else 0)
        yield (
            "mtu_black_hole",
            f"{fits} are lost on the way without a word; the MTU of the pods is {seen.mtu}",
            "let the underlay carry its own MTU"
            + (f', or give every node "Backend": {{"MTU": {outer}}} in net-conf.json' if seen.fits else ""),
        )
    broken = seen.bad_checksums or seen.kernel_checksum_errors or seen.write_bad_checksum
    if broken or seen.tcp is False:
        why = f"{broken} packets of it had a wrong checksum" if broken else "it answers pings and no TCP"
        yield _checksum(why)


def _silent(seen: PeerEvidence) -> Found:
    """Not even small packets come back."""
    macs = sum(seen.refused.get(reason, 0) for reason in MAC_REASONS)
    if macs:
        return (
            "wrong_mac",
            f"{macs} packets of it carry another MAC than its lease, or were for another MAC than ours",
            "one of the two knows an old MAC: restart the daemon (or flanneld) there; on a kernel VXLAN node compare"
            " `bridge fdb` and `ip neigh` with `fabricctl leases`",
        )
    if not seen.tunnel:
        return ("unreachable", "it does not answer on the plain route to it", "check the route and its firewall")
    if seen.send_refused:
        return _filtered(seen, "what we send to it is refused here: a firewall rule of this host's OUTPUT")
    if seen.received:
        return _came_back(seen)
    if seen.tunnel_port == "refused":
        return ("peer_daemon_down", f"nothing listens on its UDP port {seen.port}", "start its daemon (or flanneld)")
    if seen.tunnel_port == "prohibited":
        return _filtered(seen, f"its UDP port {seen.port} is refused by a firewall")
    if not seen.sent:
        return ("not_sent", "what we sent to it did not leave this node", "see fabricctl counters and status")
    if seen.underlay or seen.other_port == "refused":
        return _filtered(
            seen, f"the node answers beside the tunnel, and nothing comes back from UDP port {seen.port}"
        )
    return ("underlay_unreachable", f"{seen.public} does not answer at all", "check the network between the nodes")


def _came_back(seen: PeerEvidence) -> Found:
    """Its datagrams come to the interface, and pods get nothing."""
    broken = seen.bad_checksums or seen.kernel_checksum_errors
    if broken:
        return _checksum(f"{broken} datagrams of it had a wrong checksum and were thrown away by the kernel")
    if seen.refused:
        shown = ", ".join(f"{count} {reason}" for reason, count in seen.refused.items())
        return ("refused", f"its packets come and are refused: {shown}", "see docs/reference.md, Drop reasons")
    if not seen.taken:
        return _filtered(seen, "its datagrams come to the interface, not to the daemon: this host's INPUT drops them")
    return ("no_answer", "its packets come, but no answer to ours", "look with fabricctl capture --peer")


def _checksum(why: str) -> Found:
    return (
        "checksum_broken",
        f"checksums are wrong: {why}",
        "an interface or tunnel computes them wrongly: on the sending node try ethtool -K IFACE tx off"
        " (flannel.1 and the interface below)",
    )


def _filtered(seen: PeerEvidence, what: str) -> Found:
    return (
        "tunnel_port_filtered",
        what,
        f"allow UDP {seen.port} between all nodes, both ways; if it is allowed, run fabricctl doctor on the other node",
    )


def _policy(peer: str, refused: Mapping[str, int]) -> Iterator[Finding]:
    count = sum(value for reason, value in refused.items() if reason.startswith(POLICY))
    if count:
        yield Finding("policy", f"{count} packets were refused by network policy meanwhile",
                      "fabricctl capture --verdict dropped shows which", peer)  # fmt: skip
