"""What `veth` and `bridge` make: interfaces, addresses, routes, settings, and that packets pass."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fabric.cni.host import Host, PodNamespace, add, with_result
from tests.fabric.daemon.nodes import ip

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]


def sysctl(netns: str, path: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", netns, "cat", f"/proc/sys/net/{path}"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def v4_v6(result: dict[str, Any]) -> list[str]:
    return [item["address"].partition("/")[0] for item in result["ips"]]


def delete(host: Host, *pods: PodNamespace, kind: str = "veth") -> None:
    for pod in pods:
        host.call("DEL", host.conf(kind), pod).must()


def test_a_routed_pair(host: Host) -> None:
    pod = host.pod()
    result = add(host, pod)
    v4, v6 = v4_v6(result)
    name = result["interfaces"][0]["name"]
    link = host.links()[name]
    assert result == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": name, "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1450},
            {"name": "eth0", "mac": pod.links()["eth0"]["address"], "mtu": 1450, "sandbox": pod.path},
        ],
        "ips": [{"address": f"{v4}/32", "interface": 1}, {"address": f"{v6}/128", "interface": 1}],
        "routes": [
            {"dst": "169.254.1.1/32"},
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee"},
        ],
    }
    assert (link["address"], link["mtu"], link["operstate"]) == ("ee:ee:ee:ee:ee:ee", 1450, "UP")
    assert (host.routes(), host.routes(6)) == ({(v4, name)}, {(v6, name)})
    assert pod.routes() == {("169.254.1.1", ""), ("default", "169.254.1.1")}
    assert pod.routes(6) == {(v6, ""), ("default", "fe80::ecee:eeff:feee:eeee")}
    delete(host, pod)


def test_pods_hosts_and_the_outside_reach_each_other_over_routed_pairs(host: Host) -> None:
    pods = [host.pod(), host.pod()]
    results = [add(host, pod) for pod in pods]
    ip("-n", host.outside, "route", "replace", "10.244.1.0/24", "via", "192.0.2.1")
    ip("-n", host.outside, "route", "replace", "2001:db8:42:1::/64", "via", "2001:db8::1")
    for address in v4_v6(results[1]):
        assert pods[0].pings(address)
        assert host.pings(address)
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"):
        assert pods[0].pings(address)
    delete(host, *pods)


def test_a_pod_that_flushes_its_neighbours_still_finds_the_gateway(host: Host) -> None:
    ip("-n", host.netns, "route", "replace", "default", "via", "192.0.2.2")  # proxy ARP answers what it can route
    pod = host.pod()
    add(host, pod)
    for address in ("169.254.1.1", "fe80::ecee:eeff:feee:eeee"):
        ip("-n", pod.netns, "neigh", "del", address, "dev", "eth0")
    assert pod.pings("192.0.2.1")
    assert pod.pings("2001:db8::1")
    delete(host, pod)
    ip("-n", host.netns, "route", "del", "default")


def test_a_pod_cannot_send_with_anothers_ipv4_address(host: Host) -> None:
    pods = [host.pod(), host.pod()]
    victim = v4_v6(add(host, pods[0]))[0]
    add(host, pods[1])
    ip("-n", pods[1].netns, "address", "add", f"{victim}/32", "dev", "eth0")
    command = ["ip", "netns", "exec", pods[1].netns, "ping", "-c", "1", "-W", "1", "-I", victim, "192.0.2.1"]
    before = sysctl_counter(host.netns, "IPReversePathFilter")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    assert sysctl_counter(host.netns, "IPReversePathFilter") == before + 1
    delete(host, *pods)


def sysctl_counter(netns: str, name: str) -> int:
    """One of the kernel's TcpExt counters."""
    text = subprocess.run(
        ["ip", "netns", "exec", netns, "cat", "/proc/net/netstat"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return int(dict(zip(text[0].split(), text[1].split(), strict=True))[name])


@pytest.mark.parametrize("kind", ["veth", "bridge"])
def test_router_advertisements_and_redirects_change_no_interface_that_we_made(host: Host, kind: str) -> None:
    pod = host.pod()
    result = add(host, pod, kind)
    places = [(pod.netns, "eth0"), *((host.netns, item["name"]) for item in result["interfaces"][:-1])]
    for netns, name in places:
        assert sysctl(netns, f"ipv6/conf/{name}/accept_ra") == "0", name
        assert sysctl(netns, f"ipv6/conf/{name}/accept_redirects") == "0", name
        assert sysctl(netns, f"ipv4/conf/{name}/accept_redirects") == "0", name
    delete(host, pod, kind=kind)


def test_a_bridge(host: Host) -> None:
    pod = host.pod()
    result = add(host, pod, "bridge")
    v4, v6 = v4_v6(result)
    links = host.links()
    names = [item["name"] for item in result["interfaces"]]
    assert (names[0], names[2]) == ("cni0", "eth0"), "bridge, host's interface, container's: the reference's order"
    assert [item.get("sandbox", "") for item in result["interfaces"]] == ["", "", pod.path]
    assert [item["mac"] for item in result["interfaces"][:2]] == [links[name]["address"] for name in names[:2]]
    assert links[names[1]]["master"] == "cni0"
    assert result["ips"] == [
        {"address": f"{v4}/24", "gateway": "10.244.1.1", "interface": 2},
        {"address": f"{v6}/64", "gateway": "2001:db8:42:1::1", "interface": 2},
    ]
    bridge = PodNamespace("", host.netns).addresses("cni0")
    assert bridge == {"10.244.1.1/24", "2001:db8:42:1::1/64"}
    assert pod.routes() == {("10.244.1.0/24", ""), ("default", "10.244.1.1")}
    for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        assert sysctl(host.netns, family) == "1"
    other = host.pod()
    for address in v4_v6(add(host, other, "bridge")):
        assert pod.pings(address)
        assert host.pings(address)
    assert pod.pings("192.0.2.1")
    assert links["cni0"]["address"] == host.links()["cni0"]["address"], "ports do not change its MAC"
    delete(host, pod, other, kind="bridge")


def test_a_bridge_keeps_to_what_is_asked(host: Host) -> None:
    pod, other = host.pod(), host.pod()
    plain = {"bridge": "plain0", "isGateway": False, "isDefaultGateway": False, "mtu": 1400}
    result = add(host, pod, "bridge", **plain, runtimeConfig={"mac": "02:00:00:00:00:07"})
    assert PodNamespace("", host.netns).addresses("plain0") == set()
    assert "routes" not in result
    assert (pod.links()["eth0"]["mtu"], pod.links()["eth0"]["address"]) == (1400, "02:00:00:00:00:07")
    port = host.links()[result["interfaces"][1]["name"]]
    assert port["linkinfo"]["info_slave_data"]["hairpin"] is False
    hairpin = add(host, other, "bridge", hairpinMode=True, dns={"nameservers": ["192.0.2.53"]})
    port = host.links()[hairpin["interfaces"][1]["name"]]
    assert port["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert hairpin["dns"] == {"nameservers": ["192.0.2.53"]}
    delete(host, pod, other, kind="bridge")
    third = host.pod()
    add(host, third, "bridge", bridge="prom0", promiscMode=True, isGateway=False, isDefaultGateway=False)
    assert host.links()["prom0"]["promiscuity"] >= 1
    delete(host, third, kind="bridge")
    for name in ("plain0", "prom0"):
        ip("-n", host.netns, "link", "del", name)


def test_an_address_that_does_not_fit_is_an_error_or_replaced(host: Host) -> None:
    ip("-n", host.netns, "link", "add", "old0", "type", "bridge")
    ip("-n", host.netns, "address", "add", "10.244.9.1/24", "dev", "old0")
    pod = host.pod()
    answer = host.call("ADD", host.conf("bridge", bridge="old0"), pod)
    assert answer.code == 112
    assert '"old0" already has an IP address different from 10.244.1.1/24' in answer.text
    assert "ip addr del 10.244.9.1/24 dev old0" in answer.text, "what to do"
    assert (set(pod.links()), host.reserved()) == ({"lo"}, set())
    add(host, pod, "bridge", bridge="old0", forceAddress=True)
    assert PodNamespace("", host.netns).addresses("old0") == {"10.244.1.1/24", "2001:db8:42:1::1/64"}
    delete(host, pod, kind="bridge")
    ip("-n", host.netns, "link", "del", "old0")


def test_check_notices_what_is_wrong_with_the_bridge(host: Host) -> None:
    pod = host.pod()
    result = add(host, pod, "bridge", bridge="br7")
    conf, port = with_result(host.conf("bridge", bridge="br7"), result), result["interfaces"][1]["name"]
    assert host.call("CHECK", conf, pod).status == 0
    ip("-n", host.netns, "link", "set", port, "nomaster")
    assert "not in bridge br7" in host.call("CHECK", conf, pod).text
    ip("-n", host.netns, "link", "set", port, "master", "br7")
    ip("-n", host.netns, "link", "set", "br7", "down")
    assert "br7 is down" in host.call("CHECK", conf, pod).text
    ip("-n", host.netns, "link", "del", "br7")
    assert "no bridge br7" in host.call("CHECK", conf, pod).text
    delete(host, pod, kind="bridge")


def test_routes_of_ipam_are_made_as_they_say(host: Host) -> None:
    ipam = {
        "dataDir": str(host.networks),
        "ranges": [[{"subnet": "198.51.100.0/24"}]],
        "routes": [{"dst": "10.0.0.0/8"}, {"dst": "192.0.2.128/25", "gw": "198.51.100.9", "mtu": 1300, "priority": 9}],
    }
    pod = host.pod()
    add(host, pod, "bridge", bridge="br8", isDefaultGateway=False, ipam=ipam)
    found = {item["dst"]: item for item in json.loads(ip("-j", "-n", pod.netns, "route"))}
    assert found["10.0.0.0/8"]["gateway"] == "198.51.100.1"
    route = found["192.0.2.128/25"]
    assert (route["gateway"], route["metric"], route["metrics"]) == ("198.51.100.9", 9, [{"mtu": 1300}])
    host.call("DEL", host.conf("bridge", ipam=ipam), pod).must()
    ip("-n", host.netns, "link", "del", "br8")
    add(host, pod, ipam=ipam)
    assert pod.routes() == {("169.254.1.1", ""), ("10.0.0.0/8", "169.254.1.1"), ("192.0.2.128/25", "169.254.1.1")}
    delete(host, pod)


def test_a_previous_result_is_kept_in_front_of_ours(host: Host) -> None:
    """Not the first plugin of the chain."""
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "dummy0", "sandbox": "/x"}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"domain": "example.org"},
    }
    pod = host.pod()
    result = add(host, pod, prevResult=previous)
    assert result["interfaces"][0] == previous["interfaces"][0]
    assert [item["interface"] for item in result["ips"]] == [0, 2, 2]
    assert result["routes"][0] == {"dst": "192.0.2.0/24"}
    assert result["dns"] == {"domain": "example.org"}
    delete(host, pod)


