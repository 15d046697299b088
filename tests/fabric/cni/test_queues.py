"""The device that the plugin makes and hands over, and who it says the pod is: seen by what a daemon receives."""

from __future__ import annotations

import pytest

from fabric.cni.attachment import Attachment
from tests.fabric.cni.acceptor import acceptor
from tests.fabric.cni.host import GC_KEY, Host, PodNamespace, with_result
from tests.fabric.daemon.nodes import ip
from tun.device import Kind

pytestmark = pytest.mark.root

K8S = "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=front-7;K8S_POD_UID=8f1c;K8S_POD_INFRA_CONTAINER_ID=abc"
LABELS = [{"key": "app", "value": "front"}, {"key": "tier", "value": ""}]


@pytest.fixture(scope="module")
def node(host: Host) -> Host:
    """A host with a bridge in the node port's place."""
    ip("-n", host.netns, "link", "add", "node0", "type", "bridge")
    ip("-n", host.netns, "link", "set", "node0", "up")
    return host


def reserved(host: Host) -> tuple[set[str], set[str], set[tuple[str, str]]]:
    return host.reserved(), host.records(), host.routes()


@pytest.mark.parametrize("kind", ["tun", "tap"])
def test_the_queue_of_the_pods_device_is_handed_over(node: Host, kind: str) -> None:
    pod, conf = node.pod(), node.conf(kind, args={"cni": {"labels": LABELS}})
    with acceptor(node) as daemon:
        result = node.call("ADD", conf, pod, CNI_ARGS=K8S).must()
        params, (device,) = daemon.params("port.add"), daemon.devices.values()
        assert params["pod"] == {"namespace": "web", "name": "front-7", "uid": "8f1c", "container_id": "abc"}
        assert params["labels"] == {"app": "front", "tier": ""}
        assert (params.get("kind", "tun"), device.kind) == (kind, Kind.TAP if kind == "tap" else Kind.TUN)
        assert (device.name, device.persistent, device.header_size) == ("eth0", True, 10)
        link = pod.links()["eth0"]
        assert "UP" in link["flags"]
        assert not link["linkinfo"]["info_data"]["multi_queue"]
        assert link["mtu"] == result["interfaces"][0]["mtu"] == 1450
        if kind == "tap":
            assert params["mac"] == result["interfaces"][0]["mac"] == link["address"]
            assert ("default", "169.254.1.1") in pod.routes()
        assert node.call("CHECK", with_result(conf, result), pod) == (0, None, "")
        node.call("DEL", conf, pod).must()
        assert (set(pod.links()), daemon.devices) == ({"lo"}, {})
    assert reserved(node) == (set(), set(), set())


def test_a_pod_keeps_its_device_without_a_daemon_and_del_takes_it(node: Host) -> None:
    """What a restarted daemon finds: the device with addresses and routes, held by nobody."""
    pods = [node.pod(), node.pod()]
    with acceptor(node):
        for pod in pods:
            node.call("ADD", node.conf("tun"), pod).must()
    for pod in pods:
        assert pod.addresses()
        assert ("default", "") in pod.routes()
    node.call("DEL", node.conf("tun"), pods[0]).must()
    assert set(pods[0].links()) == {"lo"}
    node.call("GC", node.conf("tun", **{GC_KEY: []})).must()
    assert set(pods[1].links()) == {"lo"}
    assert reserved(node)[0] == set()
    node.call("GC", node.conf("tun", **{GC_KEY: []})).must()


def test_gc_takes_no_device_of_another_container_at_the_same_path(node: Host) -> None:
    pod, other = node.pod(), node.pod()
    with acceptor(node):
        node.call("ADD", node.conf("tun"), pod).must()
    successor = PodNamespace(other.container_id, pod.netns)
    ip("-n", pod.netns, "link", "set", "eth0", "alias", "somebody else's")
    node.call("GC", node.conf("tun", **{GC_KEY: []})).must()
    assert "eth0" in successor.links()
    ip("-n", pod.netns, "link", "del", "eth0")
    assert reserved(node)[0] == set()


@pytest.mark.parametrize("kind", ["tun", "tap"])
def test_a_daemon_that_takes_no_port_leaves_no_device(node: Host, kind: str) -> None:
    with acceptor(node, "port: 10.244.1.9 is port foreign's") as daemon:
        pod = node.pod()
        answer = node.call("ADD", node.conf(kind), pod)
        assert answer.code == 111
        assert "is port foreign's" in answer.text
        assert set(pod.links()) == {"lo"}
        asked = [params for method, params in daemon.asked if method == "port.add"]
        assert len(asked) == (2 if kind == "tun" else 1), "kind tun leaves it to a daemon that makes its own devices"
    assert reserved(node) == (set(), set(), set())


@pytest.mark.parametrize("kind", ["veth", "bridge"])
def test_other_kinds_tell_whose_pod_it_is(node: Host, kind: str) -> None:
    """The acceptor knows no endpoints, as an earlier daemon: that is no reason to fail."""
    pod = node.pod()
    with acceptor(node) as daemon:
        result = node.call("ADD", node.conf(kind), pod, CNI_ARGS=K8S).must()
        params = daemon.params("endpoint.add")
        name = Attachment("podnet", pod.container_id, "eth0").port
        assert (params["name"], params["kind"], params["pod"]["name"]) == (name, kind, "front-7")
        assert [text.partition("/")[0] for text in params["addresses"]] == [
            item["address"].partition("/")[0] for item in result["ips"]
        ]
        node.call("DEL", node.conf(kind), pod).must()
        assert daemon.params("endpoint.delete") == {"name": name}


def test_hostile_identities_are_left_out(node: Host) -> None:
    pod, labels = node.pod(), [{"key": "a\nb", "value": "x"}, {"key": 7}, "x", {"key": "ok", "value": "y" * 300}]
    args = "IgnoreUnknown=1;K8S_POD_NAME=a\x1b[31m;K8S_POD_NAMESPACE=" + "n" * 300
    with acceptor(node) as daemon:
        node.call("ADD", node.conf("veth", args={"cni": {"labels": labels}}), pod, CNI_ARGS=args).must()
        params = daemon.params("endpoint.add")
        assert params["pod"] == {"container_id": pod.container_id}
        assert "labels" not in params
        node.call("DEL", node.conf("veth"), pod).must()
