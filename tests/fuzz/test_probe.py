"""The probe itself, and a short run of every fuzz target; the long one is `python -m tests.fuzz`."""

from __future__ import annotations

import pytest

from encap.vxlan import encapsulate
from tests.fuzz.seeds import OWN_MAC, PEER_MAC, inner_packets, port_frames
from tests.fuzz.targets import TARGETS, probe
from tun.vnet import VnetHeader

PEER = 0x7F000003
PACKET = inner_packets(3, 2, 6)[0]
SHORT = {
    "merge": 300, "split": 300, "kubernetes-nodes": 3_000, "etcd-watch": 6_000, "etcd-list": 6_000,
    "control-socket": 1_000, "policy": 5_000,
    "lease-values": 2_000, "net-conf": 2_000, "subnet-env": 2_000, "cni-environment": 2_000, "cni-input": 1_000,
}  # fmt: skip
GOOD = encapsulate(PACKET, vni=1, destination=OWN_MAC, source=PEER_MAC)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_target_holds_for_a_short_run(name: str) -> None:
    function, _, expected = TARGETS[name]
    counts = function(77, SHORT.get(name, 60_000))
    assert expected <= counts.keys()


def test_same_seed_same_counts() -> None:
    with probe() as (first, _), probe() as (second, _):
        assert first.fuzz_ingress([GOOD], 5, 5000) == second.fuzz_ingress([GOOD], 5, 5000)
        assert first.fuzz_ingress([GOOD], 6, 5000) != second.fuzz_ingress([GOOD], 5, 5000)


def test_datagram_larger_than_a_buffer() -> None:
    with probe() as (fed, _):
        assert fed.receive(GOOD, PEER, truncated=True) == {"outer_truncated": 1}


def test_merged_message_counts_every_datagram() -> None:
    with probe() as (fed, _):
        assert fed.receive(GOOD * 5 + GOOD[:30], PEER, gso_size=len(GOOD)) == {"pass": 5, "inner_short": 1}
        assert fed.receive(GOOD * 5, PEER + 9, gso_size=len(GOOD)) == {"unknown_vtep": 5}
        assert fed.receive(GOOD * 5, PEER, gso_size=len(GOOD), truncated=True) == {"outer_truncated": 5}


def test_frame_of_a_port() -> None:
    with probe() as (fed, _):
        frame = inner_packets(2, 3, 6)[0]
        assert fed.send(1, frame, VnetHeader().emit()) == {"pass": 1}
        assert fed.send(1, frame[:19], VnetHeader().emit()) == {"inner_short": 1}
        assert fed.send(1, PACKET, VnetHeader().emit()) == {"source_spoofed": 1}


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_every_truncation_is_counted_once(length: int) -> None:
    with probe() as (fed, _):
        counts = fed.receive(GOOD[:length], PEER)
    assert list(counts.values()) == [1]
    assert "pass" not in counts


@pytest.mark.slow
@pytest.mark.parametrize("index", range(0, len(port_frames(8472)), 7))
def test_every_truncation_of_a_frame_is_counted_once(index: int) -> None:
    """A superframe may be cut short without becoming malformed only beyond its IP length."""
    seed = port_frames(8472)[index]
    with probe() as (fed, _):
        for length in range(11, min(len(seed), 200)):
            counts = fed.send(1, seed[10:length], seed[:10])
            assert "pass" not in counts
            assert sum(counts.values()) == 1
