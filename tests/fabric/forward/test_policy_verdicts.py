"""Where a flow begins it is judged by both ends, each on its own node: real workers, packets on memory ports."""

from __future__ import annotations

import pytest

from tests.fabric.forward.harness import Fabric
from tests.fabric.forward.policed import (
    PASSED,
    Cluster,
    Make,
    Object,
    allow,
    block,
    ping,
    policy,
    sctp,
    tcp,
    udp,
)

EGRESS, INGRESS = "policy_egress", "policy_ingress"
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def cluster(fabric: Fabric) -> Cluster:
    return Cluster(fabric)


NOBODY_TO_B = policy("b", ingress=[])
A_TO_B_80 = policy("b", ingress=[allow("a", "TCP", 80)])
C_TO_B = policy("b", ingress=[allow("c")])
A_STAYS = policy("a", egress=[])
A_TO_C_80 = policy("a", egress=[allow("c", "TCP", 80)])
A_TO_DNS = policy("a", egress=[allow((), "UDP", 53)])
OUTSIDE_TO_B = policy("b", ingress=[allow([block("192.0.2.0/24"), block("2001:db8:ffff::/64")], "TCP", 80)])
A_TO_OUTSIDE = policy("a", egress=[allow([block("192.0.2.0/24"), block("2001:db8:ffff::/64")])])
NOBODY_TO_C = policy("c", ingress=[])

TABLE: list[tuple[list[Object], str, str, Make, str]] = [
    # nothing selects the pods
    ([], "a", "b", tcp(80), PASSED),
    ([], "a", "c", tcp(80), PASSED),
    ([], "a", "outside", udp(53), PASSED),
    ([], "outside", "a", tcp(80), PASSED),
    # nobody may reach b
    ([NOBODY_TO_B], "a", "b", tcp(80), INGRESS),
    ([NOBODY_TO_B], "c", "b", tcp(80), INGRESS),
    ([NOBODY_TO_B], "outside", "b", tcp(80), INGRESS),
    ([NOBODY_TO_B], "a", "b", udp(53), INGRESS),
    ([NOBODY_TO_B], "a", "b", sctp(80), INGRESS),
    ([NOBODY_TO_B], "node1", "b", tcp(80), PASSED),
    ([NOBODY_TO_B], "b", "a", tcp(80), PASSED),
    ([NOBODY_TO_B], "a", "c", tcp(80), PASSED),
    # one port of one protocol, for one pod
    ([A_TO_B_80], "a", "b", tcp(80), PASSED),
    ([A_TO_B_80], "a", "b", tcp(81), INGRESS),
    ([A_TO_B_80], "a", "b", udp(80), INGRESS),
    ([A_TO_B_80], "a", "b", sctp(80), INGRESS),
    ([A_TO_B_80], "c", "b", tcp(80), INGRESS),
    ([C_TO_B], "c", "b", tcp(80), PASSED),
    ([C_TO_B], "c", "b", sctp(80), PASSED),
    ([C_TO_B], "a", "b", tcp(80), INGRESS),
    # what a may send
    ([A_STAYS], "a", "b", tcp(80), EGRESS),
    ([A_STAYS], "a", "c", tcp(80), EGRESS),
    ([A_STAYS], "a", "outside", tcp(80), EGRESS),
    ([A_STAYS], "a", "node1", tcp(80), EGRESS),
    ([A_STAYS], "b", "a", tcp(80), PASSED),
    ([A_STAYS], "c", "a", tcp(80), PASSED),
    ([A_TO_C_80], "a", "c", tcp(80), PASSED),
    ([A_TO_C_80], "a", "c", tcp(81), EGRESS),
    ([A_TO_C_80], "a", "b", tcp(80), EGRESS),
    ([A_TO_DNS], "a", "outside", udp(53), PASSED),
    ([A_TO_DNS], "a", "outside", tcp(53), EGRESS),
    # networks outside
    ([OUTSIDE_TO_B], "outside", "b", tcp(80), PASSED),
    ([OUTSIDE_TO_B], "outside", "b", tcp(81), INGRESS),
    ([OUTSIDE_TO_B], "a", "b", tcp(80), INGRESS),
    ([A_TO_OUTSIDE], "a", "outside", sctp(9), PASSED),
    ([A_TO_OUTSIDE], "a", "c", tcp(80), EGRESS),
    # both ends have to agree, also when they are on different nodes
    ([A_TO_C_80, NOBODY_TO_C], "a", "c", tcp(80), INGRESS),
    ([A_STAYS, A_TO_B_80], "a", "b", tcp(80), EGRESS),
    ([A_TO_B_80, policy("a", egress=[allow("b")], name="also")], "a", "b", tcp(80), PASSED),
    # pods behind the node port, by their addresses
    ([policy("bridged", egress=[])], "bridged", "a", tcp(80), EGRESS),
    ([policy("bridged", egress=[])], "bridged", "c", tcp(80), EGRESS),
    ([policy("bridged", ingress=[])], "a", "bridged", tcp(80), INGRESS),
    ([policy("bridged", ingress=[])], "c", "bridged", tcp(80), INGRESS),
    ([policy("bridged", ingress=[])], "bridged", "c", tcp(80), PASSED),
    ([policy("bridged", ingress=[allow("c", "UDP", 53)])], "c", "bridged", udp(53), PASSED),
]


