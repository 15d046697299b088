"""The lab on the real kernel: what it brings up works, and whatever happens nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.lab import capture, measure, registry, state, system
from fabric.lab.lab import Lab, remove
from fabric.lab.plan import LabError, Options
from fabric.store.sqlite import SqliteStore

pytestmark = [pytest.mark.root, pytest.mark.slow]

COMMAND = [sys.executable, "-c", "from fabric.lab.cli import lab; lab(prog_name='lab')"]
FOREIGN = "fabtest-lab-foreign"


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        os.sched_yield()


def leftovers() -> list[str]:
    """Everything of a lab that exists: namespaces, files, devices in the host's namespace, processes."""
    found = [*system.namespaces(), *(str(path) for path in state.RUN_DIR.parent.glob("fablab*"))]
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    found += re.findall(r"\S*(?:fablab|flannel|node\d)\S*", links)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "fablab" in words or "fabric.lab.traffic" in words:
                found.append(words)
    return found


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Every test starts without a lab and ends without a trace."""
    remove()
    assert leftovers() == []
    yield
    left = leftovers()
    remove()
    assert left == []


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *argv], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize(
    "options",
    [
        Options(nodes=2, pods=2, pod_kind="bridge"),
        Options(nodes=3, pods=1, kernel_peer=True, ipv6=True),
        Options(nodes=2, pods=2, pod_kind="veth", ipv6=True),
        Options(nodes=2, pods=2, pod_kind="mixed", ipv6=True, mode="veth"),
        Options(nodes=2, pods=1, mode="bare", reserve=False),
        Options(nodes=2, pods=1, fabric="kernel", ipv6=True),
    ],
    ids=["bridge", "kernel-peer-dual", "veth-dual", "mixed-dual-veth", "bare-own-subnets", "kernel-only-dual"],
)
def test_every_pair_answers(options: Options) -> None:
    with Lab(options) as lab:
        pairs = measure.wait_reachable(lab)
        assert [pair for pair in pairs if not pair.ok] == []
        families = 2 if options.ipv6 else 1
        assert len(pairs) == families * len(lab.pods) * (len(lab.pods) - 1)
        reachable = [ip for pod in lab.node("node1").pods for ip in pod.ips]
        argv = measure.tool("ping", *reachable, "--timeout", "5")
        answers = json.loads(lab.exec("node1", argv))["answers"]
        assert all(answer["times"] for answer in answers), "a node reaches its own pods"


def test_traffic_between_fabric_and_kernel_nodes() -> None:
    with Lab(nodes=2, pods=1, kernel_peer=True, mode="veth") as lab:
        fabric, kernel = lab.pods
        for source, target in ((fabric, kernel), (kernel, fabric)):
            assert measure.tcp(lab, source, target, streams=2, seconds=0.4).bytes > 1_000_000
            assert measure.udp(lab, source, target, sizes=[64, 700], flows=3, burst=1, seconds=0.2).delivered > 100
            assert measure.round_trips(lab, source, target, seconds=0.2).count > 10
            counters = measure.namespace_counters(lab, target.name)
            (names, values) = (line.split()[1:] for line in counters.splitlines() if line.startswith("Udp:"))
            assert dict(zip(names, values, strict=True))["InCsumErrors"] == "0"


def test_every_family_has_its_traffic() -> None:
    with Lab(nodes=2, pods=1, ipv6=True) as lab:
        source, target = lab.pods
        for family in (4, 6):
            assert measure.tcp(lab, source, target, seconds=0.3, family=family).bytes > 1_000_000
            assert measure.udp(lab, source, target, seconds=0.2, family=family).delivered > 100
            assert measure.round_trips(lab, source, target, seconds=0.2, family=family).count > 10


def test_an_unreachable_pod_is_one_line() -> None:
    with Lab(nodes=2, pods=1, fabric="kernel") as lab:
        source, target = lab.pods
        lab.exec(source.name, ["ip", "route", "add", "unreachable", target.ip])
        for load in (measure.tcp, measure.udp):
            with pytest.raises(LabError, match=r"did not start: traffic: .*No route to host") as caught:
                load(lab, source, target)
            assert "\n" not in str(caught.value)
        there, back = measure.ping_pairs(lab)
        assert (there.ok, there.error) == (False, "No route to host")
        assert (back.ok, back.error) == (False, ""), "the answer finds no way"


def test_net_conf_holds_for_kernel_nodes_too() -> None:
    conf = {"SubnetLen": 26, "Backend": {"Type": "vxlan", "VNI": 77, "Port": 4789, "MTU": 1400}}
    with Lab(nodes=2, pods=1, kernel_peer=True, net_conf=conf) as lab:
        assert all(pair.ok for pair in measure.wait_reachable(lab))
        assert [node.subnet for node in lab.nodes] == ["10.244.0.64/26", "10.244.0.128/26"]
        assert {node.mtu for node in lab.nodes} == {1350}
        assert "flannel.77" in lab.exec("node2", ["ip", "route"])


def test_the_wire_shows_vxlan() -> None:
    with Lab(nodes=2, pods=1) as lab:
        source, target = lab.pods
        argv = measure.tool("ping", target.ip, "--count", "2")
        lines = capture.capture(lab, "node1", lambda: lab.exec(source.name, argv), 2)
        assert "VXLAN, flags [I] (0x08), vni 1" in lines[0]
        assert f"{source.ip} > {target.ip}: ICMP echo request" in lines[1]
        assert re.search(r"192\.0\.2\.11\.\d+ > 192\.0\.2\.12\.8472", lines[0])


def test_modes_set_the_offloads_of_both_ends() -> None:
    with Lab(nodes=2, pods=0, fabric="kernel") as lab:
        seen = {}
        for mode in ("wire", "veth", "bare"):
            lab.set_mode(mode)  # type: ignore[arg-type]
            ends = [system.run("fablab-node2", ["ethtool", "-k", "eth0"])]
            ends.append(system.run("fablab-underlay", ["ethtool", "-k", "node2"]))
            features = [dict(re.findall(r"^\s*([\w-]+): (on|off)", text, re.MULTILINE)) for text in ends]
            names = ("tx-tcp-segmentation", "tx-udp-segmentation", "generic-receive-offload")
            both = {tuple(end[name] for name in names) for end in features}
            assert len(both) == 1, "both ends agree"
            seen[mode] = both.pop()
        assert seen == {"wire": ("off", "off", "on"), "veth": ("on", "on", "off"), "bare": ("off", "off", "off")}


def test_the_kernel_baseline_takes_and_gives_back_the_traffic() -> None:
    with Lab(nodes=2, pods=1, pod_kind="bridge", ipv6=True) as lab:
        before = {f: lab.exec("node1", ["ip", f, "route"]) for f in ("-4", "-6")}

        def carried() -> int:
            statistics = json.loads(lab.exec("node1", ["ip", "-s", "-j", "link", "show", "dev", "kernel.2"]))
            return int(statistics[0]["stats64"]["tx"]["packets"])

        with lab.kernel_overlay().active():
            assert all(pair.ok for pair in measure.wait_reachable(lab))
            used = carried()
            assert used > 0
        assert all(pair.ok for pair in measure.wait_reachable(lab))
        assert carried() == used, "outside the block the fabric carries everything"
        lab.remove_kernel_overlay()
        assert {f: lab.exec("node1", ["ip", f, "route"]) for f in ("-4", "-6")} == before


def test_a_daemon_can_be_killed_and_restarted() -> None:
    with Lab(nodes=2, pods=1, pod_kind="bridge") as lab:
        first = lab.daemon_pids()["node1"]
        lab.restart_daemon("node1", how=signal.SIGKILL)
        assert lab.daemon_pids()["node1"] != first
        assert all(pair.ok for pair in measure.wait_reachable(lab))
        assert lab.control("node1", "status")
        assert 0 < measure.resident(lab.daemon_pids()["node2"]) < 200_000_000
        with pytest.raises(LabError, match="refused nonsense"):
            lab.control("node1", "nonsense")


async def remove_lease(path: Path, public_ip: str) -> None:
    store = SqliteStore(path)
    await store.open()
    try:
        for entry in (await store.list(registry.PREFIX)).entries.values():
            if public_ip.encode() in entry.value:
                await store.delete(entry.key, entry.revision)
    finally:
        await store.close()


def test_a_kernel_node_follows_a_daemon_that_lost_everything() -> None:
    """With pods of the kernel's: the records of its ports are lost, too."""
    with Lab(nodes=2, pods=1, kernel_peer=True, pod_kind="bridge") as lab:
        before = lab.exec("node2", ["ip", "neigh", "show", "dev", "flannel.1"]).split()
        lab.stop_daemon("node1", signal.SIGKILL)
        asyncio.run(remove_lease(registry.store_path(lab.run_dir), lab.node("node1").underlay_ip))
        shutil.rmtree(lab.run_dir / "node1" / "state", ignore_errors=True)
        lab.start_daemon("node1")
        assert all(pair.ok for pair in measure.wait_reachable(lab)), "the same subnet again, by subnet.env"
        after = lab.exec("node2", ["ip", "neigh", "show", "dev", "flannel.1"]).split()
        assert after[0] == before[0]
        assert after != before, "a new MAC"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_tun_pods_come_back_with_their_daemon(how: signal.Signals) -> None:
    with Lab(nodes=2, pods=2, pod_kind="mixed") as lab:
        lab.restart_daemon("node1", how=how)
        assert all(pair.ok for pair in measure.wait_reachable(lab))


