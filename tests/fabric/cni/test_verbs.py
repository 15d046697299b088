"""ADD and DEL under every fault: no namespace, no record, repeated, wrong version, hostile values.

Kind `veth` and, where it matters, `bridge`; what the daemon has to do with it is in test_daemon.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fabric.cni.attachment import Attachment
from tests.fabric.cni.host import GC_KEY, Host, add, with_result
from tests.fabric.daemon.nodes import ip

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

KINDS = pytest.mark.parametrize("kind", ["veth", "bridge"])


@KINDS
def test_add_check_del(host: Host, kind: str) -> None:
    pod, conf = host.pod(), host.conf(kind)
    result = add(host, pod, kind)
    assert {ip["address"].partition("/")[0] for ip in result["ips"]} == host.reserved()
    assert host.call("CHECK", with_result(conf, result), pod) == (0, None, "")
    assert host.call("DEL", with_result(conf, result), pod) == (0, None, "")
    assert set(pod.links()) == {"lo"}
    assert host.reserved() == set()


# --- no namespace ---


@pytest.fixture
def gone(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if request.param != "FIFO":
        return str(request.param)
    os.mkfifo(tmp_path / "fifo")
    return str(tmp_path / "fifo")


@pytest.mark.parametrize(
    ("gone", "code"),
    [
        ("/run/netns/nobody", 3),
        ("/etc/hostname/x", 3),
        ("/etc/hostname", 8),
        ("/etc", 8),
        ("FIFO", 8),
        ("/proc/self/ns/mnt", 8),
    ],
    indirect=["gone"],
)
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_add_and_check_need_a_network_namespace(host: Host, command: str, gone: str, code: int) -> None:
    answer = host.call(command, with_result(host.conf(), {}), host.pod(), CNI_NETNS=gone)
    assert answer.code == code
    assert host.reserved() == set()


@KINDS
@pytest.mark.parametrize("netns", ["/run/netns/nobody", "/etc/hostname", None, ""])
def test_del_succeeds_when_the_namespace_is_gone(host: Host, kind: str, netns: str | None) -> None:
    pod = host.pod()
    add(host, pod, kind)
    host.delete_pod(pod)
    assert host.call("DEL", host.conf(kind), pod, CNI_NETNS=netns).status == 0
    assert (host.reserved(), host.records()) == (set(), set())


@KINDS
def test_del_removes_the_interface_of_a_namespace_that_only_the_runtime_forgot(host: Host, kind: str) -> None:
    pod = host.pod()
    add(host, pod, kind)
    assert host.call("DEL", host.conf(kind), pod, CNI_NETNS=None).status == 0
    assert set(pod.links()) == {"lo"}


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_the_hosts_own_namespace_is_refused(host: Host, command: str) -> None:
    """Or DEL would delete the host's eth0."""
    answer = host.call(command, host.conf(), host.pod(), CNI_NETNS=f"/run/netns/{host.netns}")
    assert answer.code == 8
    assert "eth0" in host.links()
    answer = host.call(command, host.conf(), host.pod(), CNI_NETNS="/proc/self/ns/net")
    assert answer.code == 8


# --- no record, damaged record ---


@KINDS
@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "foreign", "link"])
def test_del_works_without_its_record(host: Host, kind: str, damage: str) -> None:
    pod = host.pod()
    add(host, pod, kind)
    path = host.data / "podnet" / f"{pod.container_id}@eth0"
    whole = path.read_bytes()
    path.unlink()
    if damage == "link":
        path.symlink_to("/etc/hostname")
    elif damage != "absent":
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "foreign": b'{"version":1}'}[damage])
    answer = host.call("DEL", host.conf(kind), pod)
    assert answer.status == 0, answer
    assert ("going by the names" in answer.log) is (damage != "absent")
    assert (set(pod.links()), host.reserved(), host.records()) == ({"lo"}, set(), set())
    assert Path("/etc/hostname").exists()


