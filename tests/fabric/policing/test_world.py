"""Objects around policies, and who is believed about pods and nodes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any

import pytest

from fabric.model import Endpoint, Lease
from fabric.policing import objects
from fabric.policing.world import Endpoints, OwnNode, merged_nodes, merged_pods
from fabric.policy import Node, Pod, PolicyError
from tests.fabric.policing.recorder import network_policy, pod

OWN = OwnNode("n1", (ip_address("192.0.2.1"), ip_address("10.244.1.0"), ip_address("10.244.1.1")))


def lease(number: int, node: str = "") -> Lease:
    return Lease(
        IPv4Network(f"10.244.{number}.0/24"), None, IPv4Address(f"192.0.2.{number}"), None, "vxlan",
        key=f"10.244.{number}.0-24", node=node,
    )  # fmt: skip


def endpoint(name: str, address: str, pod_name: str = "", namespace: str = "", **labels: str) -> Endpoint:
    return Endpoint(name, "tun", "/run/netns/a", "eth0", (ip_address(address),), pod_namespace=namespace,
                    pod_name=pod_name, labels=labels)  # fmt: skip


def test_keys_name_an_object_and_say_its_namespace() -> None:
    value = network_policy("web")
    del value["metadata"]["namespace"]
    key, value = objects.normal(value)
    assert key == "networking.k8s.io/v1/NetworkPolicy/default/web"
    assert value["metadata"]["namespace"] == "default"
    assert objects.title(key) == "NetworkPolicy default/web"
    key, _ = objects.normal({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "namespace": "x"}})
    assert (key, objects.title(key), objects.is_around(key)) == ("v1/Node//n", "Node n", True)


@pytest.mark.parametrize("value", [{}, {"kind": "Pod"}, {"apiVersion": "v1", "kind": "Pod", "metadata": []}])
def test_without_a_name_it_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        objects.normal(value)


def test_a_pod_as_the_api_writes_it() -> None:
    value = pod("web", "10.244.1.5", app="web")
    value["spec"] |= {
        "serviceAccountName": "robot",
        "containers": [{"ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 1}]},
                       {"ports": [{"name": "http", "containerPort": 9}]}],
        "initContainers": [{"ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
    }  # fmt: skip
    found = objects.read_around(value)
    assert found == Pod("shop", "web", {"app": "web"}, (ip_address("10.244.1.5"),), "n1", False,
                        {"http": ("TCP", 8080), "dns": ("UDP", 53)}, "robot")  # fmt: skip
    value["status"]["phase"] = "Succeeded"
    ended = objects.read_around(value)
    assert isinstance(ended, Pod)
    assert ended.addresses == ()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"status": {"podIPs": [{"ip": "x"}]}}, "status.podIPs[0].ip"),
        ({"spec": {"hostNetwork": "yes"}}, "spec.hostNetwork"),
        ({"spec": {"containers": [{"ports": [{"name": "a", "containerPort": 0}]}]}},
         "spec.containers[0].ports[0].containerPort"),
    ],
)  # fmt: skip
def test_a_pod_that_cannot_be_read(change: dict[str, Any], path: str) -> None:
    with pytest.raises(PolicyError) as caught:
        objects.read_around({**pod("web", "10.244.1.5"), **change})
    assert caught.value.path == path


def test_an_endpoint_is_believed_about_addresses_and_the_object_about_labels() -> None:
    known = Pod("shop", "web", {"app": "web"}, (ip_address("10.244.9.9"),), "elsewhere", True)
    thief = Pod("shop", "thief", {}, (ip_address("10.244.1.5"), ip_address("10.244.1.6")), "n1")
    found = merged_pods(
        OWN,
        {known.key: known, thief.key: thief},
        [endpoint("p1", "10.244.1.5", "web", "shop", app="old"), endpoint("p2", "2001:db8::5", "web", "shop")],
    )
    assert found["shop", "web"] == Pod(
        "shop", "web", {"app": "web"}, (ip_address("10.244.1.5"), ip_address("2001:db8::5")), "n1"
    )
    assert found["shop", "thief"].addresses == (ip_address("10.244.1.6"),)


def test_an_endpoint_without_an_object_has_the_runtimes_labels_and_one_without_a_name_its_own() -> None:
    found = merged_pods(OWN, {}, [endpoint("p1", "10.244.1.5", "web", "", app="web"), endpoint("p2", "10.244.1.6")])
    assert found["default", "web"].labels == {"app": "web"}
    assert found["default", "p2"].addresses == (ip_address("10.244.1.6"),)


def test_a_pod_in_our_subnet_is_ours_before_its_endpoint_is_there() -> None:
    own = OwnNode("n1", (), (IPv4Network("10.244.1.0/24"),))
    pods = {("shop", name): Pod("shop", name, {}, (ip_address(address),), "elsewhere")
            for name, address in (("a", "10.244.1.5"), ("b", "10.244.2.5"))}  # fmt: skip
    assert {key[1]: pod.node for key, pod in merged_pods(own, pods, ()).items()} == {"a": "n1", "b": "elsewhere"}


def test_where_an_api_has_all_pods_one_that_it_does_not_have_is_none() -> None:
    found = Endpoints(OWN, [endpoint("p1", "10.244.1.5", "web", "shop"), endpoint("p2", "10.244.1.6")], strict=True)
    assert found.merged(("shop", "web"), None) is None
    assert found.merged(("shop", "web"), Pod("shop", "web")) is not None
    assert found.merged(("default", "p2"), None) is not None  # made by hand: nobody will write an object for it


def test_nodes_are_known_by_lease_and_object() -> None:
    given = [Node("worker", {"zone": "a"}, (ip_address("192.0.2.2"),)), Node("n1", {"zone": "b"})]
    found = merged_nodes(OWN, given, [lease(1), lease(2), lease(3), lease(4, "four")])
    assert {name: len(node.addresses) for name, node in found.items()} == {
        "worker": 3, "n1": 3, "10.244.3.0-24": 3, "four": 3
    }  # fmt: skip
    assert found["worker"].labels == {"zone": "a"}
    assert ip_address("10.244.2.0") in found["worker"].addresses
    assert ip_address("10.244.2.1") in found["worker"].addresses
    assert found["n1"] == Node("n1", {"zone": "b"}, OWN.addresses)
