"""What can carry the pods' traffic in a comparison. Pure values; `rig` makes them happen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["kernel", "fabric", "tunnel"]
Pods = Literal["bridge", "tun"]
Encapsulation = Literal["vxlan", "udp"]
OFFLOADS = ("tun-tso", "tun-uso", "udp-gso", "udp-gro")
ALL = (*OFFLOADS, "udp-batch")


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a comparison.

    `off` are the offloads switched off (of the fabric), `encapsulation` is Backend.Type, `pods` says which of the
    lab's pods it is measured between: bridge pods go through the node port, tun pods are ports of the daemon.
    `same_node` pods sit on one node, and `baseline` is the variant that its figures are divided by.
    """

    name: str
    label: str
    kind: Kind
    encapsulation: Encapsulation = "vxlan"
    off: tuple[str, ...] = ()
    pods: Pods = "bridge"

    same_node: bool = False
    baseline: str = "kernel"

    def setup(self) -> tuple[str, tuple[str, ...]]:
        """What a daemon has to be started anew for."""
        return self.encapsulation, self.off

    def arguments(self) -> list[str]:
        """fabricd's switches."""
        return [word for name in self.off for word in ("--offload", f"{name}=off")]


def fabric(
    name: str, label: str, off: Sequence[str] = (), encapsulation: Encapsulation = "vxlan", pods: Pods = "bridge"
) -> Variant:
    """A variant of ours."""
    return Variant(name, label, "fabric", encapsulation, tuple(off), pods)


KERNEL = Variant("kernel", "kernel VXLAN", "kernel")
FABRIC = fabric("vxlan", "podfabric, node port")
POD_PORT = fabric("vxlan-pod", "podfabric, pod port", pods="tun")
BRIDGE = Variant("bridge", "same node: bridge of the kernel", "kernel", same_node=True, baseline="bridge")
SAME_NODE = replace(BRIDGE, name="same-node", label="same node: podfabric, pod ports", kind="fabric", pods="tun")
UNBATCHED = fabric("udp-plain", "podfabric udp format, no offloads", ALL, "udp")  # as flannel: a call per packet

VARIANTS: tuple[Variant, ...] = (
    KERNEL,
    FABRIC,
    POD_PORT,
    *(fabric(f"no-{name}", f"podfabric, {name} off", [name]) for name in OFFLOADS),
    fabric("plain", "podfabric, no offloads", OFFLOADS),
    BRIDGE,
    SAME_NODE,
    fabric("udp", "podfabric udp format, node port", encapsulation="udp"),
    fabric("udp-pod", "podfabric udp format, pod port", encapsulation="udp", pods="tun"),
    UNBATCHED,
    Variant("tinc", "tinc, no cipher", "tunnel"),
    Variant("fastd", "fastd, method null", "tunnel"),
    Variant("nebula", "nebula, encrypted", "tunnel"),
    Variant("wireguard-go", "wireguard-go, encrypted", "tunnel"),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}


def choose(names: Sequence[str]) -> list[Variant]:
    """The variants of these names and their baselines, kernel VXLAN first. Raises ValueError naming an unknown one."""
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise ValueError(f"no variant {unknown[0]}; there are {', '.join(BY_NAME)}")
    wanted = {KERNEL.name, *names, *(BY_NAME[name].baseline for name in names)}
    return [v for v in VARIANTS if v.name in wanted]