@KINDS
def test_check_works_without_its_record(host: Host, kind: str) -> None:
    pod = host.pod()
    result = add(host, pod, kind)
    (host.data / "podnet" / f"{pod.container_id}@eth0").unlink()
    conf = with_result(host.conf(kind), result)
    assert host.call("CHECK", conf, pod).status == 0
    ip("-n", pod.netns, "route", "del", "default")
    assert host.call("CHECK", conf, pod).code == 113
    host.call("DEL", host.conf(kind), pod).must()


def test_del_goes_by_the_record_when_the_configuration_has_changed(host: Host, tmp_path: Path) -> None:
    pod = host.pod()
    add(host, pod)
    changed = host.conf("bridge", ipam={"dataDir": str(tmp_path)}, bridge="other0")
    assert host.call("DEL", changed, pod).status == 0
    assert (set(pod.links()), host.reserved()) == ({"lo"}, set())


def test_a_configuration_that_add_refuses_is_no_reason_for_del_to_fail(host: Host) -> None:
    for changes in ({"kind": "ipvlan"}, {"kind": "nonsense"}, {"ipam": {"ranges": "x"}}, {"hairpinMode": "x"}):
        pod = host.pod()
        conf = host.conf("bridge") | changes
        assert host.call("ADD", conf, pod).status == 1
        assert host.call("DEL", conf, pod).status == 0


# --- repeated ---


@KINDS
def test_add_twice_is_refused_and_the_first_one_stays(host: Host, kind: str) -> None:
    pod = host.pod()
    result = add(host, pod, kind)
    before = (pod.links(), pod.addresses(), host.reserved(), host.records())
    answer = host.call("ADD", host.conf(kind), pod)
    assert answer.code == 110
    assert "eth0 already exists" in answer.text
    assert (pod.links(), pod.addresses(), host.reserved(), host.records()) == before
    assert host.call("CHECK", with_result(host.conf(kind), result), pod).status == 0
    host.call("DEL", host.conf(kind), pod).must()


@KINDS
def test_an_interface_of_somebody_else_is_left_alone(host: Host, kind: str) -> None:
    pod = host.pod()
    ip("-n", pod.netns, "link", "add", "eth0", "type", "bridge")
    assert host.call("ADD", host.conf(kind), pod).code == 110
    assert host.call("DEL", host.conf(kind), pod).status == 0
    assert pod.links()["eth0"]["linkinfo"]["info_kind"] == "bridge"


@KINDS
def test_del_may_be_repeated_and_may_come_first(host: Host, kind: str) -> None:
    pod, conf = host.pod(), host.conf(kind)
    assert host.call("DEL", conf, pod).status == 0
    result = add(host, pod, kind)
    for _ in range(3):
        assert host.call("DEL", with_result(conf, result), pod) == (0, None, "")


@KINDS
def test_a_late_second_del_takes_nothing_from_the_next_owner(host: Host, kind: str) -> None:
    """The address has been given to another pod since; prevResult still names it."""
    first, second = host.pod(), host.pod()
    result = add(host, first, kind)
    host.call("DEL", with_result(host.conf(kind), result), first).must()
    wanted = [item["address"].partition("/")[0] for item in result["ips"]]
    again = add(host, second, kind, runtimeConfig={"ips": wanted})
    before = (host.routes(), host.routes(6), host.reserved(), second.links().keys())
    assert host.call("DEL", with_result(host.conf(kind), result), first).status == 0
    assert (host.routes(), host.routes(6), host.reserved(), second.links().keys()) == before
    assert host.call("CHECK", with_result(host.conf(kind), again), second).status == 0
    host.call("DEL", host.conf(kind), second).must()


@KINDS
def test_a_container_may_be_in_a_network_twice(host: Host, kind: str) -> None:
    pod, conf = host.pod(), host.conf(kind)
    for ifname in ("eth0", "net1"):
        host.call("ADD", conf, pod, CNI_IFNAME=ifname).must()
    assert set(pod.links()) == {"lo", "eth0", "net1"}
    host.call("DEL", conf, pod, CNI_IFNAME="eth0").must()
    assert set(pod.links()) == {"lo", "net1"}
    assert len(host.reserved()) == 2
    host.call("DEL", conf, pod, CNI_IFNAME="net1").must()