def test_a_daemon_that_fails_shows_its_log() -> None:
    with pytest.raises(LabError) as caught, Lab(nodes=1, pods=0, daemon_args=("--subnet-lease-renew-margin", "0")):
        pass
    assert str(caught.value).startswith("fabricd on node1 ended with status 1:")
    assert "subnet-lease-renew-margin" in str(caught.value)


def test_commands() -> None:
    assert run("up", "--nodes", "2", "--pods", "1").returncode == 0
    shown = json.loads(run("status", "--json").stdout)["nodes"]
    assert [node["name"] for node in shown] == ["node1", "node2"]
    assert shown[0]["pods"] == [{"name": "node1-pod1", "netns": "fablab-node1-pod1", "ips": ["10.244.1.2"]}]
    assert "running" not in run("status").stdout
    assert run("ping").returncode == 0
    assert run("exec", "node1", "--", "ip", "-br", "addr", "show", "eth0").stdout.split()[2] == "192.0.2.11/24"
    assert run("exec", "node1-pod1", "sh", "-c", "exit 7").returncode == 7
    again = run("up")
    assert (again.returncode, again.stderr.strip()) == (
        1,
        "Error: a lab of 2 nodes is up already; `fabricctl lab down` removes it",
    )
    bench = json.loads(run("bench", "--rounds", "1", "--seconds", "0.3", "--json").stdout)
    assert bench["TCP 1 stream"]["ratio"] > 0
    assert run("down").stdout.strip() == "everything removed"
    assert run("down").stdout.strip() == "no lab was up"
    assert run("ping").stderr.strip() == "Error: no lab is up; `fabricctl lab up` makes one"


