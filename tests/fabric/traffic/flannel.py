"""flannel's own rules, made by the same commands as flanneld runs: the oracle, and what a switch-over finds.

Source: flannel `pkg/trafficmngr/iptables/iptables.go` and `nftables/nftables.go`; compared with the `iptables-save` and
`nft list ruleset` of a running flanneld.
"""

from __future__ import annotations

from ipaddress import ip_network

from fabric.model import Network
from tests.fabric.traffic.sites import command

MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


def tool(network: Network, flavour: str = "nft") -> str:
    """iptables or ip6tables, of the nft or the legacy flavour."""
    return f"ip{'6' if network.version == 6 else ''}tables-{flavour}"


def install(netns: str, network: Network, pod: Network, flavour: str = "nft", *, random_fully: bool = True) -> None:
    """The rules of flannel's iptables mode with `--ip-masq`."""
    net, name = str(network), tool(network, flavour)
    masq, forward = ["-m", "comment", "--comment", "flanneld masq"], ["-m", "comment", "--comment", "flanneld forward"]
    masquerade = ["-j", "MASQUERADE", *(["--random-fully"] if random_fully else [])]
    command(netns, name, "-t", "nat", "-N", "FLANNEL-POSTRTG")
    for words in (
        ["POSTROUTING", *masq, "-j", "FLANNEL-POSTRTG"],
        ["FLANNEL-POSTRTG", "-m", "mark", "--mark", "0x4000/0x4000", *masq, "-j", "RETURN"],
        ["FLANNEL-POSTRTG", "-s", str(pod), "-d", net, *masq, "-j", "RETURN"],
        ["FLANNEL-POSTRTG", "-s", net, "-d", str(pod), *masq, "-j", "RETURN"],
        ["FLANNEL-POSTRTG", "!", "-s", net, "-d", str(pod), *masq, "-j", "RETURN"],
        ["FLANNEL-POSTRTG", "-s", net, "!", "-d", MULTICAST[network.version], *masq, *masquerade],
        ["FLANNEL-POSTRTG", "!", "-s", net, "-d", net, *masq, *masquerade],
    ):
        command(netns, name, "-t", "nat", "-A", *words)
    command(netns, name, "-t", "filter", "-N", "FLANNEL-FWD")
    for words in (
        ["FORWARD", *forward, "-j", "FLANNEL-FWD"],
        ["FLANNEL-FWD", "-s", net, *forward, "-j", "ACCEPT"],
        ["FLANNEL-FWD", "-d", net, *forward, "-j", "ACCEPT"],
    ):
        command(netns, name, "-t", "filter", "-A", *words)


NFTABLES_MODE = """
table ip flannel-ipv4 {
    comment "rules for flannel-ipv4"
    chain postrtg {
        comment "chain to manage traffic masquerading by flannel"
        type nat hook postrouting priority srcnat; policy accept;
        meta mark 0x4000 return
        ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
    }
    chain forward {
        comment "chain to accept flannel traffic"
        type filter hook forward priority filter; policy accept;
        ip saddr 10.244.0.0/16 accept
    }
}
table ip6 flannel-ipv6 {
    comment "rules for flannel-ipv6"
}
"""
NET4, POD4 = ip_network("10.244.0.0/16"), ip_network("10.244.1.0/24")
NET6, POD6 = ip_network("2001:db8:f4::/48"), ip_network("2001:db8:f4:1::/64")
