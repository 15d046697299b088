"""From evidence to findings, and the checksum that evidence rests on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from fabric.doctor import diagnose
from fabric.doctor.checksums import is_wrong
from fabric.doctor.evidence import NodeEvidence, PeerEvidence

WELL = PeerEvidence(
    "n2", "192.0.2.2", "used", way="vxlan", device="flannel.1", expected_device="flannel.1", mtu=1450, small=True,
    big=True, fits=1450, underlay=True, tcp=True, port=8472, sent=3, received=3, taken=3,
)  # fmt: skip
SILENT = replace(WELL, small=False, big=False, fits=0, tcp=None, received=0, taken=0, other_port="refused")


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        (WELL, []),
        (replace(WELL, state="remembered"), []),
        (replace(WELL, state="quarantined", reason="VNI 2"), ["peer_not_used"]),
        (replace(WELL, device="old.1"), ["stale_kernel_device"]),
        (replace(WELL, device=""), ["stale_kernel_device"]),
        (replace(WELL, big=False, fits=1250), ["mtu_black_hole"]),
        (replace(WELL, tcp=False), ["checksum_broken"]),
        (replace(WELL, write_bad_checksum=2), ["checksum_broken"]),
        (replace(WELL, refused={"policy_ingress": 3}), ["policy"]),
        (replace(WELL, refused={"not_unicast": 3}), []),
        (SILENT, ["tunnel_port_filtered"]),
        (replace(SILENT, underlay=False, other_port="silent"), ["underlay_unreachable"]),
        (replace(SILENT, tunnel_port="refused"), ["peer_daemon_down"]),
        (replace(SILENT, tunnel_port="prohibited"), ["tunnel_port_filtered"]),
        (replace(SILENT, send_refused=3, sent=0), ["tunnel_port_filtered"]),
        (replace(SILENT, sent=0), ["not_sent"]),
        (replace(SILENT, received=3), ["tunnel_port_filtered"]),
        (replace(SILENT, received=3, bad_checksums=3), ["checksum_broken"]),
        (replace(SILENT, received=3, kernel_checksum_errors=3), ["checksum_broken"]),
        (replace(SILENT, received=3, taken=3, refused={"source_not_leased": 3}), ["refused"]),
        (replace(SILENT, received=3, taken=3), ["no_answer"]),
        (replace(SILENT, received=3, taken=3, refused={"inner_mac": 3}), ["wrong_mac"]),
        (replace(SILENT, tunnel=False, way="host-gw"), ["unreachable"]),
    ],
)
def test_peers(seen: PeerEvidence, names: list[str]) -> None:
    found = list(diagnose.of_peer(seen))
    assert [finding.name for finding in found] == names
    assert all(finding.peer == "n2" and finding.text and finding.fix for finding in found)


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        (NodeEvidence(True), []),
        (NodeEvidence(False), ["not_ready"]),
        (NodeEvidence(True, store="is locked"), ["store_away"]),
        (NodeEvidence(True, problems=("route x: no",)), ["daemon_problem"]),
        (NodeEvidence(True, forwarding={"IPv4": False, "IPv6": True}), []),
        (NodeEvidence(True, forwarding={"IPv4": False}, kernel_pods=1), ["forwarding_off"]),
        (NodeEvidence(True, ("x: ip_forward is 0"), ("forwarding is off",), {"IPv6": False}, 1),
         ["store_away", "forwarding_off"]),
        (NodeEvidence(True, vxlan_devices=("old.1",)), ["stale_kernel_device"]),
        (NodeEvidence(True, refused={"policy_egress": 1, "no_route": 3}), ["policy"]),
    ],
)  # fmt: skip
def test_nodes(seen: NodeEvidence, names: list[str]) -> None:
    assert [finding.name for finding in diagnose.of_node(seen)] == names


def test_policy() -> None:
    found = {"allowed": False, "rule": "NetworkPolicy shop/web spec.ingress[0]", "place": "web.yaml:3"}
    (finding,) = diagnose.of_policy("shop/a", "shop/web", "80", found)
    assert finding.name == "policy"
    assert finding.text == "shop/a may not reach shop/web at 80: NetworkPolicy shop/web spec.ingress[0] at web.yaml:3"
    assert list(diagnose.of_policy("a", "b", "80", {**found, "allowed": True})) == []


@settings(deadline=None)
@given(st.binary(max_size=60), st.booleans(), st.integers(0, 0xFFFF))
def test_checksums_as_scapy_computes_them(payload: bytes, six: bool, other: int) -> None:
    head = IPv6(src="2001:db8::1", dst="2001:db8::2") if six else IP(src="192.0.2.1", dst="192.0.2.2")
    right = bytes(head / UDP(sport=50000, dport=8472) / payload)
    assert not is_wrong(right)
    offset = 46 if six else 26
    changed = right[:offset] + other.to_bytes(2, "big") + right[offset + 2 :]
    same = int.from_bytes(right[offset : offset + 2], "big")
    assert is_wrong(changed) == (other not in (0, same) and {other, same} != {0, 0xFFFF})
    assert not is_wrong(right[:-1])


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_anything_else_is_not_wrong_or_fails(data: bytes) -> None:
    is_wrong(data)
