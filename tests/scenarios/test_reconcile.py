"""Somebody changes what the daemon keeps in the kernel: it is restored soon, and traffic hardly notices."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.lab import Lab, daemons, system
from tests.scenarios import flows, inside
from tests.scenarios.waiting import duration, wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

TARGET_SECONDS = 0.5
GATE_SECONDS = 2 * TARGET_SECONDS
DEVICE = "flannel.1"
NODE = "fablab-node1"
PEER = "10.244.2.0/24"
PEER6 = "2001:db8:42:2::/64"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2, pods=1, pod_kind="bridge", ipv6=True, mode="veth") as made:
        yield made


def observed() -> dict[str, Any]:
    """Everything on the device that is the daemon's to keep."""

    def read() -> dict[str, str]:
        paths = [f"net/ipv6/conf/{DEVICE}/accept_ra", f"net/ipv6/conf/{DEVICE}/addr_gen_mode"]
        paths.append(f"net/ipv4/conf/{DEVICE}/accept_local")
        return {path: (Path("/proc/sys") / path).read_text().strip() for path in paths}

    try:
        link = inside.ip_json(NODE, "link", "show", "dev", DEVICE)[0]
        found = inside.ip_json(NODE, "addr", "show", "dev", DEVICE)[0]["addr_info"]
        routes = [*inside.ip_json(NODE, "-4", "route", "show"), *inside.ip_json(NODE, "-6", "route", "show")]
        sysctls = inside.call(NODE, read)
    except (subprocess.CalledProcessError, FileNotFoundError):
        return {}
    return {
        "mtu": link["mtu"],
        "up": "UP" in link["flags"],
        "txqlen": link.get("txqlen"),
        "addresses": sorted((item["local"], item["prefixlen"]) for item in found),
        "routes": sorted((item["dst"], item.get("gateway"), item["dev"]) for item in routes if item["dst"] in OURS),
        "protocols": sorted(str(item["protocol"]) for item in routes if item["dst"] in OURS),
        "sysctls": sysctls,
    }


OURS = (PEER, PEER6)


def ip(*words: str) -> Callable[[], None]:
    return lambda: inside.ip(NODE, *words)


def sysctl(path: str, value: str) -> Callable[[], None]:
    def write() -> None:
        inside.call(NODE, lambda: (Path("/proc/sys") / path).write_text(value))

    return write


def everything_at_once() -> None:
    for words in (
        ("-4", "route", "flush", "proto", "112"),
        ("-6", "route", "flush", "proto", "112"),
        ("addr", "flush", "dev", DEVICE),
        ("link", "set", DEVICE, "mtu", "1300", "txqueuelen", "7"),
        ("link", "set", DEVICE, "down"),
    ):
        inside.ip(NODE, *words)


