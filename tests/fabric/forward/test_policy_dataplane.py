"""Policy as the daemon hands it over: on real TUN devices, swapped while packets flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address, ip_network

import pytest

from fabric.errors import DataplaneError
from fabric.forward.dataplane import Dataplane
from fabric.forward.policies import Denied
from fabric.model import DataplaneSettings
from tests.fabric.forward.harness import VNI, wait_for
from tests.fabric.forward.policed import Object, address, allow, compile_for, packet, policy, tcp, udp
from tests.fabric.forward.test_dataplane import (  # noqa: F401 - fixtures
    PORTS,
    Make,
    PlaneNode,
    collect,
    endpoint,
    make_node,
    namespace,
    tap_into,
)
from tests.tun.conftest import Namespace, PacketPeer

B_FROM_A_53 = policy("b", ingress=[allow("a", "UDP", 53)])
NOBODY_TO_B = policy("b", ingress=[])


def plane_with(**changes: object) -> Dataplane:
    settings: dict[str, object] = {
        "vni": VNI, "ports": PORTS, "encapsulation": "vxlan", "underlay": (ip_address("127.0.0.1"),), "device": "fab1",
        "mtu": 1450, "workers": 1, "offload": {}, "reserved_bits": "strict", "txqueuelen": 1000, **changes,
    }  # fmt: skip
    return Dataplane(DataplaneSettings(**settings))  # type: ignore[arg-type]


def test_policy_without_flow_table_is_refused() -> None:
    with pytest.raises(DataplaneError, match="policy needs the flow table"):
        plane_with(flows=0, policy_required=True)
    plane = plane_with(flows=0)
    with pytest.raises(DataplaneError, match="policy needs the flow table"):
        plane.set_policy(compile_for("node1", [NOBODY_TO_B]))
    plane.set_policy(None)


def test_too_many_service_networks_are_refused() -> None:
    with pytest.raises(DataplaneError, match="17 Service networks are given, at most 16"):
        plane_with(services=(ip_network("10.96.0.0/16"),) * 17)


def test_before_anything_ran_there_is_nothing_to_tell() -> None:
    plane = plane_with(policy_required=True)
    assert (plane.rule_hits(), plane.denied()) == ({}, [])
    plane.set_policy(compile_for("node1", [NOBODY_TO_B]))
    assert (plane.rule_hits(), plane.denied()) == ({}, [])


class Node:
    """A Dataplane with the pods a and b of `policed` on TUN devices, and the kernel's ends of them."""

    def __init__(self, stack: ExitStack, node: PlaneNode, pods: Namespace) -> None:
        self.plane = node.plane
        node.start(2)
        self.ends: dict[str, PacketPeer] = {}
        for name, host in (("a", 10), ("b", 11)):
            end = endpoint(pods, host, address(name, 4))
            node.namespace.run(partial(self.plane.add_port, end))
            self.ends[name] = tap_into(stack, pods, f"eth{host}")
        self.ends["node1"] = tap_into(stack, node.namespace, "fab1")

    def apply(self, *policies: Object) -> None:
        self.plane.set_policy(compile_for("node1", policies))

    def passes(self, raw: bytes, source: str, destination: str) -> None:
        self.ends[source].inject(raw)
        collect(self.ends[destination], 1)

    def refused(self, raw: bytes, source: str, reason: str) -> None:
        before = self.plane.counters()[f"drop_{reason}"]
        self.ends[source].inject(raw)
        wait_for(lambda: self.plane.counters()[f"drop_{reason}"] == before + 1)


@pytest.fixture
def build(namespace: Namespace, make_node: Make) -> Iterator[Callable[..., Node]]:  # noqa: F811
    pods = Namespace()
    with ExitStack() as stack:
        stack.callback(pods.delete)

        def make(**changes: object) -> Node:
            return Node(stack, make_node(1, **changes), pods)

        yield make


@pytest.mark.root
@pytest.mark.parametrize("workers", [1, 2])
def test_snapshots_take_effect_one_after_the_other(build: Callable[..., Node], workers: int) -> None:
    node = build(workers=workers)
    ask, other = packet("a", "b", udp(53)), packet("a", "b", udp(54))
    node.passes(other, "a", "b")
    node.apply(B_FROM_A_53)
    node.passes(ask, "a", "b")
    node.refused(other, "a", "policy_ingress")
    node.apply(NOBODY_TO_B)
    node.refused(ask, "a", "policy_ingress")
    node.plane.set_policy(None)
    node.passes(ask, "a", "b")
    node.passes(other, "a", "b")


@pytest.mark.root
def test_what_rules_have_done_is_told_by_name(build: Callable[..., Node]) -> None:
    node = build()
    node.apply(B_FROM_A_53)
    for port in (1, 2, 3):
        node.passes(packet("a", "b", udp(53, port)), "a", "b")
    node.refused(packet("a", "b", tcp(53)), "a", "policy_ingress")
    hits = node.plane.rule_hits()
    assert hits["NetworkPolicy default/for-b spec.ingress[0]"] == 3
    (denied,) = node.plane.denied()
    ends = ip_address(address("a", 4)), ip_address(address("b", 4))
    assert denied == Denied(4, *ends, 6, (4000, 53), "ingress", denied.rule)
    assert hits[denied.rule] == 1
    assert node.plane.denied() == [denied]


@pytest.mark.root
def test_a_staged_deny_counts_and_forwards(build: Callable[..., Node]) -> None:
    """Each flow once, on both workers' threads; what is in force refuses as ever."""
    node = build(workers=2)
    only_to_b = policy("a", egress=[allow("b")], name="only-b")
    staged = compile_for("node1", [only_to_b, policy("b", ingress=[], name="new", staged=True)])
    node.plane.set_policy(compile_for("node1", [only_to_b]), staged)
    for port in (1, 1, 2, 3):
        node.passes(packet("a", "b", udp(53, port)), "a", "b")
    node.refused(packet("a", "outside", udp(53)), "a", "policy_egress")
    end = "end of tier default, ingress: no rule of NetworkPolicy default/new matched"
    would = node.plane.staged_hits()
    assert (would[end], would["NetworkPolicy default/only-b spec.egress[0]"]) == ((3, 3), (3, 0))
    node.plane.set_policy(compile_for("node1", [only_to_b]))
    node.passes(packet("a", "b", udp(53, 4)), "a", "b")
    assert node.plane.staged_hits() == {}


@pytest.mark.root
def test_ports_open_with_the_policy_that_knows_them(build: Callable[..., Node]) -> None:
    """First no policy, then one that does not know b, then one that does; the node itself is never shut out."""
    node = build(policy_required=True)
    ask, probe = packet("a", "b", udp(53)), packet("node1", "b", udp(10))
    node.refused(ask, "a", "policy_missing")
    node.passes(probe, "node1", "b")
    node.plane.set_policy(compile_for("node1", [], ("a",)))
    node.refused(ask, "a", "policy_unknown_pod")
    node.passes(probe, "node1", "b")
    node.apply()
    node.passes(ask, "a", "b")
    (first, second) = node.plane.denied()
    assert [(each.direction, each.rule) for each in (first, second)] == [
        ("", "policy_missing"), ("", "policy_unknown_pod"),
    ]  # fmt: skip


@pytest.mark.root
def test_services(build: Callable[..., Node]) -> None:
    node = build(services=(ip_network("10.96.0.0/16"),))
    node.apply(policy("a", egress=[]))
    node.passes(packet("a", "service", udp(80)), "a", "node1")
    node.refused(packet("a", "outside", udp(80)), "a", "policy_egress")
    node.refused(packet("a", "b", udp(80)), "node1", "policy_egress")
