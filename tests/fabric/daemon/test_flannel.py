"""A node on which flanneld was before: what counts as flannel's, in which order it is taken over, and when not."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from fabric import config, leases
from fabric.daemon.flannel import Flannel, find
from fabric.errors import DataplaneError, StartError
from fabric.store.memory import MemoryStore
from routes.state import InterfaceState
from routes.vxlan import VxlanDevice
from tests.fabric.clock import Clock
from tests.fabric.fakes import Bench, FakeFlannel, Journal

P = leases.subnets_prefix()
MAC, MAC6 = bytes.fromhex("12c66589b4e3"), bytes.fromhex("12c66589b4e6")


def device(name: str = "flannel.1", mac: bytes = MAC, vni: int = 1, port: int = 8472) -> VxlanDevice:
    return VxlanDevice(
        link=InterfaceState(name, 7, 1450, 1000, up=True, carrier=True),
        mac=mac,
        vni=vni,
        port=port,
        underlay=2,
        local=ip_address("192.0.2.1"),
        group=None,
        learning=False,
        l2miss=False,
        gbp=False,
        external=False,
    )


def host(*devices: VxlanDevice, running: tuple[int, ...] = ()) -> FakeFlannel:
    made = FakeFlannel(Journal())
    made.left, made.running = list(devices), list(running)
    return made


VXLAN = config.parse(config.DEFAULT_TEXT)


@pytest.mark.parametrize(
    ("found", "conf", "names"),
    [
        ((device(),), VXLAN, ["flannel.1"]),
        ((device("flannel-v6.1", MAC6), device()), VXLAN, ["flannel.1", "flannel-v6.1"]),
        ((device("vx0"),), VXLAN, []),
        ((device(vni=2),), VXLAN, []),
        ((device(port=4789),), VXLAN, []),
        ((device("flannel.2", vni=2),), VXLAN, []),
        ((device(),), config.parse('{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":2}}'), []),
        ((device(port=4789),), config.parse('{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":4789}}'),
         ["flannel.1"]),
    ],
)  # fmt: skip
def test_what_counts_as_flannels(found: tuple[VxlanDevice, ...], conf: config.NetConf, names: list[str]) -> None:
    assert [item.link.name for item in find(conf, host(*found)).devices] == names


def test_macs_by_family() -> None:
    assert find(VXLAN, host(device(), device("flannel-v6.1", MAC6))).macs() == {4: MAC, 6: MAC6}


def test_a_running_flanneld_is_named() -> None:
    with pytest.raises(StartError, match=r"flanneld \(pid 812\) runs on this node: stop it first"):
        find(VXLAN, host(device(), running=(812,)))


def start(tmp_path: Path, *words: str, left: tuple[VxlanDevice, ...] = (device(),), value: bytes = b"") -> Bench:
    """Start and stop a node on such a host; `value` is its lease of 10.244.7.0/24 in the store."""

    async def whole() -> Bench:
        store = MemoryStore()
        if value:
            await store.put(P + "10.244.7.0-24", value, 0, None)
        bench = Bench(tmp_path, store, Clock(), *words)
        bench.flannel.left = list(left)
        node = bench.node()
        await node.start()
        assert bench.dataplane.state is not None
        bench.journal.steps.append(bench.dataplane.state.vteps[0].mac.hex())
        await node.stop()
        return bench

    return asyncio.run(whole())


def test_the_device_goes_after_the_lease_and_right_before_the_port_is_bound(tmp_path: Path) -> None:
    steps = start(tmp_path).journal.steps
    assert steps[:6] == [
        "privileges", "firewall", "remove flannel.1", "open", "device_free", "create_node_port",
    ]  # fmt: skip
    assert MAC.hex() in steps  # no lease of ours was there: peers that remember this MAC go on


def test_the_leases_mac_wins_over_the_devices(tmp_path: Path) -> None:
    value = b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"}}'
    steps = start(tmp_path, value=value % b"02:00:00:00:00:77").journal.steps
    assert "020000000077" in steps


def test_with_adopt_off_nothing_of_flannels_is_looked_at(tmp_path: Path) -> None:
    steps = start(tmp_path, "--adopt=false").journal.steps
    assert steps[:4] == ["privileges", "open", "device_free", "create_node_port"]


@pytest.mark.parametrize("step", ["remove flannel.1", "open"])
def test_a_start_that_fails_then_leaves_no_lease(tmp_path: Path, step: str) -> None:
    async def whole() -> None:
        store = MemoryStore()
        bench = Bench(tmp_path, store, Clock())
        bench.flannel.left = [device()]
        bench.journal.fail[step] = DataplaneError("no")
        node = bench.node()
        with pytest.raises(DataplaneError):
            await node.start()
        await node.stop()
        assert not (await store.list("")).entries
        assert "create_node_port" not in bench.journal.steps

    asyncio.run(whole())


@pytest.mark.slow
def test_a_refused_start_leaves_flannels_device(tmp_path: Path) -> None:
    async def whole() -> None:
        store = MemoryStore()
        store.fail("store is locked")
        bench = Bench(tmp_path, store, Clock())
        bench.flannel.left = [device()]
        node = bench.node()
        with pytest.raises(StartError):
            await node.start()
        await node.stop()
        assert bench.flannel.left == [device()]

    asyncio.run(whole())


@pytest.fixture
def flanneld(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is called flanneld."""
    program = tmp_path / "flanneld"
    program.symlink_to(sys.executable)
    code = "print(1, flush=True); input()"
    with subprocess.Popen([str(program), "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.communicate()


def test_a_flanneld_in_this_namespace_is_found(flanneld: subprocess.Popen[bytes]) -> None:
    assert flanneld.pid in Flannel().processes()


@pytest.mark.root
def test_a_flanneld_in_another_network_namespace_is_not_ours(flanneld: subprocess.Popen[bytes]) -> None:
    code = "from fabric.daemon.flannel import Flannel; print(Flannel().processes())"
    command = ["unshare", "--net", sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ}).stdout
    assert str(flanneld.pid) not in shown


REMOVE = '''
import subprocess
from fabric.daemon.flannel import Flannel
subprocess.run("ip link add flannel.1 type vxlan id 1 local 192.0.2.1 dstport 8472".split(), check=True)
subprocess.run("ip link add vx6 type vxlan id 77 local 2001:db8::1 dstport 4789".split(), check=True)
host = Flannel()
device, other = host.devices()
host.remove(device)
host.remove(device)
assert host.devices() == [other], host.devices()
print(other.link.name, other.vni, other.port, other.local, other.underlay)
'''


@pytest.mark.root
def test_a_device_is_removed_and_one_that_is_gone_is_fine() -> None:
    command = ["unshare", "--net", sys.executable, "-c", REMOVE]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ}).stdout
    assert shown.split() == ["vx6", "77", "4789", "2001:db8::1", "0"]
