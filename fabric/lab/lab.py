"""The Lab: a cluster of namespaces, brought up, used and taken down."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from ipaddress import ip_interface
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fabric import config, subnet_file
from fabric.lab import daemons, registry, runtime, state, system, topology
from fabric.lab.kernel import KernelNode, KernelOverlay, Vtep, make_vteps
from fabric.lab.plan import (
    UNDERLAY_MTU,
    LabError,
    Mode,
    Node,
    Options,
    Pod,
    PodKind,
    address_pods,
    net_conf,
    nodes_from_json,
    nodes_to_json,
    plan_nodes,
    plan_pod,
    status,
)


class Lab:
    """Nodes and pods in namespaces; see the package for how to use it.

    `up` is all or nothing: when it fails, what it made is removed before the LabError leaves. As a context manager
    the lab goes down with the block. `keep()` lets it outlive the process, for `fabricctl lab up`.
    """

    def __init__(self, options: Options | None = None, *, run_dir: Path = state.RUN_DIR, **changes: Any) -> None:
        """`changes` are fields of Options: `Lab(nodes=2, pods=1, mode="veth")`."""
        self.options = replace(options or Options(), **changes)
        self.options.check()
        self.run_dir = run_dir
        self.mode: Mode = self.options.mode
        self.nodes: list[Node] = plan_nodes(self.options)
        self._pids: dict[str, int] = {}
        self._lock: state.Lock | None = None
        self._overlay: KernelOverlay | None = None
        self._kernels: list[KernelNode] = []

    @classmethod
    def attach(cls, run_dir: Path = state.RUN_DIR) -> Lab:
        """The lab that `keep` left up (or that another process runs); raises LabError when there is none."""
        system.require("ip")
        found = state.read_state(run_dir)
        if found is None:
            raise LabError("no lab is up; `fabricctl lab up` makes one")
        options = {**found["options"], "daemon_args": tuple(found["options"]["daemon_args"])}
        lab = cls(Options(**options), run_dir=run_dir)
        lab.mode = found["mode"]
        lab.nodes = nodes_from_json(found["nodes"])
        lab._pids = dict(found["pids"])
        return lab

    # Life

    def up(self) -> Self:
        """Make everything and wait until every node knows every other one."""
        system.require("ip", "ethtool", "bridge")
        self._lock = state.Lock(self.run_dir)
        try:
            found = state.read_state(self.run_dir)
            if found and found.get("kept"):
                raise LabError(f"a lab of {len(found['nodes'])} nodes is up already; `fabricctl lab down` removes it")
            sweep(self._lock)
            try:
                self._make()
            except BaseException:
                sweep(self._lock)
                raise
        except BaseException:
            self._unlock()
            raise
        return self

    def _make(self) -> None:
        self._save()
        (self.run_dir / "net-conf.json").write_text(json.dumps(net_conf(self.options)))
        topology.make_namespaces(self.nodes)
        topology.make_underlay(self.nodes)
        topology.set_mode(self.nodes, self.mode)
        self._make_kernel_nodes()
        for node in self.fabric_nodes:
            self._pids[node.name] = daemons.start(node, self.run_dir, self.options.daemon_args)
        self._save()
        for node in self.fabric_nodes:
            take_subnet(node, daemons.wait_ready(node, self._pids[node.name], self.run_dir))
        for node in self.nodes:
            address_pods(node)
            runtime.install(node, self.run_dir)
        runtime.add_all(self.nodes, self.run_dir)
        self.sync_kernel_nodes()
        topology.wait_routes(self.nodes)
        self._save()

    def _make_kernel_nodes(self) -> None:
        """Leases and devices of the kernel nodes; with a fabric beside them the leases go to the shared store."""
        registry.assign(self.nodes, self.options)
        if self.fabric_nodes:
            vteps = registry.publish(self.nodes, self.options, self.run_dir)
        else:
            vteps = {node.name: make_vteps(node) for node in self.nodes}
        conf = registry.parse_conf(self.options)
        for number, node in enumerate(self.nodes, 1):
            if node.kind == "kernel":
                node.mtu = config.overlay_mtu(conf, UNDERLAY_MTU)
                lease = registry.lease_of(node, registry.seat(conf, number), conf.backend.vni, ())
                env = daemons.NodeFiles(self.run_dir / node.name).subnet_file
                subnet_file.write(env, conf, lease, node.mtu, ip_masq=True)  # or its pods would do it
                self._kernels.append(KernelNode(node, vteps[node.name], conf.backend.vni, conf.backend.port))
        for kernel in self._kernels:
            kernel.make()

    def sync_kernel_nodes(self) -> None:
        """Program the leases as they are now into the kernel nodes, as a flannel there would on their change."""
        if not self._kernels:
            return
        peers: list[Vtep] = [vtep for kernel in self._kernels for vtep in kernel.vteps.values()]
        if self.fabric_nodes:
            peers = registry.read_vteps(self.run_dir)
        for kernel in self._kernels:
            kernel.learn(peers)

    def keep(self) -> None:
        """Let the lab outlive this process; `attach` finds it again."""
        self._save(kept=True)
        self._unlock()

    def down(self) -> None:
        """Delete the pods, stop the daemons and remove every trace. Idempotent; also for a lab got by `attach`.

        Raises LabError when the CNI plugin could not delete a pod; nothing is left all the same.
        """
        if self._lock is None:
            self._lock = state.Lock(self.run_dir)
        self._pids, self._overlay, self._kernels = {}, None, []
        try:
            take_down(self._lock, self.nodes)
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _save(self, kept: bool = False) -> None:
        described = {"kept": kept, "options": asdict(self.options), "mode": self.mode, "pids": self._pids}
        state.write_state({**described, "nodes": nodes_to_json(self.nodes)}, self.run_dir)

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # What is there

    @property
    def fabric_nodes(self) -> list[Node]:
        """The nodes that run fabricd."""
        return [node for node in self.nodes if node.kind == "fabric"]

    @property
    def pods(self) -> list[Pod]:
        """All pods, node by node."""
        return [pod for node in self.nodes for pod in node.pods]

    @property
    def node_port(self) -> str:
        """Name of the nodes' overlay device."""
        return f"flannel.{registry.parse_conf(self.options).backend.vni or 1}"  # flannel's udp format has no VNI

    def node(self, name: str) -> Node:
        """The node of that name; LabError when there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise LabError(f"no node {name}; there are {', '.join(n.name for n in self.nodes)}")

    def pod(self, name: str) -> Pod:
        """The pod of that name; LabError when there is none."""
        for pod in self.pods:
            if pod.name == name:
                return pod
        raise LabError(f"no pod {name}; there are {', '.join(p.name for p in self.pods)}")

    def netns(self, name: str) -> str:
        """The namespace of a node or pod."""
        names = {**{n.name: n.netns for n in self.nodes}, **{p.name: p.netns for p in self.pods}}
        if name not in names:
            raise LabError(f"no node or pod {name}; there are {', '.join(names)}")
        return names[name]

    def daemon_pids(self) -> dict[str, int]:
        """Node name to the process id of its fabricd."""
        return dict(self._pids)

    def dead_daemons(self) -> list[str]:
        """What happened to daemons that should run and do not, a few lines each."""
        found = []
        for name, pid in self._pids.items():
            status = daemons.exit_status(pid)
            if status is not None:
                found.append(f"fabricd on {name} {daemons.ending(status)}:\n{daemons.last_lines(self.log(name))}")
        return found

    def log(self, name: str) -> Path:
        """Where a node's daemon writes its log."""
        return daemons.NodeFiles(self.run_dir / name).log

    def status(self) -> dict[str, Any]:
        """The object `lab status --json` prints."""
        return status(self.nodes)

    # What can be done with it

    def exec(self, name: str, argv: Sequence[str], *, check: bool = True, timeout: float | None = 60) -> str:
        """Run a command in a node or pod; its standard output. LabError when it fails (unless not `check`)."""
        return system.run(self.netns(name), argv, check=check, timeout=timeout)

    def popen(self, name: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command in a node or pod, in a session of its own, text streams as `options` say."""
        return subprocess.Popen(system.inside(self.netns(name), argv), text=True, start_new_session=True, **options)

    def control(self, name: str, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Ask a node's daemon over its control socket; the result."""
        return daemons.control(daemons.NodeFiles(self.run_dir / name).socket, method, params)

    def set_mode(self, mode: Mode) -> None:
        """Change what the underlay passes on; see `fabric.lab.topology`."""
        topology.set_mode(self.nodes, mode)
        self.mode = mode

    def stop_daemon(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Signal a node's daemon and wait until it is gone."""
        pid = self._pids.pop(self.node(name).name, None)
        if pid is None:
            raise LabError(f"no daemon runs on {name}")
        system.stop([pid], how)
        with suppress(KeyError):
            daemons.children.pop(pid).wait()

    def start_daemon(self, name: str, extra: Sequence[str] = ()) -> None:
        """Start a node's daemon again, with its old files, and wait until it is ready."""
        node = self.node(name)
        self._pids[name] = daemons.start(node, self.run_dir, (*self.options.daemon_args, *extra))
        daemons.wait_ready(node, self._pids[name], self.run_dir)
        self.sync_kernel_nodes()

    def restart_daemon(self, name: str, extra: Sequence[str] = (), how: signal.Signals = signal.SIGTERM) -> None:
        """`stop_daemon`, then `start_daemon` (for instance with other `--offload` switches)."""
        self.stop_daemon(name, how)
        self.start_daemon(name, extra)

    def plug(self, name: str, mtu: int = 0) -> None:
        """Give a pod its eth0 by the CNI plugin's ADD; `mtu` 0 leaves it to subnet.env. LabError when it refuses."""
        pod = self.pod(name)
        runtime.add(self.node(pod.node), pod, self.run_dir, mtu)

    def unplug(self, name: str) -> None:
        """Take a pod's eth0 away by the CNI plugin's DEL; its namespace stays."""
        pod = self.pod(name)
        runtime.delete(self.node(pod.node), pod, self.run_dir)

    def add_pod(self, name: str, kind: PodKind, *, ips: Sequence[str] = (), identity: str = "") -> Pod:
        """One more pod on a node, with the addresses given or those that IPAM chooses. Not for other processes:
        `attach` forgets it.
        """
        node = self.node(name)
        pod = plan_pod(node, len(node.pods) + 1, kind)
        pod.ips, pod.identity = list(ips), identity
        topology.make_pod(pod)
        node.pods.append(pod)
        runtime.install(node, self.run_dir)
        self.plug(pod.name)
        return pod

    def remove_pod(self, name: str) -> None:
        """Take the pod away again, with its namespace."""
        pod = self.pod(name)
        node = self.node(pod.node)
        runtime.delete(node, pod, self.run_dir)
        system.remove_namespaces([pod.netns])
        node.pods.remove(pod)

    def kernel_overlay(self) -> KernelOverlay:
        """The kernel VXLAN baseline between the same nodes, made on first use, not active."""
        if self._overlay is None:
            self._overlay = KernelOverlay(self.nodes)
        return self._overlay

    def remove_kernel_overlay(self) -> None:
        """Delete the baseline's devices again; nothing happens when there are none."""
        if self._overlay is not None:
            self._overlay.remove()
            self._overlay = None


def take_subnet(node: Node, env: Mapping[str, str]) -> None:
    """Fill in what the daemon wrote to subnet.env."""
    try:
        if "FLANNEL_SUBNET" in env:
            node.subnet = str(ip_interface(env["FLANNEL_SUBNET"]).network)
        if "FLANNEL_IPV6_SUBNET" in env:
            node.subnet6 = str(ip_interface(env["FLANNEL_IPV6_SUBNET"]).network)
        node.mtu = int(env["FLANNEL_MTU"])
    except (KeyError, ValueError) as error:
        raise LabError(f"{node.name} wrote a subnet.env that makes no sense: {error}") from None


def take_down(lock: state.Lock, nodes: Sequence[Node]) -> bool:
    """Delete the pods as a runtime does, then `sweep`, which needs no help; whether there was something.

    Raises LabError with the first pod that the CNI plugin could not delete.
    """
    there = set(system.namespaces())
    try:
        errors = runtime.delete_all([node for node in nodes if node.netns in there], lock.run_dir)
    finally:
        found = sweep(lock)
    if errors:
        raise errors[0]
    return found


def kept_nodes(run_dir: Path) -> list[Node]:
    """The nodes of a lab that was left up; none after a crash, or when another version wrote them."""
    found = state.read_state(run_dir) or {}
    try:
        return nodes_from_json(found["nodes"]) if found.get("kept") else []
    except (KeyError, TypeError):
        return []


def sweep(lock: state.Lock) -> bool:
    """Remove every namespace, process and file of any lab; whether there was something."""
    names = system.namespaces()
    found = bool(names) or any(lock.run_dir.iterdir())
    with system.shielded():
        system.remove_namespaces(names)
        daemons.reap()
        lock.clear()
    topology.changeable.cache_clear()
    return found


def remove(run_dir: Path = state.RUN_DIR) -> bool:
    """Take down whatever lab is there, also what a crash left; whether there was something. For `lab down`."""
    system.require("ip")
    lock = state.Lock(run_dir)
    try:
        return take_down(lock, kept_nodes(run_dir))
    finally:
        lock.close()