def test_run_is_the_whole_show() -> None:
    done = run("run", "--seconds", "0.3", "--nodes", "3", "--pods", "1", "--peer", "kernel")
    assert done.returncode == 0, done.stderr
    assert "6 of 6 pod pairs answer ping" in done.stdout
    assert "VXLAN, flags [I] (0x08), vni 1" in done.stdout
    for kinds in ("fabric to fabric", "fabric to kernel", "kernel to fabric"):
        assert kinds in done.stdout
    assert "resident memory: node1" in done.stdout
    assert done.stdout.rstrip().endswith("everything removed")


@contextlib.contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """A lab command in the background, once its namespaces exist."""
    process = subprocess.Popen([*COMMAND, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: any("pod" in name for name in system.namespaces()))
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["starting", "measuring"])
def test_an_interrupt_removes_everything(how: signal.Signals, moment: str) -> None:
    with running("run", "--seconds", "30") as process:
        if moment == "measuring":
            wait_for(lambda: any("tcp-send" in words for words in leftovers()))
        process.send_signal(how)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert errors.strip() == "interrupted"
    assert leftovers() == []


def test_a_killed_lab_is_swept_by_down() -> None:
    with running("run", "--seconds", "30") as process:
        wait_for(lambda: any("tcp-send" in words for words in leftovers()))
        process.kill()
        process.wait()
        assert leftovers() != []
    assert run("down").stdout.strip() == "everything removed"
    assert leftovers() == []


def test_a_killed_lab_is_swept_by_the_next_one() -> None:
    with running("run", "--seconds", "30") as process:
        process.kill()
        process.wait()
    with Lab(nodes=1, pods=1) as lab:
        assert system.namespaces() == ["fablab-node1", "fablab-node1-pod1", "fablab-underlay"]
        assert lab.exec("node1", ["true"]) == ""


def test_two_labs_at_once_are_refused() -> None:
    with Lab(nodes=1, pods=0, fabric="kernel"):
        for argv in (["up"], ["run"], ["down"]):
            refused = run(*argv)
            assert (refused.returncode, refused.stderr.strip()) == (
                1,
                "Error: another lab command is running on this machine; wait for it or stop it",
            )
        assert "fablab-node1" in system.namespaces()


def test_foreign_namespaces_and_processes_stay() -> None:
    subprocess.run(["ip", "netns", "add", FOREIGN], check=True)
    stranger = subprocess.Popen(["ip", "netns", "exec", FOREIGN, "sleep", "60"])
    try:
        with Lab(nodes=1, pods=1, fabric="kernel"):
            pass
        assert stranger.poll() is None
        assert (system.NETNS_DIR / FOREIGN).exists()
        with pytest.raises(LabError, match="is not a namespace of the lab"):
            system.inside(FOREIGN, ["true"])
    finally:
        stranger.kill()
        stranger.wait()
        subprocess.run(["ip", "netns", "del", FOREIGN], check=True)


@pytest.mark.parametrize("tool", ["ethtool", "tcpdump"])
def test_a_missing_tool_is_one_line(tool: str, tmp_path: Path) -> None:
    for name in {"ip", "bridge", "ethtool", "tcpdump", "sh"} - {tool}:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    done = run("run", env={**os.environ, "PATH": str(tmp_path)})
    assert (done.returncode, done.stderr.strip()) == (1, f"Error: {tool} is not installed; apt-get install {tool}")


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match=r"^the lab makes network namespaces and needs root; run it with sudo$"):
        Lab(nodes=1).up()