@FAMILIES
@pytest.mark.parametrize(("policies", "source", "destination", "make", "wanted"), TABLE)
def test_who_reaches_whom(
    cluster: Cluster, policies: list[Object], source: str, destination: str, make: Make, wanted: str, family: int
) -> None:
    cluster.apply(*policies)
    assert cluster.send(source, destination, make, family) == wanted
    if wanted == PASSED:
        assert cluster.send(destination, source, make, family, answer=True) == PASSED, "answers are implied"


@FAMILIES
@pytest.mark.parametrize(("source", "destination"), [("a", "b"), ("c", "b"), ("a", "c")])
def test_an_answer_needs_a_question(cluster: Cluster, source: str, destination: str, family: int) -> None:
    """What would be allowed as an answer is denied as long as nobody has asked, and for other ports."""
    cluster.apply(policy(source, ingress=[]), policy(destination, egress=[]))
    ask = udp(53)
    assert cluster.send(destination, source, ask, family, answer=True) == EGRESS
    assert cluster.exchange(source, destination, ask, family) == (PASSED, PASSED)
    assert cluster.send(destination, source, udp(53, 4001), family, answer=True) == EGRESS
    assert cluster.send(destination, source, tcp(53), family, answer=True) == EGRESS


@FAMILIES
def test_pings(cluster: Cluster, family: int) -> None:
    """A rule without ports is about them, one with ports is not."""
    cluster.apply(C_TO_B)
    assert cluster.exchange("c", "b", ping(9, family), family) == (PASSED, PASSED)
    cluster.apply(A_TO_B_80)
    assert cluster.send("a", "b", ping(9, family), family) == INGRESS
    assert cluster.exchange("b", "a", ping(9, family), family) == (PASSED, PASSED)


@FAMILIES
@pytest.mark.parametrize("other", ["a", "c"])
def test_pings_in_both_directions_do_not_open_each_other(cluster: Cluster, other: str, family: int) -> None:
    """b pings, and the same identifier is used to ping it back: that is another flow."""
    cluster.apply(NOBODY_TO_B)
    for identifier in (9, 10, 9):
        assert cluster.exchange("b", other, ping(9, family), family) == (PASSED, PASSED)
        assert cluster.send(other, "b", ping(identifier, family), family) == INGRESS
    assert cluster.send(other, "b", ping(77, family), family, answer=True) == INGRESS, "an answer nobody asked for"


def test_a_pod_is_told_nothing_about_what_policy_refused(cluster: Cluster) -> None:
    cluster.apply(A_STAYS)
    for _ in range(3):
        assert cluster.send("a", "c", tcp(80)) == EGRESS
    assert cluster.ports["a"].take_all() == []
    assert cluster.one.drops() == {"policy_egress": 3}
    assert cluster.one.count("egress_icmp_sent") == 0