def test_other_ipam_plugins_are_executed(host: Host) -> None:
    """Debian's `static`: addresses from the configuration, no reservations."""
    ipam = {"type": "static", "addresses": [{"address": "198.51.100.7/24"}], "routes": [{"dst": "0.0.0.0/0"}]}
    pod = host.pod()
    conf = host.conf(cniVersion="1.0.0", ipam=ipam)
    result = host.call("ADD", conf, pod).must()
    assert v4_v6(result) == ["198.51.100.7"]
    assert host.call("CHECK", with_result(conf, result), pod).status == 0
    assert host.call("STATUS", conf | {"cniVersion": "1.1.0"}).status == 0
    assert host.call("GC", conf | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}).status == 0
    assert set(pod.links()) == {"lo"}
    bad = host.call("ADD", conf | {"ipam": {"type": "static", "addresses": [{"address": "x"}]}}, pod)
    assert bad.status == 1
    assert "plugin static" in bad.text
    assert set(pod.links()) == {"lo"}


def test_the_reference_ipam_plugin_and_ours_share_one_directory(host: Host) -> None:
    """An address of Debian's host-local is not given again by ours."""
    ranges = {"ranges": [[{"subnet": "198.51.100.0/24"}]], "dataDir": str(host.networks)}
    conf = {"cniVersion": "1.0.0", "name": "podnet", "type": "bridge", "ipam": {"type": "host-local", **ranges}}
    theirs, ours = host.pod(), host.pod()
    given = host.execute("host-local", host.environment("ADD", theirs), conf).must()
    result = add(host, ours, ipam=ranges)
    assert v4_v6(given) == ["198.51.100.2"]
    assert v4_v6(result) == ["198.51.100.3"]
    delete(host, ours)
    host.execute("host-local", host.environment("DEL", theirs), conf)


