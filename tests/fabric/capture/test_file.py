"""The file: tshark opens it without a warning and finds what was put there. Comments on any bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from fabric.capture import pcapng
from fabric.capture.comments import Commentator, ends_of, flow_of, inner_offset
from fabric.capture.wanted import Wanted

POD = {"name": "cni/a", "kind": "tun", "addresses": ["10.244.1.2"],
       "pod": {"namespace": "shop", "name": "web", "container_id": "c"}}  # fmt: skip
PEER = {"key": "10.244.2.0-24", "node": "n2", "public": ["192.0.2.2"], "subnets": ["10.244.2.0/24"]}
COMMENTS = Commentator([POD], [PEER], ["192.0.2.1"], {"vxlan": 8472})
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
INNER = bytes(IP(src="10.244.1.2", dst="10.244.2.2") / TCP(dport=80))
VXLAN_PAYLOAD = bytes(VXLAN(vni=1, flags=8) / ETHER / INNER)
OUTER = bytes(ETHER / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=50000, dport=8472) / VXLAN_PAYLOAD)
TIME = 1_790_000_000_123_456_789


def refused(**changes: Any) -> dict[str, Any]:
    return {"time": TIME, "reason": "no_route", "length": len(INNER), "port": "cni/a", "ethernet": False, "source": "",
            "encapsulation": "", **changes}  # fmt: skip


def tshark(path: Path) -> list[dict[str, Any]]:
    if shutil.which("tshark") is None:
        pytest.skip("no tshark")
    shown = subprocess.run(
        ["tshark", "-r", str(path), "-d", "udp.port==8472,vxlan", "-T", "json"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    noise = [line for line in shown.stderr.splitlines() if "Running as user" not in line]
    assert noise == []
    return [item["_source"]["layers"] for item in json.loads(shown.stdout)]


@pytest.mark.slow
def test_tshark_finds_everything(tmp_path: Path) -> None:
    payload = COMMENTS.rebuilt(refused(source="192.0.2.2", encapsulation="vxlan", length=len(VXLAN_PAYLOAD)),
                               VXLAN_PAYLOAD)  # fmt: skip
    blocks = [
        pcapng.section("test"),
        pcapng.interface("underlay", pcapng.ETHERNET, 65535, filter_text="udp"),
        pcapng.interface("cni/podnet/ü", pcapng.RAW, 65535, "a pod"),
        pcapng.packet(0, TIME, OUTER, len(OUTER), COMMENTS.passing(OUTER, 1, True, True), pcapng.OUTBOUND),
        pcapng.packet(1, TIME, INNER[:30], len(INNER), COMMENTS.refused(refused(), INNER)),
        pcapng.packet(1, TIME, payload, len(payload), "x"),
        pcapng.packet(1, TIME, b"", 0, ""),
        pcapng.statistics(0, TIME, 5, 2),
        pcapng.statistics(1, TIME, 5, 0),
    ]
    (tmp_path / "a.pcapng").write_bytes(b"".join(blocks))
    first, second, third, _ = tshark(tmp_path / "a.pcapng")
    assert first["pkt_comment"]["frame.comment"] == "verdict: allowed; pod: shop/web; peer: n2"
    assert second["pkt_comment"]["frame.comment"] == (
        "verdict: dropped; reason: no_route (no route to the inner destination); from port: cni/a; pod: shop/web;"
        " peer: n2"
    )
    assert first["frame"]["frame.interface_id_tree"]["frame.interface_name"] == "underlay"
    assert second["frame"]["frame.interface_id_tree"]["frame.interface_name"] == "cni/podnet/ü"
    assert (second["frame"]["frame.len"], second["frame"]["frame.cap_len"]) == (str(len(INNER)), "30")
    assert first["frame"]["frame.time_epoch"].endswith(".123456789")
    assert "vxlan" in first
    assert "vxlan" in third


@settings(deadline=None)
@given(st.binary(max_size=120), st.sampled_from([pcapng.ETHERNET, pcapng.RAW]), st.booleans())
def test_no_frame_is_too_strange(data: bytes, link: int, underlay: bool) -> None:
    COMMENTS.passing(data, link, underlay, True)
    COMMENTS.refused(refused(), data)
    ends_of(data)
    flow_of(data)
    inner_offset(data, link, {"vxlan": 8472})


@pytest.mark.parametrize("source", ["192.0.2.2", "2001:db8::2"])
def test_rebuilt_headers(source: str) -> None:
    made = COMMENTS.rebuilt(refused(source=source, encapsulation="vxlan", length=500), bytes(100))
    ends = ends_of(made)
    assert ends is not None
    assert ends[0] == ip_address(source)
    assert len(made) == 100 + (48 if ":" in source else 28)


@pytest.mark.parametrize(
    ("wanted", "asked", "places"),
    [
        (Wanted(), (), {"underlay", "node", "pods", "refused"}),
        (Wanted(), ("node",), {"node"}),
        (Wanted(outer="udp"), (), {"underlay"}),
        (Wanted(verdict="allowed"), (), {"underlay", "node", "pods"}),
        (Wanted(verdict="dropped"), (), {"refused"}),
        (Wanted(reasons=frozenset({"no_route"})), ("node",), set()),
    ],
)
def test_places(wanted: Wanted, asked: Any, places: set[str]) -> None:
    assert wanted.places(asked) == places


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (INNER, ("10.244.1.2", "10.244.2.2", "80/tcp")),
        (bytes(IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(dport=53)), ("2001:db8::1", "2001:db8::2", "53/udp")),
        (bytes(IP(src="10.244.1.2", dst="10.244.2.2") / ICMP()), ("10.244.1.2", "10.244.2.2", "icmp")),
        (bytes(IP(src="10.244.1.2", dst="10.244.2.2", frag=1) / UDP(dport=53)), None),
        (bytes(IP(src="10.244.1.2", dst="10.244.2.2", proto=47)), None),
        (INNER[:22], None),
    ],
)
def test_flows(packet: bytes, expected: tuple[str, str, str] | None) -> None:
    assert flow_of(packet) == expected


def test_the_rule_is_named() -> None:
    packet = refused(reason="policy_ingress")
    assert "; rule: NetworkPolicy shop/web spec.ingress[0]; " in COMMENTS.refused(
        packet, INNER, "NetworkPolicy shop/web spec.ingress[0]"
    )


def test_filter_texts() -> None:
    pods, peers = frozenset({ip_address("10.244.1.2")}), (PEER["subnets"][0],)
    wanted = Wanted("tcp or udp", "ip6", pods, peers, (ip_address("192.0.2.2"),))  # type: ignore[arg-type]
    assert wanted.inner_text() == "(tcp or udp) and (host 10.244.1.2) and (net 10.244.2.0/24)"
    assert wanted.outer_text([8472, 8285]) == "(udp port 8472 or udp port 8285) and (ip6) and (host 192.0.2.2)"
    assert Wanted().inner_text() == ""
