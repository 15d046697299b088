"""The order in which the way from what is there to an outcome has to be gone. No I/O."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fabric.calc.claims import Spans, span_of
from fabric.calc.words import Outcome
from fabric.identity import differing
from fabric.model import ForwardingState, KernelState, Network, Peer


@dataclass(frozen=True, slots=True)
class SetForwarding:
    """Let the data path use this state; done when `apply` has returned."""

    state: ForwardingState


@dataclass(frozen=True, slots=True)
class SetKernel:
    """Bring the kernel to this state; done when the reconciler says so."""

    state: KernelState


Step = SetForwarding | SetKernel


def sequence(forwarding: ForwardingState | None, kernel: KernelState | None, goal: Outcome) -> tuple[Step, ...]:
    """Steps from what the data path (`forwarding`) and the kernel have to `goal`; None: they have nothing.

    At every moment a route into the node port has a VTEP that it leads to: VTEPs come before routes, and go after
    them. Where an old VTEP is in the way of a new one (same underlay address, overlapping prefix) its routes go first.
    Within the kernel's step the reconciler keeps neighbour, forwarding entry, route in that order. After any of the
    steps the rest follows from calling again: who has to wait for the kernel may forget the others.
    """
    steps: list[Step] = []
    both, lost = _joined(forwarding, goal.forwarding)
    if lost and kernel is not None:
        freed = _without(kernel, lost)
        if freed != kernel:
            steps.append(SetKernel(freed))
            kernel = freed
    if both != forwarding:
        steps.append(SetForwarding(both))
    if kernel != goal.kernel:
        steps.append(SetKernel(goal.kernel))
    if both != goal.forwarding:
        steps.append(SetForwarding(goal.forwarding))
    return tuple(steps)


def _without(kernel: KernelState, lost: set[Network]) -> KernelState:
    """`kernel` without the routes into the node port for these prefixes."""
    return KernelState(
        tuple(
            dataclasses.replace(device, routes=tuple(route for route in device.routes if route.prefix not in lost))
            if device.role == "node port"
            else device
            for device in kernel.devices
        )
    )


def _joined(old: ForwardingState | None, new: ForwardingState) -> tuple[ForwardingState, set[Network]]:
    """`new` with the VTEPs of `old` that routes may still lead to, and the prefixes to which nothing leads in it.

    A peer that is the same object is the same: with 1,000 of them, one that changes costs one.
    """
    if old is None:
        return new, set()
    only_old, only_new = differing(old.peers, new.peers)
    gone = {peer.underlay: peer for peer in only_old if peer.encapsulation}
    if not gone:
        return new, set()
    if not only_new and (old.vni, old.vteps) == (new.vni, new.vteps) and len(gone) == len(only_old):
        return old, set()  # nothing can be in the way of those that go
    fresh = set(map(id, only_new))
    taken, peers = Spans(), []
    lost = {prefix for peer in gone.values() for prefix in peer.prefixes}
    for peer in new.peers:
        if id(peer) in fresh:
            peer = _keep_sending(gone.pop(peer.underlay, None), peer)
            for prefix in peer.prefixes:
                taken.add(span_of(prefix), "taken")
            lost.difference_update(peer.prefixes if peer.encapsulation else ())
        peers.append(peer)
    for vtep in new.vteps:
        for prefix in vtep.prefixes:
            taken.add(span_of(prefix), "taken")
    kept = [peer for peer in gone.values() if not any(taken.overlap(span_of(item)) for item in peer.prefixes)]
    lost.difference_update(prefix for peer in kept for prefix in peer.prefixes)
    return dataclasses.replace(new, peers=(*peers, *kept)), lost


def _keep_sending(old: Peer | None, new: Peer) -> Peer:
    """A peer that is only accepted from now on is sent to for as long as its route into the node port is there."""
    if old is None or new.encapsulation or old.prefixes != new.prefixes:
        return new
    return dataclasses.replace(
        new,
        encapsulation=old.encapsulation,
        mac=old.mac,
        mtu=old.mtu,
        accepts=old.accepts | new.accepts,
        any_mac=old.any_mac,
        direct=old.direct,
    )
