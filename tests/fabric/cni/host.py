"""A host for the plugin: a network namespace with an underlay interface, the real daemon if wanted, and pods.

`Host.execute` runs a plugin as a runtime does: a process in the host's namespace, environment, configuration on stdin.
`Host.call` does the same with a fork of this process, which saves the interpreter's start: most tests make many calls.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import fabric.cni.flannel
import fabric.cni.kinds.bridge
import fabric.cni.kinds.queue
import fabric.cni.kinds.tap
import fabric.cni.kinds.tun
import fabric.cni.kinds.veth
import fabric.cni.native
import fabric.traffic.portmap_conntrack
import fabric.traffic.portmap_table
from fabric.cni import launcher
from fabric.cni.main import main
from tests.fabric.daemon.nodes import TestNode, ip
from tests.routes.conftest import enter_namespace

PRELOADED = (
    fabric.cni.flannel,
    fabric.cni.native,
    fabric.cni.kinds.bridge,
    fabric.cni.kinds.queue,
    fabric.cni.kinds.tap,
    fabric.cni.kinds.tun,
    fabric.cni.kinds.veth,
    fabric.traffic.portmap_conntrack,
    fabric.traffic.portmap_table,
    hashlib,
)
"""What the plugin loads when it needs it; forks find it loaded."""
REFERENCE_PLUGINS = Path("/usr/lib/cni")
GC_KEY = "cni.dev/valid-attachments"
ROOT = Path(__file__).resolve().parents[3]
SUBNET_ENV = """FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_IPV6_NETWORK=2001:db8:42::/48
FLANNEL_IPV6_SUBNET=2001:db8:42:1::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""
_numbers = count()


class Answer(NamedTuple):
    """What a call of the plugin came to: exit status, the object on stdout (None for nothing), stderr."""

    status: int
    object: Any
    log: str

    @property
    def code(self) -> int:
        """The error's code, 0 for success."""
        return int(self.object["code"]) if self.status else 0

    @property
    def text(self) -> str:
        """The error's message and details."""
        return f"{self.object['msg']}: {self.object.get('details', '')}"

    def must(self) -> Any:
        """The result of a call that has to succeed."""
        assert self.status == 0, (self.object, self.log)
        return self.object


class PodNamespace(NamedTuple):
    """A container: an id and a namespace with loopback up."""

    container_id: str
    netns: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.netns}"

    def links(self) -> dict[str, Any]:
        return {item["ifname"]: item for item in json.loads(ip("-j", "-d", "-n", self.netns, "link"))}

    def addresses(self, ifname: str = "eth0") -> set[str]:
        items = json.loads(ip("-j", "-n", self.netns, "address", "show", "dev", ifname))
        return {f"{a['local']}/{a['prefixlen']}" for item in items for a in item["addr_info"] if a["scope"] == "global"}

    def routes(self, family: int = 4) -> set[tuple[str, str]]:
        items = json.loads(ip("-j", f"-{family}", "-n", self.netns, "route"))
        return {(item["dst"], item.get("gateway", "")) for item in items if not item["dst"].startswith("fe80")}

    def pings(self, address: str) -> bool:
        return pings(self.netns, address)