# --- versions ---


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_add_answers_in_the_configurations_version(host: Host, version: str) -> None:
    pod, conf = host.pod(), host.conf(cniVersion=version)
    result = add(host, pod, cniVersion=version)
    assert result["cniVersion"] == version
    assert ("ip4" in result) is (version < "0.3.0")
    if version >= "0.3.0":
        assert ("version" in result["ips"][0]) is (version < "1.0.0")
        assert ("mtu" in result["interfaces"][0]) is (version == "1.1.0")
    checked = host.call("CHECK", with_result(conf, result), pod)
    assert checked.code == (0 if version >= "0.4.0" else 1)
    for command in ("STATUS", "GC"):
        keep = {GC_KEY: [{"containerID": pod.container_id, "ifname": "eth0"}]}
        assert host.call(command, conf | keep).code == (0 if version == "1.1.0" else 1)
    host.call("DEL", with_result(conf, result), pod).must()


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_a_version_that_is_not_spoken_is_refused(host: Host, command: str) -> None:
    answer = host.call(command, host.conf(cniVersion="1.2.0"), host.pod())
    assert answer.code == 1
    assert "1.2.0" in answer.text
    assert host.reserved() == set()


# --- hostile values ---

HOSTILE: list[tuple[dict[str, Any], dict[str, str], int]] = [
    ({}, {"CNI_CONTAINERID": "../../../etc/x"}, 4),
    ({}, {"CNI_CONTAINERID": "x\n"}, 4),
    ({}, {"CNI_IFNAME": "a/../b"}, 4),
    ({}, {"CNI_IFNAME": "eth%d"}, 4),
    ({}, {"CNI_IFNAME": "all"}, 4),
    ({}, {"CNI_ARGS": "A;B"}, 4),
    ({}, {"CNI_ARGS": "UNKNOWN=1"}, 4),
    ({"name": "../x"}, {}, 7),
    ({"dataDir": "relative"}, {}, 7),
    ({"mtu": 10}, {}, 7),
    ({"ipMasq": "yes"}, {}, 7),
    ({"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}}, {}, 7),
    ({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "$(reboot)"}]}}, {}, 7),
    ({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1}]}, "masqAll": True}, {}, 2),
    ({"ipam": {"type": "../../bin/sh"}}, {}, 7),
    ({"ipam": {"type": "fabric-cni"}}, {}, 7),
    ({"ipam": {"type": "no-such-plugin"}}, {}, 7),
    ({"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}, {}, 7),
    ({"runtimeConfig": {"ips": ["10.9.9.9"]}}, {}, 101),
    ({"prevResult": {"ips": [{"address": "x"}]}}, {}, 6),
    ({"bridge": "eth0"}, {}, 112),
    ({"bridge": "a/b"}, {}, 7),
    ({"vlan": 5}, {}, 2),
    ({"hairpinMode": True, "promiscMode": True}, {}, 7),
]


@pytest.mark.parametrize(("conf", "environ", "code"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_add_is_refused_and_leaves_nothing(
    host: Host, conf: dict[str, Any], environ: dict[str, str], code: int
) -> None:
    pod = host.pod()
    before = host.links().keys()
    answer = host.call("ADD", host.conf("bridge") | conf, pod, **environ)
    assert answer.code == code, answer
    assert "Traceback" not in answer.log
    assert set(pod.links()) == {"lo"}
    assert (host.links().keys() - {"cni0"}, host.reserved(), host.records()) == (before - {"cni0"}, set(), set())


def test_a_configuration_beyond_a_megabyte_is_refused(host: Host) -> None:
    text = json.dumps(host.conf(filler="x" * (1 << 20))).encode()
    assert host.call("ADD", text, host.pod()).code == 6


def test_the_hosts_interface_is_named_after_the_attachment_and_says_whose_it_is(host: Host) -> None:
    pod = host.pod()
    add(host, pod)
    name = Attachment("podnet", pod.container_id, "eth0").host_interface
    assert host.links()[name]["ifalias"] == f"fabric-cni podnet/{pod.container_id}/eth0"
    host.call("DEL", host.conf(), pod).must()