@pytest.mark.parametrize("kind", ["veth", "bridge"])
def test_the_runtimes_ranges_and_addresses(host: Host, tmp_path: Path, kind: str) -> None:
    """`runtimeConfig.ipRanges` takes the place of the node's subnets, also without subnet.env; addresses may be asked
    for in three places."""
    sets = [[{"subnet": "198.51.100.0/24", "rangeStart": "198.51.100.40"}], [{"subnet": "2001:db8:77::/64"}]]
    conf: dict[str, Any] = {"subnetFile": str(tmp_path / "none"), "bridge": "cni7"}
    pods = [host.pod() for _ in range(4)]
    asked: list[dict[str, Any]] = [
        {},
        {"runtimeConfig": {"ips": ["198.51.100.77"]}},
        {"args": {"cni": {"ips": ["198.51.100.78", "2001:db8:77::78"]}}},
    ]
    found = []
    for pod, each in zip(pods, asked, strict=False):
        runtime = {"runtimeConfig": {"ipRanges": sets, **each.get("runtimeConfig", {})}}
        found.append(v4_v6(add(host, pod, kind, **conf, **each | runtime)))
        assert pods[0].pings(found[-1][1])
    environ = {"CNI_ARGS": "IgnoreUnknown=1;IP=198.51.100.79"}
    document = host.conf(kind, **conf, runtimeConfig={"ipRanges": sets})
    found.append(v4_v6(host.call("ADD", document, pods[3], **environ).must()))
    assert int(found[0][0].removeprefix("198.51.100.")) >= 40
    assert [v4 for v4, _ in found[1:]] == ["198.51.100.77", "198.51.100.78", "198.51.100.79"]
    assert found[2][1] == "2001:db8:77::78"
    delete(host, *pods, kind=kind)
    subprocess.run(["ip", "-n", host.netns, "link", "del", "cni7"], check=False, capture_output=True)


def test_data_is_private(host: Host) -> None:
    pod = host.pod()
    add(host, pod)
    path = host.data / "podnet" / f"{pod.container_id}@eth0"
    assert [oct(item.stat().st_mode & 0o777) for item in (path, path.parent)] == ["0o600", "0o700"]
    delete(host, pod)
    assert Path(host.data / "podnet").is_dir()
