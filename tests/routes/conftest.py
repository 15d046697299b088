"""Network namespaces for tests: the calling thread enters a fresh one and comes back.

setns(2) moves one thread; threads and processes it starts while inside are born there too (thread pools, `ip`), so code
under test needs no parameter and pytest's other threads are untouched.
"""

import asyncio
import ctypes
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from routes.state import DesiredState, DeviceState

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = count()


def enter_namespace(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if LIBC.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {path}: the test needs root")
    finally:
        os.close(descriptor)


def ip(command: str, *, check: bool = True) -> str:
    """`ip <command>`, in the namespace of the calling thread; its output."""
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"ip {command}: {done.stderr.strip()}")
    return done.stdout


def ip_batch(lines: list[str], *, force: bool = False) -> None:
    """Many `ip` commands by one process, as quickly as it can."""
    arguments = ["ip", *(["-force"] if force else []), "-batch", "-"]
    subprocess.run(arguments, input="\n".join(lines), capture_output=True, text=True, check=not force)


def ip_json(command: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(ip(f"-j {command}") or "[]")
    return answer


def kernel_routes(device: str, protocol: str = "112") -> set[tuple[str, str]]:
    """(prefix, gateway) of both families through `device` with `protocol`, as iproute2 sees them."""
    found = [
        route
        for family in (4, 6)
        for route in ip_json(f"-{family} route show dev {device} proto {protocol} table main")
    ]
    return {(route["dst"], route.get("gateway", "")) for route in found}


def kernel_addresses(device: str) -> set[str]:
    links = ip_json(f"addr show dev {device}")
    return {f"{each['local']}/{each['prefixlen']}" for link in links for each in link.get("addr_info", []) if each}


def kernel_neighbours(device: str) -> set[tuple[str, str]]:
    """(address, MAC) of the permanent neighbours of both families."""
    found = ip_json(f"neigh show dev {device} nud permanent")
    return {(each["dst"], each["lladdr"]) for each in found}


def kernel_fdb(device: str) -> set[tuple[str, str]]:
    """(MAC, destination) of the permanent forwarding entries, as bridge(8) sees them."""
    done = subprocess.run(["bridge", "-j", "fdb", "show", "dev", device], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout or "[]")
    return {(each["mac"], each.get("dst", "")) for each in found if each["state"] == "permanent"}


def kernel_blackholes() -> set[str]:
    """Prefixes of our blackholes of both families."""
    return {route["dst"] for family in (4, 6) for route in ip_json(f"-{family} route show type blackhole proto 112")}


def read_sysctl(path: str) -> str:
    return (Path("/proc/sys") / path).read_text().strip()


def only(*states: DeviceState) -> DesiredState:
    """A desired state of these devices and nothing else."""
    return DesiredState(states)


async def eventually(condition: Callable[[], bool], within: float) -> float:
    """Wait until `condition()`, asked in a thread, holds; seconds it took. Fails when it takes longer than `within`."""
    start = time.monotonic()
    while not await asyncio.to_thread(condition):
        assert time.monotonic() - start < within, f"{condition} does not hold after {within} s"
    return time.monotonic() - start


@pytest.fixture
def netns() -> Iterator[str]:
    """The test runs in a fresh network namespace with loopback up; the value is its name."""
    name = f"fabtest-routes-{os.getpid()}-{next(NUMBERS)}"
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    ip(f"netns add {name}")
    try:
        enter_namespace(f"/run/netns/{name}")
        ip("link set lo up")
        yield name
    finally:
        LIBC.setns(home, CLONE_NEWNET)
        os.close(home)
        ip(f"netns del {name}")


@pytest.fixture
def underlay(netns: str) -> str:
    """An interface `eth0` with addresses of both families in a fresh namespace, up; `wire0` is its other end."""
    ip_batch(
        [
            "link add eth0 type veth peer name wire0",
            "link set eth0 up",
            "link set wire0 up",
            "addr add 192.0.2.1/24 dev eth0",
            "addr add 2001:db8::1/64 dev eth0 nodad",
        ]
    )
    return "eth0"


@pytest.fixture
def device(netns: str) -> str:
    """A TUN device `flannel.1` in a fresh namespace, down, as its owner makes it."""
    ip("tuntap add dev flannel.1 mode tun")
    return "flannel.1"
