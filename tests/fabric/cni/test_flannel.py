"""Type `flannel`: as flannel's plugin, the delegate done by ourselves or executed, in turns with Debian's bridge."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fabric.cni.host import GC_KEY, SUBNET_ENV, Host, PodNamespace, with_result
from tests.fabric.cni.test_hostside import NODE, OUTSIDE, elements, seen
from tests.fabric.daemon.nodes import ip

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]


def saved(host: Host, pod: PodNamespace) -> Path:
    return host.directory / "flannel" / pod.container_id


def add(host: Host, pod: PodNamespace, **changes: Any) -> Any:
    return host.call("ADD", host.flannel_conf(**changes), pod).must()


def delete(host: Host, pod: PodNamespace, **changes: Any) -> None:
    assert host.call("DEL", host.flannel_conf(**changes), pod).status == 0
    assert (set(pod.links()), host.reserved("cbr0"), saved(host, pod).exists()) == ({"lo"}, set(), False)


def no_masquerading(host: Host, directory: Path) -> dict[str, str]:
    """A subnet.env that leaves masquerading to the delegate."""
    path = directory / "subnet.env"
    path.write_text(SUBNET_ENV.replace("IPMASQ=true", "IPMASQ=false"))
    return {"subnetFile": str(path)}


def test_the_delegate_bridge_is_done_by_ourselves(host: Host) -> None:
    pod = host.pod()
    conf = host.flannel_conf(cniVersion="1.0.0")
    answer = host.call("ADD", conf, pod, CNI_PATH="/nowhere")
    result = answer.must()
    assert [item["name"] for item in result["interfaces"]][::2] == ["cni0", "eth0"]
    assert [item["gateway"] for item in result["ips"]] == ["10.244.1.1", "2001:db8:42:1::1"]
    assert pod.routes() == {("default", "10.244.1.1"), ("10.244.0.0/16", "10.244.1.1"), ("10.244.1.0/24", "")}
    port = host.links()[result["interfaces"][1]["name"]]
    assert port["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert pod.links()["eth0"]["mtu"] == 1450
    document = json.loads(saved(host, pod).read_text())
    assert (document["type"], document["name"], document["mtu"]) == ("bridge", "cbr0", 1450)
    assert stat.S_IMODE(saved(host, pod).stat().st_mode) == 0o600
    assert host.call("CHECK", with_result(conf, result), pod).status == 0
    ip("-n", pod.netns, "route", "del", "10.244.0.0/16")
    assert host.call("CHECK", with_result(conf, result), pod).code == 113
    delete(host, pod)


def test_a_delegate_that_masquerades_is_done_by_ourselves(host: Host, tmp_path: Path) -> None:
    """FLANNEL_IPMASQ=false: no reference plugin is needed for it, and another node's pods see the pod itself."""
    pod, changes = host.pod(), no_masquerading(host, tmp_path)
    conf = host.flannel_conf(cniVersion="1.0.0", **changes)
    result = host.call("ADD", conf, pod, CNI_PATH="/nowhere").must()
    target = PodNamespace("", host.outside)
    own = {version: ip["address"].partition("/")[0] for version, ip in zip((4, 6), result["ips"], strict=True)}
    elsewhere = {4: "10.244.9.9", 6: "2001:db8:42:9::9"}
    for version in (4, 6):
        assert seen(target, pod.netns, OUTSIDE[version], 80) == NODE[version]
        with another_nodes_pod(host, elsewhere[version]):
            assert seen(target, pod.netns, elsewhere[version], 80) == own[version]
    assert {name for name, _ in elements(host)} == {"masquerade4", "masquerade6"}
    assert host.call("CHECK", with_result(conf, result), pod).status == 0
    delete(host, pod, **changes)
    assert elements(host) == []
    host.call("ADD", conf, pod).must()
    saved(host, pod).unlink()
    delete(host, pod, **changes)
    assert elements(host) == [], "also by the names alone"


