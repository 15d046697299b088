"""What is said about a host whose kernel is not set for pods, from files laid out as in /proc/sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.traffic.checks import bridge_netfilter, forwarding
from tests.fabric.traffic.flannel import NET4, NET6


def sysctls(root: Path, **values: str) -> Path:
    for name, value in values.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    return root


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "families", "expected"),
    [
        ("1", "1", (NET4, NET6), []),
        ("0", "1", (NET4, NET6), ["net.ipv4.ip_forward is 0"]),
        ("1", "0", (NET4, NET6), ["net.ipv6.conf.all.forwarding is 0"]),
        ("0", "0", (NET4, NET6), ["net.ipv4.ip_forward is 0", "net.ipv6.conf.all.forwarding is 0"]),
        ("1", "0", (NET4,), []),
        ("0", "2", (NET6,), []),
    ],
)
def test_forwarding(
    tmp_path: Path, ipv4: str, ipv6: str, families: tuple[object, ...], expected: list[str]
) -> None:
    root = sysctls(tmp_path, net__ipv4__ip_forward=ipv4, net__ipv6__conf__all__forwarding=ipv6)

    found = forwarding(families, root)  # type: ignore[arg-type]

    assert [line.split(":")[0] for line in found] == expected
    assert all("sysctl -w net.ip" in line and "\n" not in line for line in found)


def test_a_host_without_ipv6_is_told_so(tmp_path: Path) -> None:
    root = sysctls(tmp_path, net__ipv4__ip_forward="1")

    (line,) = forwarding([NET4, NET6], root)

    assert line == "net.ipv6.conf.all.forwarding cannot be read: No such file or directory; pods need it to be 1"


def test_bridges_past_the_firewall(tmp_path: Path) -> None:
    assert "net/bridge/bridge-nf-call-iptables does not exist" in str(bridge_netfilter([NET4], tmp_path))
    sysctls(tmp_path, **{"net__bridge__bridge-nf-call-iptables": "0"})
    assert bridge_netfilter([NET4], tmp_path) is None
    warning = str(bridge_netfilter([NET4, NET6], tmp_path))
    assert "bridge-nf-call-ip6tables does not exist" in warning
    assert "modprobe br_netfilter" in warning
    assert "\n" not in warning
