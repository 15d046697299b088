"""What the host's kernel has to be set to for pods to be reached, said in one line each. Nothing is changed here.

The network namespace is that of the calling thread's `/proc/sys`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fabric.model import Network

SYSCTLS = Path("/proc/sys")
FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
BRIDGE_CALLS = {4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}


def forwarding(networks: Iterable[Network], root: Path = SYSCTLS) -> list[str]:
    """One line per family whose forwarding is off; the kernel then drops what pods send to other nodes."""
    found = []
    for name in (FORWARDING[network.version] for network in networks):
        try:
            value = (root / name.replace(".", "/")).read_text().strip()
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror}; pods need it to be 1")
            continue
        if value == "0":
            found.append(f"{name} is 0: pods behind a bridge reach no other node; set it: sysctl -w {name}=1")
    return found


def bridge_netfilter(networks: Iterable[Network], root: Path = SYSCTLS) -> str | None:
    """A warning when frames between ports of a bridge pass the firewall by; None when all is well.

    flannel refuses to start then, unless it works with nftables. Our own rules do not need it, because they never
    translate between two pods. kube-proxy's do, in every mode: the answer of a service's pod behind the same bridge
    would otherwise come back untranslated.
    """
    wanted = [BRIDGE_CALLS[network.version] for network in networks]
    missing = [name for name in wanted if not (root / name).exists()]
    if not missing:
        return None
    return (
        f"{SYSCTLS / missing[0]} does not exist: pods behind one bridge reach each other's services past kube-proxy's"
        " rules; load the module (modprobe br_netfilter)"
    )