@contextmanager
def another_nodes_pod(host: Host, address: str) -> Iterator[None]:
    """An address of the pod network behind the neighbour, with the way back to the pods here."""
    version = 6 if ":" in address else 4
    back = {4: "10.244.1.0/24", 6: "2001:db8:42:1::/64"}[version]
    network = {4: "10.244.9.0/24", 6: "2001:db8:42:9::/64"}[version]
    ip("-n", host.outside, "address", "add", address, "dev", "lo")
    ip("-n", host.outside, "route", "add", back, "via", NODE[version])
    ip("-n", host.netns, "route", "add", network, "via", OUTSIDE[version])
    yield
    ip("-n", host.netns, "route", "del", network)
    ip("-n", host.outside, "route", "del", back)
    ip("-n", host.outside, "address", "del", address, "dev", "lo")


def test_a_pod_that_the_real_bridge_masquerades_is_deleted_by_it(host: Host, tmp_path: Path) -> None:
    """Only it knows its rules."""
    pod, changes = host.pod(), no_masquerading(host, tmp_path)
    conf = host.flannel_conf(cniVersion="1.0.0", **changes)
    host.call("ADD", conf, pod).must()
    document = json.loads(saved(host, pod).read_text())
    delete(host, pod, **changes)
    theirs = {key: value for key, value in document.items() if key not in ("masqueradedBy", "subnetFile")}
    host.execute("bridge", host.environment("ADD", pod), theirs).must()
    saved(host, pod).write_text(json.dumps(theirs))
    assert masquerading(host, pod)
    assert host.call("DEL", conf, pod, CNI_PATH="/nowhere").status == 1
    delete(host, pod, **changes)
    assert not masquerading(host, pod)


def masquerading(host: Host, pod: PodNamespace) -> bool:
    """Whether the reference plugin has rules for the pod."""
    command = ["ip", "netns", "exec", host.netns, "iptables-save", "-t", "nat"]
    return pod.container_id in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_any_other_delegate_is_executed_and_its_errors_come_through(host: Host) -> None:
    pod = host.pod()
    delegate = {"type": "ptp"}
    result = host.call("ADD", host.flannel_conf(cniVersion="1.0.0", delegate=delegate), pod).must()
    assert "eth0" in pod.links()
    assert result["ips"]
    delete(host, pod, delegate=delegate)
    answer = host.call("ADD", host.flannel_conf(delegate={"type": "no-such"}), pod)
    assert answer.code == 7
    assert "failed to delegate add: failed to find plugin no-such" in answer.text
    delete(host, pod)


def test_a_pod_of_the_real_bridge_is_deleted_by_ours_and_the_reverse(host: Host) -> None:
    """The files are the same, so either plugin may be installed when a pod goes."""
    pods = [host.pod(), host.pod()]
    add(host, pods[0])
    document = json.loads(saved(host, pods[0]).read_text())
    theirs = host.execute("bridge", host.environment("ADD", pods[1]), document).must()
    saved(host, pods[1]).write_text(json.dumps(document))
    conf = host.flannel_conf(cniVersion="0.4.0")
    as_040 = theirs | {"cniVersion": "0.4.0"}
    assert host.call("CHECK", with_result(conf, as_040), pods[1]).status == 0
    assert pods[0].pings(next(iter(pods[1].addresses())).partition("/")[0])
    host.execute("bridge", host.environment("DEL", pods[0]), document)
    saved(host, pods[0]).unlink()
    assert len(host.reserved("cbr0")) == 2
    delete(host, pods[1])
    assert set(pods[0].links()) == {"lo"}


