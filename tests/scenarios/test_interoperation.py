"""A node with a plain kernel VXLAN device is a full peer, whatever the underlay passes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fabric.lab import Lab, Pod, measure
from fabric.lab.plan import Mode
from tests.scenarios import fabric_view, flows

pytestmark = [pytest.mark.root, pytest.mark.slow]

MTU = 1430  # dual stack: the smaller of 1500 - 50 and 1500 - 70
PLAUSIBLE_GBPS = 0.5
TRIES = 3


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=3, pods=1, pod_kind="bridge", kernel_peer=True, ipv6=True, mode="veth") as made:
        yield made


@pytest.fixture(params=["veth", "wire", "bare"])
def mode(request: pytest.FixtureRequest, lab: Lab) -> Mode:
    found: Mode = request.param
    lab.set_mode(found)
    return found


# node1 and node2 run the daemon, node3 is the kernel.
PAIRS = [("node1-pod1", "node3-pod1"), ("node3-pod1", "node2-pod1"), ("node1-pod1", "node2-pod1")]


@pytest.fixture(params=PAIRS, ids=["fabric-kernel", "kernel-fabric", "fabric-fabric"])
def pair(request: pytest.FixtureRequest, lab: Lab) -> tuple[Pod, Pod]:
    source, target = request.param
    return lab.pod(source), lab.pod(target)


@pytest.fixture(autouse=True)
def _clean(lab: Lab) -> Iterator[None]:
    """No kernel has seen a wrong checksum and no daemon dropped anything it should have carried."""
    yield
    assert fabric_view.all_checksum_errors(lab) == {}
    assert fabric_view.all_drops(lab) == {}
    assert lab.dead_daemons() == []


def test_ping_between_all_pods_and_families(lab: Lab, mode: Mode) -> None:
    pairs = measure.wait_reachable(lab)
    assert [pair for pair in pairs if not pair.ok] == []
    assert len(pairs) == 12
    largest = measure.ping_pairs(lab, count=1, size=MTU - 48, dont_fragment=True)
    assert [pair for pair in largest if not pair.ok] == [], "the whole MTU can be used"


@pytest.mark.parametrize("family", [4, 6])
def test_tcp_arrives_intact_and_fast(lab: Lab, mode: Mode, pair: tuple[Pod, Pod], family: int) -> None:
    source, target = pair
    best = 0.0
    for _ in range(TRIES):
        done = flows.send_tcp(source.netns, target.netns, measure.address(target, family))
        assert done.intact, f"{done.received} bytes arrived"
        best = max(best, done.gbps)
        if best > PLAUSIBLE_GBPS:
            break
    assert best > PLAUSIBLE_GBPS


@pytest.mark.parametrize("family", [4, 6])
def test_every_datagram_size_arrives_intact(lab: Lab, mode: Mode, pair: tuple[Pod, Pod], family: int) -> None:
    source, target = pair
    largest = MTU - (48 if family == 6 else 28)
    sizes = [*range(1, 130), *range(130, largest - 20, 37), *range(largest - 20, largest + 1)]
    ends = (source.netns, measure.address(source, family), target.netns, measure.address(target, family))
    assert flows.exchange_datagrams(*ends, sizes) == []


@pytest.mark.parametrize("family", [4, 6])
def test_fragmented_datagrams_arrive_intact(lab: Lab, mode: Mode, pair: tuple[Pod, Pod], family: int) -> None:
    source, target = pair
    ends = (source.netns, measure.address(source, family), target.netns, measure.address(target, family))
    assert flows.exchange_datagrams(*ends, [4000, 65_000, 1431, 2859, 65_000], fragment=True) == []


@pytest.mark.parametrize("family", [4, 6])
def test_segmented_datagrams_arrive_intact(lab: Lab, mode: Mode, pair: tuple[Pod, Pod], family: int) -> None:
    """One send with UDP_SEGMENT (GSO) on the pod's side, the datagrams of QUIC and DNS servers."""
    source, target = pair
    ends = (source.netns, measure.address(source, family), target.netns, measure.address(target, family))
    for size in (1, 100, 1000, 1200, MTU - 48):
        assert flows.send_segmented(*ends, size, 40 * size + size // 2) == []