FAULTS: dict[str, Callable[[], None]] = {
    "route deleted": ip("route", "del", PEER),
    "IPv6 route deleted": ip("-6", "route", "del", PEER6),
    "all routes flushed": ip("route", "flush", "proto", "112"),
    "route to another gateway": ip(
        "route", "replace", PEER, "via", "10.244.2.9", "dev", DEVICE, "onlink", "proto", "112"
    ),
    "address deleted": ip("addr", "del", "10.244.1.0/32", "dev", DEVICE),
    "IPv6 address deleted": ip("addr", "del", "2001:db8:42:1::/128", "dev", DEVICE),
    "all addresses flushed": ip("addr", "flush", "dev", DEVICE),
    "foreign overlay address": ip("addr", "add", "10.244.1.0/16", "dev", DEVICE),
    "accept_ra": sysctl(f"net/ipv6/conf/{DEVICE}/accept_ra", "2"),
    "accept_local": sysctl(f"net/ipv4/conf/{DEVICE}/accept_local", "0"),
    "MTU": ip("link", "set", DEVICE, "mtu", "1280"),
    "MTU too small for IPv6": ip("link", "set", DEVICE, "mtu", "1000"),
    "queue length": ip("link", "set", DEVICE, "txqueuelen", "3"),
    "device down": ip("link", "set", DEVICE, "down"),
    "device deleted": ip("link", "delete", DEVICE),
    "everything at once": everything_at_once,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_changed_object_is_restored(lab: Lab, fault: str) -> None:
    one, other = lab.pods
    wanted = observed()
    assert len(wanted["routes"]) == 2
    assert len(wanted["addresses"]) == 2
    pids = lab.daemon_pids()
    with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
        start = time.monotonic()
        FAULTS[fault]()
        restored = duration(lambda: observed() == wanted, f"{wanted} after {fault}, not {observed()}", 5)
        outage = probes.outage(start, 5)
    assert restored <= GATE_SECONDS
    assert outage <= GATE_SECONDS
    assert lab.daemon_pids() == pids
    assert lab.dead_daemons() == []
    assert lab.control("node1", "status")["kernel"]["problems"] == []
    for family in (0, 1):
        assert flows.send_tcp(one.netns, other.netns, other.ips[family], 1 << 20).intact


def test_the_same_fault_over_and_over(lab: Lab) -> None:
    """Twenty times in a row, without waiting, each kind: it settles."""
    one, other = lab.pods
    wanted = observed()
    with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
        for _ in range(20):
            for words in (("route", "del", PEER), ("addr", "del", "10.244.1.0/32", "dev", DEVICE)):
                subprocess.run(["ip", "-n", NODE, *words], capture_output=True, check=False)
        last = time.monotonic()
        wait_for(lambda: observed() == wanted, "the desired state", GATE_SECONDS)
        assert probes.outage(last) <= GATE_SECONDS


def test_a_deleted_device_comes_back_every_time(lab: Lab) -> None:
    one, other = lab.pods
    wanted = observed()
    for _ in range(5):
        with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
            start = time.monotonic()
            inside.ip(NODE, "link", "delete", DEVICE)
            wait_for(lambda: observed() == wanted, "the device", 5)
            assert probes.outage(start, 5) <= GATE_SECONDS


def test_another_programs_route_in_place_of_ours_is_reported_and_left_alone(lab: Lab) -> None:
    """Two programs that both insist would fight for ever: the daemon says what is wrong, and is back when it ends."""
    wanted = observed()
    inside.ip(NODE, "route", "replace", PEER, "via", "192.0.2.1", "dev", "eth0", "proto", "static")

    def problems() -> list[str]:
        found: list[str] = lab.control("node1", "status")["kernel"]["problems"]
        return found

    wait_for(problems, "a problem in the status", GATE_SECONDS)
    assert f"ip route del {PEER} proto" in problems()[0], "what to do about it"
    inside.ip(NODE, "route", "del", PEER, "via", "192.0.2.1", "dev", "eth0")
    wait_for(lambda: observed() == wanted, "our route", GATE_SECONDS)
    wait_for(lambda: problems() == [], "no problem any more", GATE_SECONDS)


def test_what_is_not_ours_stays(lab: Lab) -> None:
    """A route of another protocol through our device and an address outside the overlay are somebody else's."""
    inside.ip(NODE, "route", "add", "203.0.113.0/24", "dev", DEVICE, "proto", "static")
    inside.ip(NODE, "addr", "add", "198.51.100.9/32", "dev", DEVICE)
    FAULTS["route deleted"]()
    wait_for(lambda: (PEER, "10.244.2.0", DEVICE) in observed()["routes"], "our route", GATE_SECONDS)
    assert "203.0.113.0/24" in [route["dst"] for route in inside.ip_json(NODE, "route", "show", "dev", DEVICE)]
    assert ("198.51.100.9", 32) in observed()["addresses"]
    inside.ip(NODE, "route", "del", "203.0.113.0/24", "dev", DEVICE)
    inside.ip(NODE, "addr", "del", "198.51.100.9/32", "dev", DEVICE)


def test_the_underlay_flaps(lab: Lab) -> None:
    """Carrier and link state of eth0: traffic is back with the link, nothing is restarted."""
    one, other = lab.pods
    pids = lab.daemon_pids()
    for side, device in (("fablab-underlay", "node1"), ("fablab-underlay", "node2")):
        for _ in range(3):
            with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
                inside.ip(side, "link", "set", device, "down")
                wait_for(lambda probes=probes: probes.answered[-20:] == [0.0] * 20, "silence")  # type: ignore[misc]
                inside.ip(side, "link", "set", device, "up")
                start = time.monotonic()
                assert probes.wait_answer(start, "traffic after the flap") <= GATE_SECONDS
    assert lab.daemon_pids() == pids
    assert lab.dead_daemons() == []


def test_the_underlay_address_goes_and_comes_back(lab: Lab) -> None:
    one, other = lab.pods
    pids = lab.daemon_pids()
    with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
        inside.ip(NODE, "addr", "del", "192.0.2.11/24", "dev", "eth0")
        wait_for(lambda: probes.answered[-20:] == [0.0] * 20, "silence")
        line = "eth0 has no usable IPv4 address"
        wait_for(lambda: line in lab.log("node1").read_text(), "a line in the log")
        inside.ip(NODE, "addr", "add", "192.0.2.11/24", "dev", "eth0")
        inside.ip(NODE, "route", "replace", "default", "via", "192.0.2.1")
        assert probes.wait_answer(time.monotonic(), "traffic with the address back") <= GATE_SECONDS
    assert lab.daemon_pids() == pids


# A second daemon


SECOND = {
    "same directory": ((), "another fabricd (pid {pid}) runs with --run-dir {run}"),
    "own directory": (("--run-dir", "{extra}"), "port 8472: held by process {pid} (fabricd)"),
    "own directory and device": (
        ("--run-dir", "{extra}", "--device", "other.1"),
        "port 8472: held by process {pid} (fabricd)",
    ),
}


@pytest.mark.parametrize("case", SECOND)
def test_a_second_daemon_is_refused_and_disturbs_nothing(lab: Lab, tmp_path: Path, case: str) -> None:
    one, other = lab.pods
    wanted, files = observed(), tree(lab.run_dir)
    node, pid = lab.node("node1"), lab.daemon_pids()["node1"]
    names = {"pid": pid, "run": lab.run_dir / "node1" / "run", "extra": tmp_path / "run"}
    arguments, reason = SECOND[case]
    argv = daemons.command(node, lab.run_dir, [word.format(**names) for word in arguments])
    with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
        start = time.monotonic()
        done = subprocess.run(system.inside(node.netns, argv), capture_output=True, text=True, timeout=20, check=False)
        assert probes.lost(start) == 0
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (1, 1), lines
    assert reason.format(**names) in json.loads(lines[0])["message"]
    assert observed() == wanted
    assert tree(lab.run_dir) == files
    assert list(tmp_path.iterdir()) == []
    assert lab.control("node1", "status")["pid"] == pid
    assert lab.dead_daemons() == []


def tree(directory: Path) -> dict[str, bytes]:
    """Files below a directory with their content; databases and logs by name only."""
    return {
        str(path.relative_to(directory)): b""
        if path.suffix in (".db", ".log", ".db-wal", ".db-shm")
        else path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


# A kernel device in the way


def test_a_kernel_vxlan_device_in_the_way_is_named(lab: Lab) -> None:
    node = lab.node("node1")
    lab.stop_daemon("node1")
    files = tree(lab.run_dir)
    for name, argv in (
        (DEVICE, ("--adopt=false",)),
        ("flannel.7", ()),
        ("flannel.7", ("--device", "other.1")),
    ):
        inside.ip(NODE, "link", "add", name, "type", "vxlan", "id", "1", "dev", "eth0", "local", node.underlay_ip,
                  "dstport", "8472", "nolearning")  # fmt: skip
        inside.ip(NODE, "link", "set", name, "up")
        before = inside.ip_json(NODE, "addr", "show")
        command = system.inside(node.netns, daemons.command(node, lab.run_dir, argv))
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        message = json.loads(done.stderr)["message"]
        assert name in message
        assert f"ip link delete {name}" in message, "what to do about it"
        assert inside.ip_json(NODE, "addr", "show") == before
        assert tree(lab.run_dir) == files
        inside.ip(NODE, "link", "delete", name)
    lab.start_daemon("node1")
    one, other = lab.pods
    assert flows.exchange_datagrams(one.netns, one.ip, other.netns, other.ip, [1, 1000]) == []
