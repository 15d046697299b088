"""A start that is refused says why in one line, ends with the contract's code and leaves the host as it was."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from fabric.lab import registry
from fabric.model import Lease
from tests.scenarios import inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

NETNS = "fabtest-scenario"
ADDRESS = "192.0.2.31"
FABRICD = str(Path(sys.executable).with_name("fabricd"))


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """A namespace with one interface, which stands for the host."""
    inside.host_ip("netns", "add", NETNS)
    try:
        inside.ip(NETNS, "link", "set", "lo", "up")
        inside.call(NETNS, lambda: Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1"))
        inside.call(NETNS, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))  # else the log says so, too
        inside.ip(NETNS, "link", "add", "eth0", "type", "veth", "peer", "name", "wire")
        for device in ("eth0", "wire"):
            inside.ip(NETNS, "link", "set", device, "up")
        inside.ip(NETNS, "addr", "add", f"{ADDRESS}/24", "dev", "eth0")
        yield NETNS
    finally:
        inside.host_ip("netns", "del", NETNS)


@dataclass(frozen=True, slots=True)
class Place:
    """A host's directories below one temporary directory."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "fabric.db"

    @property
    def net_conf(self) -> Path:
        return self.root / "net-conf.json"

    def argv(self, *more: str) -> list[str]:
        """fabricd's command line here; what comes later wins."""
        directories = ("run", "state")
        return [
            FABRICD,
            *("--store", f"sqlite://{self.database}"),
            *("--node-name", "refused"),
            *("--iface", "eth0"),
            *(word for name in directories for word in (f"--{name}-dir", str(self.root / name))),
            *("--subnet-file", str(self.root / "subnet.env")),
            *("--net-config-path", str(self.net_conf)),
            *more,
        ]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def state_of(place: Place) -> dict[str, Any]:
    """Everything a start could have changed: links, addresses, routes, rules, sockets, sysctls, files."""
    # A store's bytes may change: a lease was taken and given back.
    files = {
        str(path): (oct(path.lstat().st_mode), path.read_bytes() if path.is_file() and path.suffix != ".db" else b"")
        for path in sorted(place.root.rglob("*"))
    }
    words = (("addr",), ("link",), ("-4", "route", "show", "table", "all"), ("-6", "route", "show", "table", "all"))
    kernel = {" ".join(word): without_counters(inside.ip_json(NETNS, *word)) for word in (*words, ("rule",))}
    # That the rest of our subnet is unreachable stays true when fabricd has ended.
    for name in ("-4 route show table all", "-6 route show table all"):
        kernel[name] = [item for item in kernel[name] if item.get("metric") != 1_000_000]
    tables = ("udp", "udp6", "packet")

    def read() -> dict[str, str]:
        found = {name: Path(f"/proc/thread-self/net/{name}").read_text().count("\n") for name in tables}
        names = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter")
        return {**{k: str(v) for k, v in found.items()}, **{n: (Path("/proc/sys") / n).read_text() for n in names}}

    firewall = subprocess.run(
        ["ip", "netns", "exec", NETNS, "nft", "list", "ruleset"], capture_output=True, text=True, check=True
    ).stdout
    return {"files": files, "kernel": kernel, "proc": inside.call(NETNS, read), "firewall": firewall}


