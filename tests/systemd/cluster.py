"""Nodes that each run a real systemd with fabricd's unit, on one underlay, with a pod on each."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fabric.control_client import ControlClient
from tests.fabric.daemon.nodes import ip
from tests.scenarios.waiting import wait_for
from tests.systemd.booted import UNIT, Booted
from tun.device import create_in_netns


class Pod(NamedTuple):
    """By its network namespace, with its address."""

    netns: str
    address: str


def client(booted: Booted) -> ControlClient:
    """fabricd's control socket."""
    return ControlClient(str(booted.root / "run/fabric"))


def add_pod(booted: Booted, pod: Pod, queue: int = 1000) -> None:
    """A pod, made as the plugin makes it: root makes the device and passes its queue."""
    ip("netns", "add", pod.netns)
    path = f"/run/netns/{pod.netns}"
    with create_in_netns(path, "eth0", mtu=1450, txqueuelen=queue, up=True) as device:
        device.persist(True)
        ip("-n", pod.netns, "address", "add", f"{pod.address}/32", "dev", "eth0")
        ip("-n", pod.netns, "route", "add", "default", "dev", "eth0")
        params = {"name": pod.netns, "netns": path, "ifname": "eth0", "addresses": [f"{pod.address}/32"]}
        with client(booted) as daemon:
            daemon.ask("port.add", params, device.fds)


class Cluster:
    """`count` nodes that know each other, until `close`."""

    def __init__(self, count: int, queue: int = 10_000) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fabtest-cluster-", dir="/var/tmp"))
        self.nodes: list[Booted] = []
        self.pods: list[Pod] = []
        self._names: list[str] = []
        try:
            shared = self.directory / "shared"
            shared.mkdir()
            switch = self._namespace("sw")
            ip("-n", switch, "link", "add", "br0", "type", "bridge")
            ip("-n", switch, "link", "set", "br0", "up")
            for number in range(1, count + 1):
                self._add_node(switch, number, shared, queue)
            for node in self.nodes:
                wait_for(lambda node=node: used_peers(node) == count - 1, "the nodes to know each other")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        for name in [*(pod.netns for pod in self.pods), *self._names]:
            subprocess.run(["ip", "netns", "delete", name], check=False)
        shutil.rmtree(self.directory)

    def _namespace(self, name: str) -> str:
        made = f"fabtest-c{os.getpid()}-{name}"
        ip("netns", "add", made)
        self._names.append(made)
        ip("-n", made, "link", "set", "lo", "up")
        return made

    def _add_node(self, switch: str, number: int, shared: Path, queue: int) -> None:
        netns = self._namespace(f"n{number}")
        ip("-n", netns, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch)
        ip("-n", switch, "link", "set", f"port{number}", "master", "br0", "up")
        ip("-n", netns, "address", "add", f"192.0.2.{100 + number}/24", "dev", "eth0")
        ip("-n", netns, "link", "set", "eth0", "up")
        options = f"--iface=eth0 --node-name=node{number} --store=sqlite:///srv/fabric.db --txqueuelen={queue}"
        node = Booted(netns, options, {"ReadWritePaths": "/srv"}, shared=shared)
        self.nodes.append(node)
        node.systemctl("start", UNIT)
        with client(node) as daemon:
            subnet = daemon.ask("status")["subnets"][0].rpartition(".")[0]
        pod = Pod(f"fabtest-c{os.getpid()}-p{number}", f"{subnet}.9")
        self.pods.append(pod)
        add_pod(node, pod, queue)


def used_peers(node: Booted) -> int:
    """How many other nodes this one sends to."""
    with suppress(Exception), client(node) as daemon:
        return int(daemon.ask("status")["peers"]["used"])
    return -1