@pytest.mark.parametrize("damage", ["absent", "empty", "rubbish", "half"])
def test_del_without_its_file_succeeds_and_still_frees_the_addresses(host: Host, damage: str) -> None:
    pod = host.pod()
    add(host, pod)
    whole = saved(host, pod).read_text()
    if damage == "absent":
        saved(host, pod).unlink()
    else:
        saved(host, pod).write_text({"empty": "", "rubbish": "\0[", "half": whole[: len(whole) // 2]}[damage])
    delete(host, pod)
    delete(host, pod)


def test_del_needs_no_subnet_env(host: Host, tmp_path: Path) -> None:
    pod = host.pod()
    add(host, pod)
    delete(host, pod, subnetFile=str(tmp_path / "gone"))


def test_a_file_stays_when_the_delegates_del_fails(host: Host) -> None:
    """flannel's own plugin removes it, and the second DEL has nothing to go by."""
    pod, delegate = host.pod(), {"type": "ptp"}
    host.call("ADD", host.flannel_conf(delegate=delegate), pod).must()
    assert host.call("DEL", host.flannel_conf(delegate=delegate), pod, CNI_PATH="/nowhere").status == 1
    assert saved(host, pod).exists()
    delete(host, pod, delegate=delegate)


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"delegate": {"name": "x"}}, 7, "must not have 'name' field"),
    ({"delegate": {"ipam": {}}}, 7, "must not have 'ipam' field"),
    ({"delegate": {"type": 1}}, 7, "must have (string) 'type' field"),
    ({"delegate": {"type": "../bridge"}}, 7, "type must be the name of a plugin"),
    ({"delegate": {"type": "flannel"}}, 7, "without end"),
    ({"delegate": {"mtu": "x"}}, 7, "mtu must be a number"),
    ({"subnetFile": "/nowhere/subnet.env"}, 11, "Check the log of fabricd (or the flannel pod)"),
    ({"subnetFile": "subnet.env"}, 7, "absolute path"),
    ({"cniVersion": "7.0.0"}, 1, "incompatible"),
]


@pytest.mark.parametrize(("changes", "code", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refusals_leave_nothing(host: Host, changes: dict[str, Any], code: int, text: str) -> None:
    pod = host.pod()
    answer = host.call("ADD", host.flannel_conf(**changes), pod)
    assert answer.code == code
    assert text in answer.text
    assert (set(pod.links()), host.reserved("cbr0"), saved(host, pod).exists()) == ({"lo"}, set(), False)


def test_status_and_gc(host: Host, tmp_path: Path) -> None:
    conf = host.flannel_conf(cniVersion="1.1.0")
    assert host.call("STATUS", conf).status == 0
    assert host.call("STATUS", conf | {"subnetFile": str(tmp_path / "no")}).code == 50
    assert host.call("STATUS", conf | {"delegate": {"type": "no-such"}}).code == 7
    assert host.call("STATUS", conf | {"delegate": {"type": "ptp"}}).status == 0
    pods = [host.pod(), host.pod()]
    for pod in pods:
        add(host, pod)
    (host.directory / "flannel" / ".x.5.tmp").write_text("")
    foreign = host.directory / "flannel" / "another-network"
    foreign.write_text(json.dumps({"name": "other", "type": "bridge", "cniVersion": "1.0.0"}))
    host.delete_pod(pods[0])
    valid = [{"containerID": pods[1].container_id, "ifname": "eth0"}]
    assert host.call("GC", conf | {GC_KEY: valid}).status == 0
    assert len(host.reserved("cbr0")) == 2
    assert (saved(host, pods[0]).exists(), saved(host, pods[1]).exists(), foreign.exists()) == (False, True, True)
    delete(host, pods[1])
    foreign.unlink()


def test_add_twice_and_a_foreign_interface_are_refused(host: Host) -> None:
    pod = host.pod()
    add(host, pod)
    assert host.call("ADD", host.flannel_conf(), pod).code == 110
    assert saved(host, pod).exists()
    delete(host, pod)


def test_our_own_type_may_be_the_delegate(host: Host) -> None:
    """A flannel configuration that gets routed pairs: our plugin, executed by our plugin."""
    pod = host.pod()
    delegate = {"type": "fabric-cni", "kind": "veth", "dataDir": str(host.data)}
    result = host.call("ADD", host.flannel_conf(delegate=delegate), pod).must()
    assert result["cniVersion"] == "0.3.1"
    assert ("169.254.1.1", "") in pod.routes()
    delete(host, pod, delegate=delegate)