class Host:
    """One host. `bin` has the plugin under both its names, and Debian's plugins."""

    def __init__(self, directory: Path, netns: str = "") -> None:
        self.netns = netns or f"fabtest-cni-{os.getpid()}-{next(_numbers)}"
        self.directory = directory
        self.bin = directory / "bin"
        self.data = directory / "data"
        self.networks = directory / "networks"
        self.subnet_file = directory / "subnet.env"
        self.run_dir = directory / "run"
        self._pods: list[str] = []
        if not netns:
            ip("netns", "add", self.netns)
            ip("-n", self.netns, "link", "set", "lo", "up")
        self._connect_outside()
        self.subnet_file.write_text(SUBNET_ENV)
        self._make_bin()

    def _connect_outside(self) -> None:
        """A neighbour on the underlay, 192.0.2.2."""
        self.outside = f"{self.netns}-outside"
        ip("netns", "add", self.outside)
        self._pods.append(self.outside)
        for netns in (self.netns, self.outside):  # or IPv6 would wait for duplicate detection of link-local addresses
            command = ["ip", "netns", "exec", netns, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"]
            subprocess.run(command, check=True)
        ip("-n", self.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.outside)
        for netns, number in ((self.netns, 1), (self.outside, 2)):
            ip("-n", netns, "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            ip("-n", netns, "address", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
            ip("-n", netns, "link", "set", "eth0", "up")

    def _make_bin(self) -> None:
        self.bin.mkdir()
        for name in ("fabric-cni", "flannel"):
            (self.bin / name).write_text(launcher.here())
            (self.bin / name).chmod(0o755)
        for plugin in REFERENCE_PLUGINS.glob("*"):
            (self.bin / plugin.name).symlink_to(plugin)

    def remove(self) -> None:
        for name in (*self._pods, self.netns):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def pod(self, container_id: str = "") -> PodNamespace:
        """A new container."""
        name = f"{self.netns}-{next(_numbers)}"
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        self._pods.append(name)
        return PodNamespace(container_id or name, name)

    def delete_pod(self, pod: PodNamespace) -> None:
        """The namespace goes, as a runtime lets it go."""
        ip("netns", "delete", pod.netns)
        self._pods.remove(pod.netns)

    def conf(self, kind: str = "veth", **changes: Any) -> dict[str, Any]:
        """A configuration of our own type with all its files in the host's directory."""
        conf = {
            "cniVersion": "1.1.0",
            "name": "podnet",
            "type": "fabric-cni",
            "kind": kind,
            "subnetFile": str(self.subnet_file),
            "dataDir": str(self.data),
            "runDir": str(self.run_dir),
            "ipam": {"dataDir": str(self.networks)},
        }
        return {key: value for key, value in {**conf, **changes}.items() if value is not None}

    def flannel_conf(self, **changes: Any) -> dict[str, Any]:
        """A configuration as kube-flannel.yml has it."""
        conf = {
            "cniVersion": "0.3.1",
            "name": "cbr0",
            "type": "flannel",
            "subnetFile": str(self.subnet_file),
            "dataDir": str(self.directory / "flannel"),
            "delegate": {"hairpinMode": True, "isDefaultGateway": True},
            "ipam": {"dataDir": str(self.networks)},
        }
        return {key: value for key, value in {**conf, **changes}.items() if value is not None}

    def environment(self, command: str, pod: PodNamespace | None = None, **changes: str | None) -> dict[str, str]:
        """The variables of a call."""
        found: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "CNI_COMMAND": command,
            "CNI_PATH": str(self.bin),
        }
        if pod is not None:
            found |= {"CNI_CONTAINERID": pod.container_id, "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
        return {name: value for name, value in {**found, **changes}.items() if value is not None}

    def call(
        self, command: str, conf: Mapping[str, Any] | bytes, pod: PodNamespace | None = None, **changes: str | None
    ) -> Answer:
        """One call of our plugin, in a fork."""
        return forked(f"/run/netns/{self.netns}", self.environment(command, pod, **changes), conf)

    def execute(self, plugin: str, environ: Mapping[str, str], conf: Mapping[str, Any] | bytes) -> Answer:
        """One execution of any plugin in `bin`."""
        text = encoded(conf)
        command = ["ip", "netns", "exec", self.netns, str(self.bin / plugin)]
        done = subprocess.run(command, input=text, capture_output=True, env=dict(environ), check=False, timeout=60)
        stdout = done.stdout.strip()
        return Answer(done.returncode, json.loads(stdout) if stdout else None, done.stderr.decode(errors="replace"))

    def links(self) -> dict[str, Any]:
        return {item["ifname"]: item for item in json.loads(ip("-j", "-d", "-n", self.netns, "link"))}

    def routes(self, family: int = 4) -> set[tuple[str, str]]:
        items = json.loads(ip("-j", f"-{family}", "-n", self.netns, "route", "show", "proto", "113"))
        return {(item["dst"], item["dev"]) for item in items}

    def reserved(self, network: str = "podnet") -> set[str]:
        """Addresses that are reserved."""
        directory = self.networks / network
        names = os.listdir(directory) if directory.exists() else []
        return {name for name in names if name[0].isdigit()}

    def records(self, network: str = "podnet") -> set[str]:
        directory = self.data / network
        return {name for name in os.listdir(directory) if name != ".lock"} if directory.exists() else set()

    def pings(self, address: str) -> bool:
        return pings(self.netns, address)


class DaemonHost(Host):
    """A host with the real daemon, on `eth0`."""

    def __init__(self, directory: Path) -> None:
        self.node = TestNode(directory, 100 + next(_numbers))  # makes the namespace
        super().__init__(directory, self.node.netns)
        self.run_dir, self.data = self.node.run_dir, self.node.directory / "data"
        self.subnet_file = self.node.subnet_file
        (directory / "net-conf.json").write_text(NET_CONF)

    def start(self) -> None:
        self.node.start()

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.node.stop(number)

    def ports(self) -> dict[str, list[str]]:
        """The daemon's pod ports with their addresses."""
        status = self.node.ask("status")
        return {port["name"]: port["addresses"] for port in status["dataplane"]["ports"] if port["name"] != "node"}

    def remove(self) -> None:
        self.node.stop(signal.SIGKILL)
        super().remove()


NET_CONF = json.dumps(
    {
        "Network": "10.244.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "2001:db8:42::/48",
        "Backend": {"Type": "vxlan"},
    }
)


def add(host: Host, pod: PodNamespace, kind: str = "veth", **changes: Any) -> dict[str, Any]:
    """An ADD that has to succeed; its result."""
    result: dict[str, Any] = host.call("ADD", host.conf(kind, **changes), pod).must()
    return result


def with_result(conf: dict[str, Any], result: object) -> dict[str, Any]:
    """The configuration as a runtime gives it to CHECK and DEL."""
    return {**conf, "prevResult": result}


def encoded(conf: Mapping[str, Any] | bytes) -> bytes:
    return conf if isinstance(conf, bytes) else json.dumps(conf).encode()


def forked(
    netns: str, environ: Mapping[str, str], conf: Mapping[str, Any] | bytes, before: Callable[[], None] = lambda: None
) -> Answer:
    """The plugin in a child of this process, in the host's namespace, with files for its standard streams.

    `before` runs in the child. A child that is killed has the negative signal as its status.
    """
    with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
        stdin.write(encoded(conf))
        stdin.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: the child starts none of them
            pid = os.fork()
        if pid == 0:
            status = 99
            try:
                for number, file in enumerate((stdin, stdout, stderr)):
                    os.dup2(file.fileno(), number)
                sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
                enter_namespace(netns)
                os.environ.clear()
                os.environ.update(environ)
                before()
                status = main()
                sys.stdout.flush()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        stdout.seek(0)
        stderr.seek(0)
        text, log = stdout.read().strip(), stderr.read().decode(errors="replace")
    assert status in (0, 1, -signal.SIGKILL), log
    return Answer(status, json.loads(text) if text and status >= 0 else None, log)


def pings(netns: str, address: str) -> bool:
    command = ["ip", "netns", "exec", netns, "ping", "-q", "-c", "1", "-W", "2", address]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextmanager
def a_host(directory: Path) -> Iterator[Host]:
    host = Host(directory)
    try:
        yield host
    finally:
        host.remove()


@contextmanager
def a_daemon_host(directory: Path) -> Iterator[DaemonHost]:
    host = DaemonHost(directory)
    try:
        host.start()
        yield host
    finally:
        host.remove()