def without_counters(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Output of ip without what changes by itself."""
    return [{k: v for k, v in item.items() if k not in ("stats64", "valid_life_time")} for item in found]


def run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """A command in the namespace; a daemon that starts after all is stopped, and fails the test by its exit code."""
    command = ["timeout", "--signal=TERM", "20", "ip", "netns", "exec", NETNS, *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def refused(place: Place, *more: str, argv: list[str] | None = None) -> str:
    """The message of a refused start; exactly one line, exit code 1, nothing changed."""
    before = state_of(place)
    done = run(argv or place.argv(*more))
    lines = done.stderr.splitlines()
    assert done.returncode == 1, lines
    assert done.stdout == ""
    assert len(lines) == 1, lines
    after = state_of(place)
    assert after["files"].keys() == before["files"].keys()
    assert after == before
    message: str = json.loads(lines[0])["message"]
    assert message.startswith("fabricd does not start: ")
    assert "Traceback" not in message
    return message


def conf(**changes: Any) -> str:
    return json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}, **changes})


BAD_CONF: dict[str, tuple[str | bytes, str]] = {
    "not JSON": ("{", "net-conf.json"),
    "empty": ("", "net-conf.json"),
    "a list": ("[]", "net-conf.json"),
    "no network": (json.dumps({"Backend": {"Type": "vxlan"}}), "Network"),
    "bad network": (conf(Network="10.244.0.0/33"), "10.244.0.0/33"),
    "a number": (conf(Network=5), "Network"),
    "unknown backend": (conf(Backend={"Type": "carrier-pigeon"}), "carrier-pigeon"),
    "no backend type": (conf(Backend=3), "Backend"),
    "VNI too large": (conf(Backend={"Type": "vxlan", "VNI": 1 << 24}), "VNI"),
    "port too large": (conf(Backend={"Type": "vxlan", "Port": 70_000}), "Port"),
    "subnet length too short": (conf(SubnetLen=8), "at least four subnets"),
    "minimum outside": (conf(SubnetMin="192.0.2.0"), "SubnetMin"),
    "maximum below minimum": (conf(SubnetMin="10.244.9.0", SubnetMax="10.244.3.0"), "SubnetMin is above SubnetMax"),
    "IPv6 without network": (conf(EnableIPv6=True), "IPv6Network"),
    "deep": ("[" * 100_000, "net-conf.json"),
    "not UTF-8": (b"\xff\xfe{}", "net-conf.json"),
}


@pytest.mark.parametrize("case", BAD_CONF)
def test_a_bad_net_conf(host: str, place: Place, case: str) -> None:
    text, word = BAD_CONF[case]
    place.net_conf.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert word in refused(place)


def test_a_net_conf_that_is_a_directory(host: str, place: Place) -> None:
    place.net_conf.mkdir()
    assert "net-conf.json" in refused(place)


INTERFACES = {
    "unknown name": (("--iface", "eth7"), "eth7"),
    "unknown address": (("--iface", "203.0.113.5"), "203.0.113.5"),
    "no match": (("--iface-regex", "^bond[0-9]$"), "bond"),
    "bad expression": (("--iface-regex", "("), "("),
    "no address": (("--iface", "wire"), "wire"),
    "cannot be reached": (("--iface-can-reach", "203.0.113.5"), "203.0.113.5"),
    "bad public address": (("--iface", "eth0", "--public-ip", "300.1.1.1"), "300.1.1.1"),
}


@pytest.mark.parametrize("case", INTERFACES)
def test_an_interface_that_is_not_there(host: str, place: Place, case: str) -> None:
    words, named = INTERFACES[case]
    argv = place.argv()
    position = argv.index("--iface")
    assert named in refused(place, argv=[*argv[:position], *argv[position + 2 :], *words])


def test_a_port_that_a_process_holds(host: str, place: Place) -> None:
    code = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 8472));"
        "print('held', flush=True); input()"
    )
    command = ["ip", "netns", "exec", NETNS, sys.executable, "-c", code]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = refused(place)
        assert "port 8472" in message
        assert f"process {holder.pid} (python" in message
    finally:
        holder.communicate()


@pytest.mark.parametrize("name", ["flannel.1", "vx0"])
def test_a_port_that_a_kernel_device_holds(host: str, place: Place, name: str) -> None:
    words = ("type", "vxlan", "id", "1", "dev", "eth0", "local", ADDRESS, "dstport", "8472", "nolearning")
    inside.ip(NETNS, "link", "add", name, *words)
    try:
        inside.ip(NETNS, "link", "set", name, "up")
        assert f"ip link delete {name}" in refused(place, "--adopt=false")
        if name != "flannel.1":
            assert f"ip link delete {name}" in refused(place)
    finally:
        inside.ip(NETNS, "link", "delete", name)


def test_flannels_device_stays_when_there_is_no_subnet(host: str, place: Place) -> None:
    """What can be refused is refused before the node is taken over."""
    place.net_conf.write_text(conf(Network="10.244.0.0/22"))
    leases = [
        Lease(IPv4Network(f"10.244.{number}.0/24"), None, IPv4Address(f"192.0.2.{100 + number}"), None, "vxlan")
        for number in range(4)
    ]
    asyncio.run(registry.put_leases(place.database, leases))
    words = ("type", "vxlan", "id", "1", "dev", "eth0", "local", ADDRESS, "dstport", "8472", "nolearning")
    inside.ip(NETNS, "link", "add", "flannel.1", *words)
    try:
        inside.ip(NETNS, "link", "set", "flannel.1", "up")
        assert "out of subnets" in refused(place)
    finally:
        inside.ip(NETNS, "link", "delete", "flannel.1")


def test_a_health_port_that_is_held(host: str, place: Place) -> None:
    with inside.listen(NETNS, "127.0.0.1") as holder:
        port = holder.getsockname()[1]
        message = refused(place, "--healthz-ip=127.0.0.1", f"--healthz-port={port}")
    assert f"--healthz-port {port} cannot be listened on at 127.0.0.1: Address already in use" in message


def test_a_control_socket_that_cannot_be_made(host: str, place: Place) -> None:
    """The last thing before readiness: port, device, routes, firewall, lease and store file are taken back."""
    (place.root / "run" / "fabricd.sock").mkdir(parents=True)
    (place.root / "run" / "fabricd.sock" / "keep").write_text("")
    assert "control socket" in refused(place)
    assert not place.database.exists()


def test_a_device_name_that_is_taken(host: str, place: Place) -> None:
    assert "eth0" in refused(place, "--device", "eth0")
    assert "not valid" in refused(place, "--device", "a/b")
    assert "not valid" in refused(place, "--device", "a" * 16)


def test_no_tun_device(host: str, place: Place) -> None:
    """An empty /dev/net in a mount namespace of the daemon's own."""
    script = 'mount -t tmpfs none /dev/net && exec "$@"'
    message = refused(place, argv=["unshare", "--mount", "sh", "-c", script, "sh", *place.argv()])
    assert "/dev/net/tun does not exist" in message


def test_a_tun_device_that_may_not_be_opened(host: str, place: Place) -> None:
    """A node of another driver in its place."""
    script = 'mount -t tmpfs -o nodev none /dev/net && mknod /dev/net/tun c 10 200 && exec "$@"'
    message = refused(place, argv=["unshare", "--mount", "sh", "-c", script, "sh", *place.argv()])
    assert "/dev/net/tun cannot be opened" in message


def test_no_privilege(host: str, place: Place) -> None:
    """As root without capabilities and as nobody."""
    dropped = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    assert "privilege" in refused(place, argv=[*dropped, *place.argv()])


@pytest.mark.skipif(
    any(not os.stat(part).st_mode & 0o005 for part in Path(FABRICD).parents),
    reason="nobody cannot reach the environment's own files here; the case without capabilities covers the refusal",
)
def test_no_privilege_as_nobody(host: str, place: Place) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    assert "privilege" in refused(place, argv=[*nobody, *place.argv()])


def test_a_full_network(host: str, place: Place) -> None:
    place.net_conf.write_text(conf(Network="10.244.0.0/22"))
    leases = [
        Lease(IPv4Network(f"10.244.{number}.0/24"), None, IPv4Address(f"192.0.2.{100 + number}"), None, "vxlan")
        for number in range(4)
    ]
    asyncio.run(registry.put_leases(place.database, leases))
    before = asyncio.run(registry.list_leases(place.database))
    message = refused(place)
    assert "out of subnets" in message
    assert asyncio.run(registry.list_leases(place.database)) == before


STORES: dict[str, tuple[Callable[[Path], object], str]] = {
    "garbage": (lambda path: path.write_bytes(b"garbage!" * 4096), "broken"),
    "a few bytes": (lambda path: path.write_bytes(b"x"), "broken"),
    "a text": (lambda path: path.write_text("this is no database\n" * 100), "broken"),
    "a directory": (lambda path: path.mkdir(), "fabric.db"),
    "another program's": (lambda path: foreign_database(path), "another program"),
    "a dangling link": (lambda path: path.symlink_to("/nowhere/fabric.db"), "fabric.db"),
}


def foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("case", STORES)
def test_a_broken_store(host: str, place: Place, case: str) -> None:
    make, word = STORES[case]
    make(place.database)
    message = refused(place)
    assert word in message
    assert str(place.database) in message


@pytest.mark.parametrize("url", ["sqlite://relative.db", "etcd://192.0.2.1", "sqlite:///", "nonsense"])
def test_a_store_that_is_no_store(host: str, place: Place, url: str) -> None:
    assert "--store" in refused(place, "--store", url)


@pytest.mark.parametrize("flag", ["--run-dir", "--subnet-file"])
def test_a_directory_that_cannot_be_made(host: str, place: Place, flag: str) -> None:
    """Below a file; also what has to be written last takes everything back that was made before."""
    (place.root / "file").write_text("")
    message = refused(place, flag, str(place.root / "file" / "below" / "it"))
    assert str(place.root / "file") in message


def test_a_control_socket_path_that_is_too_long(host: str, place: Place) -> None:
    assert "--run-dir" in refused(place, "--run-dir", str(place.root / ("d" * 100)))


USAGE = {
    "unknown flag": ("--nonsense",),
    "a word too many": ("start",),
    "no value": ("--iface",),
    "not a number": ("--workers", "many"),
    "no worker": ("--workers", "0"),
    "not a switch": ("--ip-masq=perhaps",),
    "unknown offload": ("--offload", "warp=on"),
    "offload without value": ("--offload", "udp-gso"),
    "bad log format": ("--log-format", "xml"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage(host: str, place: Place, case: str) -> None:
    before = state_of(place)
    done = run(place.argv(*USAGE[case]))
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert state_of(place) == before


def test_help_and_version_are_no_refusals(host: str, place: Place) -> None:
    for flag in ("--help", "--version"):
        done = run([FABRICD, flag])
        assert done.returncode == 0
        assert done.stdout or done.stderr
    assert list(place.root.iterdir()) == []


def test_the_same_command_line_starts_when_nothing_is_in_the_way(host: str, place: Place) -> None:
    """Proof that the refusals above are about what they name; and SIGTERM during the start leaves nothing."""
    before = state_of(place)
    with subprocess.Popen(["ip", "netns", "exec", NETNS, *place.argv()], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: (place.root / "subnet.env").exists(), "the daemon to be ready")
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    after = state_of(place)
    assert after["kernel"] == before["kernel"]
    assert after["proc"] == before["proc"]
    left = {path.relative_to(place.root).parts[0] for path in place.root.rglob("*")}
    assert left == {"fabric.db", "state", "subnet.env"}


def test_a_stop_during_the_start_leaves_nothing(host: str, place: Place) -> None:
    """SIGTERM at a dozen moments of the start: no device, no control socket."""
    before = state_of(place)["kernel"]
    for step in range(12):
        for name in ("state", "run"):
            shutil.rmtree(place.root / name, ignore_errors=True)
        with subprocess.Popen(
            ["ip", "netns", "exec", NETNS, *place.argv()], stderr=subprocess.PIPE, text=True
        ) as process:
            descriptor = os.pidfd_open(process.pid)
            try:
                wait_exit(descriptor, 0.04 * step)
            finally:
                os.close(descriptor)
            process.terminate()
            _, errors = process.communicate(timeout=10)
        # Before Python has set its handlers the signal ends the process as it ends any other.
        assert process.returncode in (0, -15, 143), errors
        assert "Traceback" not in errors
        assert state_of(place)["kernel"] == before
        assert not (place.root / "run" / "fabricd.sock").exists()


def wait_exit(descriptor: int, seconds: float) -> None:
    """At most so long for the process to end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll(seconds * 1000)
