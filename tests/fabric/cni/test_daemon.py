"""Kind `tun`: ports of the real daemon, and what happens when it is down, restarted or stuck."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fabric.cni.attachment import Attachment
from tests.fabric.cni.host import GC_KEY, DaemonHost, PodNamespace, add, with_result
from tests.fabric.daemon.nodes import ip
from tests.scenarios.waiting import wait_for

pytestmark = pytest.mark.root


@pytest.fixture
def node(daemon_host: DaemonHost) -> Iterator[DaemonHost]:
    """The host with its daemon running; each test leaves nothing behind."""
    if daemon_host.node.ended():
        daemon_host.start()
    yield daemon_host
    assert (daemon_host.records(), daemon_host.reserved()) == (set(), set())
    assert (daemon_host.routes(), daemon_host.routes(6)) == (set(), set())
    assert daemon_host.node.ended() or daemon_host.ports() == {}


def port_of(pod: PodNamespace) -> str:
    return Attachment("podnet", pod.container_id, "eth0").port


def addresses_of(result: dict[str, Any]) -> list[str]:
    return [item["address"].partition("/")[0] for item in result["ips"]]


def test_add_check_del(node: DaemonHost) -> None:
    pod, conf = node.pod(), node.conf("tun")
    result = add(node, pod, "tun")
    v4, v6 = addresses_of(result)
    interface = {"name": "eth0", "mac": "00:00:00:00:00:00", "mtu": 1430, "sandbox": pod.path}
    assert result["interfaces"] == [interface], "podman takes no interface without a MAC"
    assert result["ips"] == [{"address": f"{v4}/32", "interface": 0}, {"address": f"{v6}/128", "interface": 0}]
    assert result["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert pod.addresses() == {f"{v4}/32", f"{v6}/128"}
    assert (pod.routes(), pod.routes(6)) == ({("default", "")}, {("default", ""), (v6, "")})
    assert node.ports() == {port_of(pod): [v4, v6]}
    assert (node.routes(), node.routes(6)) == ({(v4, "flannel.1")}, {(v6, "flannel.1")})
    assert node.call("CHECK", with_result(conf, result), pod) == (0, None, "")
    assert node.call("STATUS", conf) == (0, None, "")
    assert node.call("DEL", with_result(conf, result), pod) == (0, None, "")
    assert set(pod.links()) == {"lo"}


def test_host_and_pods_reach_each_other(node: DaemonHost) -> None:
    pods = [node.pod(), node.pod()]
    results = [add(node, pod, "tun") for pod in pods]
    for address in addresses_of(results[1]):
        assert node.pings(address)
        assert pods[0].pings(address)
    for address in ("192.0.2.1", "2001:db8::1"):
        assert pods[0].pings(address)
    for pod in pods:
        node.call("DEL", node.conf("tun"), pod).must()


def test_a_tap_pod_has_one_neighbour_and_keeps_its_device_over_a_restart(node: DaemonHost) -> None:
    tap, tun = node.pod(), node.pod()
    results = [add(node, tap, "tap", runtimeConfig={"mac": "02:00:00:00:00:77"}), add(node, tun, "tun")]
    assert results[0]["interfaces"][0]["mac"] == tap.links()["eth0"]["address"] == "02:00:00:00:00:77"
    assert node.call("CHECK", with_result(node.conf("tap"), results[0]), tap).code == 0

    def talk() -> bool:
        here = all(node.pings(address) for address in addresses_of(results[0]))
        return here and all(tap.pings(address) for address in [*addresses_of(results[1]), "192.0.2.1", "2001:db8::1"])

    assert talk()
    found = json.loads(ip("-j", "-n", tap.netns, "neighbour"))
    neighbours = {(item["dst"], item["lladdr"]) for item in found if "lladdr" in item}
    assert neighbours == {("169.254.1.1", "ee:ee:ee:ee:ee:ee"), ("fe80::ecee:eeff:feee:eeee", "ee:ee:ee:ee:ee:ee")}
    node.stop()
    node.start()
    assert talk()
    for pod, kind in ((tap, "tap"), (tun, "tun")):
        node.call("DEL", node.conf(kind), pod).must()
    assert set(tap.links()) == {"lo"}


def test_the_requested_address_and_mtu_are_used(node: DaemonHost) -> None:
    pod = node.pod()
    subnet = node.node.env()["FLANNEL_SUBNET"].rpartition(".")[0]
    result = add(node, pod, "tun", mtu=1300, args={"cni": {"ips": [f"{subnet}.77"]}})
    assert addresses_of(result)[0] == f"{subnet}.77"
    assert pod.links()["eth0"]["mtu"] == result["interfaces"][0]["mtu"] == 1300
    node.call("DEL", node.conf("tun"), pod).must()


REFUSED: list[tuple[dict[str, Any], int]] = [
    ({"runtimeConfig": {"mac": "02:00:00:00:00:01"}}, 2),
    ({"ipam": {"ranges": [[{"subnet": "198.51.100.0/24"}], [{"subnet": "192.0.2.128/25"}]]}}, 7),
    ({"runDir": "relative"}, 7),
]


@pytest.mark.parametrize(("changes", "code"), REFUSED, ids=range(len(REFUSED)))
def test_what_a_port_cannot_be_is_refused_and_leaves_nothing(
    node: DaemonHost, changes: dict[str, Any], code: int
) -> None:
    conf = node.conf("tun")
    ipam = {**conf["ipam"], **changes.get("ipam", {})}
    assert node.call("ADD", conf | changes | {"ipam": ipam}, node.pod()).code == code


def test_an_address_that_the_daemon_knows_as_anothers_is_refused_and_leaves_nothing(node: DaemonHost) -> None:
    pod, other = node.pod(), node.pod()
    subnet = node.node.env()["FLANNEL_SUBNET"].rpartition(".")[0]
    node.node.ask("port.add", name="foreign", netns=other.path, ifname="eth0", addresses=[f"{subnet}.99"])
    answer = node.call("ADD", node.conf("tun", runtimeConfig={"ips": [f"{subnet}.99"]}), pod)
    assert answer.code == 111
    assert "is port foreign's" in answer.text
    assert node.ports() == {"foreign": [f"{subnet}.99"]}
    node.node.ask("port.delete", name="foreign")


@pytest.mark.parametrize("how", ["down", "never"])
def test_without_a_daemon_add_is_to_be_tried_again_and_reserves_nothing(node: DaemonHost, how: str) -> None:
    conf = node.conf("tun", **({"runDir": str(node.directory / "nowhere")} if how == "never" else {}))
    if how == "down":
        node.stop()
    answer = node.call("ADD", conf, node.pod())
    assert answer.code == 11
    assert "fabricd" in answer.text
    assert (node.records(), node.reserved()) == (set(), set())
    assert node.call("STATUS", conf).code == 51
    assert node.call("GC", conf | {GC_KEY: []}).status == 0, "its ports are gone with it"


def test_del_works_while_the_daemon_is_down_and_the_next_call_tells_it(node: DaemonHost) -> None:
    pod, conf = node.pod(), node.conf("tun")
    result = add(node, pod, "tun")
    node.stop()
    assert node.call("CHECK", with_result(conf, result), pod).code == 113
    assert node.call("DEL", with_result(conf, result), pod).status == 0
    assert node.reserved() == set()
    assert node.records() == {f".late.{pod.container_id}@eth0"}
    assert node.call("DEL", conf, pod).status == 0
    node.start()
    node.call("GC", conf | {GC_KEY: []}).must()


def test_after_a_restart_of_the_daemon_check_finds_nothing_amiss_and_del_cleans_up(node: DaemonHost) -> None:
    pod, conf = node.pod(), node.conf("tun")
    result = add(node, pod, "tun")
    node.stop()
    node.start()
    assert node.call("CHECK", with_result(conf, result), pod) == (0, None, "")
    assert node.call("DEL", with_result(conf, result), pod) == (0, None, "")


@contextmanager
def stuck(node: DaemonHost) -> Iterator[None]:
    """The daemon accepts and answers nothing."""
    assert node.node.process is not None
    node.node.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        node.node.process.send_signal(signal.SIGCONT)


def test_a_daemon_that_is_stuck_holds_nothing_up(node: DaemonHost) -> None:
    """The device is taken from the pod; the port is given back by the next ADD at the latest, which has its address."""
    pod, conf = node.pod(), node.conf("tun")
    result = add(node, pod, "tun")
    with stuck(node):
        deleted = node.call("DEL", with_result(conf, result), pod)
        assert deleted.status == 0
        assert "left to a later call" in deleted.log
        assert set(pod.links()) == {"lo"}
        assert node.call("STATUS", conf).code == 51
    again = node.pod()
    same = add(node, again, "tun", runtimeConfig={"ips": addresses_of(result)})
    assert addresses_of(same) == addresses_of(result)
    assert set(node.ports()) == {port_of(again)}
    node.call("DEL", conf, again).must()


def test_a_port_whose_record_is_lost_is_found_by_its_name(node: DaemonHost) -> None:
    pods, conf = [node.pod(), node.pod()], node.conf("tun")
    for pod in pods:
        add(node, pod, "tun")
        (node.data / "podnet" / f"{pod.container_id}@eth0").unlink()
    assert node.call("DEL", conf, pods[0]).status == 0
    assert set(node.ports()) == {port_of(pods[1])}
    assert len(node.routes()) == 1
    assert node.call("GC", conf | {GC_KEY: []}).status == 0
    assert set(pods[1].links()) == {"lo"}


def test_gc_leaves_valid_ports_and_those_of_others(node: DaemonHost) -> None:
    pods, conf, foreign = [node.pod(), node.pod()], node.conf("tun"), node.pod()
    for pod in pods:
        add(node, pod, "tun")
    other = node.pod()
    add(node, other, "tun", name="othernet", ipam={"dataDir": str(node.networks), "subnet": "198.51.100.0/24"})
    node.node.ask("port.add", name="foreign", netns=foreign.path, ifname="eth0", addresses=["198.51.100.200"])
    node.delete_pod(pods[0])
    keep = {"containerID": pods[1].container_id, "ifname": "eth0"}
    assert node.call("GC", conf | {GC_KEY: [keep]}).status == 0
    others = {"foreign", Attachment("othernet", other.container_id, "eth0").port}
    assert set(node.ports()) == {port_of(pods[1]), *others}
    node.node.ask("port.delete", name="foreign")
    node.call("DEL", node.conf("tun", name="othernet"), other).must()
    node.call("DEL", conf, pods[1]).must()


def test_check_notices_a_port_that_is_gone(node: DaemonHost) -> None:
    pod, conf = node.pod(), node.conf("tun")
    result = add(node, pod, "tun")
    v4, _ = addresses_of(result)
    ip("-n", node.netns, "route", "del", v4, "dev", "flannel.1")
    assert "no route to" in node.call("CHECK", with_result(conf, result), pod).text
    node.node.ask("port.delete", name=port_of(pod))
    wait_for(lambda: set(pod.links()) == {"lo"}, "the device to vanish")
    assert "is not there" in node.call("CHECK", with_result(conf, result), pod).text
    node.call("DEL", conf, pod).must()


def test_a_namespace_that_went_with_its_pod_needs_no_help(node: DaemonHost) -> None:
    pod, conf = node.pod(), node.conf("tun")
    result = add(node, pod, "tun")
    node.delete_pod(pod)
    assert node.call("DEL", with_result(conf, result), pod) == (0, None, "")


def test_pods_of_a_bridge_reach_pods_on_ports_in_the_same_subnet(node: DaemonHost) -> None:
    """As on a node that moves from flannel's bridge to ports: bridged pods ask for the others by ARP and ND."""
    bridged, on_port = node.pod(), node.pod()
    add(node, bridged, "bridge")
    result = add(node, on_port, "tun")
    for address in addresses_of(result):
        assert bridged.pings(address)
    for address in bridged.addresses():
        assert on_port.pings(address.partition("/")[0])
    node.call("DEL", node.conf("tun"), on_port).must()
    proxies = [json.loads(ip("-j", "-n", node.netns, family, "neigh", "show", "proxy")) for family in ("-4", "-6")]
    assert proxies == [[], []]
    node.call("DEL", node.conf("bridge"), bridged).must()
    ip("-n", node.netns, "link", "del", "cni0")
