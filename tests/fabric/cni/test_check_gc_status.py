"""CHECK notices what is wrong, GC removes what is not valid any more, STATUS says whether ADD can be served."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fabric.cni.host import GC_KEY, Host, add, with_result
from tests.fabric.daemon.nodes import ip

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

KINDS = pytest.mark.parametrize("kind", ["veth", "bridge"])


# --- CHECK ---

BREAKAGE: dict[str, tuple[str, str]] = {
    "address": ("address del {v4}/32 dev eth0", "has lost its address"),
    "IPv6 address": ("address del {v6}/128 dev eth0", "has lost its address"),
    "route": ("route del default", "has lost its route to 0.0.0.0/0"),
    "down": ("link set eth0 down", "is down"),
    "MTU": ("link set eth0 mtu 1300", "has MTU 1300, 1450 is expected"),
    "MAC": ("link set eth0 address 02:00:00:00:00:99", "has MAC"),
    "interface": ("link del eth0", "is not there"),
}


@pytest.mark.parametrize("what", BREAKAGE)
def test_check_notices(host: Host, what: str) -> None:
    pod = host.pod()
    result = add(host, pod)
    v4, v6 = (item["address"].partition("/")[0] for item in result["ips"])
    command, text = BREAKAGE[what]
    ip("-n", pod.netns, *command.format(v4=v4, v6=v6).split())
    answer = host.call("CHECK", with_result(host.conf(), result), pod)
    assert answer.code == 113
    assert text in answer.text
    host.call("DEL", host.conf(), pod).must()


def test_check_notices_the_hosts_side(host: Host) -> None:
    pod = host.pod()
    result = add(host, pod)
    conf, name = with_result(host.conf(), result), result["interfaces"][0]["name"]
    address = result["ips"][0]["address"].partition("/")[0]
    ip("-n", host.netns, "route", "del", address)
    assert "no route to" in host.call("CHECK", conf, pod).text
    ip("-n", host.netns, "link", "set", name, "down")
    assert host.call("CHECK", conf, pod).code == 113
    (host.networks / "podnet" / address).unlink()
    (host.networks / "podnet" / result["ips"][1]["address"].partition("/")[0]).unlink()
    assert host.call("CHECK", conf, pod).code == 102, "IPAM's own code"
    host.call("DEL", host.conf(), pod).must()


def test_check_needs_a_previous_result_with_our_interface(host: Host) -> None:
    pod = host.pod()
    add(host, pod)
    assert host.call("CHECK", host.conf(), pod).code == 7
    assert host.call("CHECK", with_result(host.conf(), {"ips": []}), pod).code == 7
    host.call("DEL", host.conf(), pod).must()


def test_check_lets_a_later_plugin_change_what_it_says_in_the_result(host: Host) -> None:
    pod = host.pod()
    result = add(host, pod)
    ip("-n", pod.netns, "link", "set", "eth0", "address", "02:00:00:00:00:99")
    ip("-n", pod.netns, "route", "del", "default")
    changed = result | {"routes": [{"dst": "198.51.100.0/24"}]}
    changed["interfaces"] = [result["interfaces"][0], result["interfaces"][1] | {"mac": "02:00:00:00:00:99"}]
    assert host.call("CHECK", with_result(host.conf(), changed), pod).status == 0
    host.call("DEL", host.conf(), pod).must()


# --- GC ---


@KINDS
def test_gc_removes_what_is_not_valid_and_nothing_else(host: Host, kind: str) -> None:
    pods = [host.pod() for _ in range(3)]
    for pod in pods:
        add(host, pod, kind)
    other = host.pod()
    add(host, other, kind, name="othernet")
    keep = {"containerID": pods[1].container_id, "ifname": "eth0"}
    (host.data / "podnet" / f".{pods[0].container_id}@eth0.99.tmp").write_text("{")
    host.delete_pod(pods[0])
    assert host.call("GC", host.conf(kind, **{GC_KEY: [keep]})).status == 0
    assert host.records() == {f"{pods[1].container_id}@eth0"}
    assert len(host.reserved()) == 2
    assert "eth0" in pods[1].links()
    assert "eth0" not in pods[2].links()
    assert len(host.reserved("othernet")) == 2
    host.call("DEL", host.conf(kind), pods[1]).must()
    host.call("DEL", host.conf(kind, name="othernet"), other).must()


def test_gc_goes_on_after_errors_and_reports_them(host: Host) -> None:
    pods = [host.pod(), host.pod()]
    for pod in pods:
        add(host, pod)
    path = host.data / "podnet" / f"{pods[0].container_id}@eth0"
    path.unlink()
    path.mkdir()
    answer = host.call("GC", host.conf(**{GC_KEY: []}))
    assert answer.code == 5
    assert "Is a directory" in answer.text
    assert host.reserved() == set(), "everything else was done"
    assert all(set(pod.links()) == {"lo"} for pod in pods)
    path.rmdir()


def test_gc_without_its_list_or_with_a_bad_one_removes_nothing(host: Host) -> None:
    pod = host.pod()
    add(host, pod)
    for changes in ({}, {GC_KEY: "all"}, {GC_KEY: [{"containerID": pod.container_id}]}):
        assert host.call("GC", host.conf(**changes)).code == 7
    assert host.call("GC", host.conf(**{GC_KEY: []}), CNI_PATH=None).code == 4
    assert "eth0" in pod.links()
    host.call("DEL", host.conf(), pod).must()


# --- STATUS ---


def test_status(host: Host, tmp_path: Path) -> None:
    assert host.call("STATUS", host.conf()) == (0, None, "")
    missing = host.call("STATUS", host.conf(subnetFile=str(tmp_path / "subnet.env")))
    assert missing.code == 50
    assert "failed to load flannel 'subnet.env' file" in missing.text
    assert host.call("STATUS", host.conf(kind="tap")).code == 51
    assert host.call("STATUS", host.conf("bridge", vlan=3)).code == 2


def test_status_says_when_no_address_is_left(host: Host) -> None:
    ipam = {"dataDir": str(host.networks), "ranges": [[{"subnet": "198.51.100.0/30"}]]}
    conf, pod = host.conf(name="tiny", ipam=ipam), host.pod()
    assert host.call("STATUS", conf).status == 0
    host.call("ADD", conf, pod).must()
    assert host.call("STATUS", conf).code == 50
    assert host.call("ADD", conf, host.pod()).code == 11
    host.call("DEL", conf, pod).must()
    assert host.call("STATUS", conf).status == 0
