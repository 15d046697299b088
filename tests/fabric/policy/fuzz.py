"""Many random worlds: `python -m tests.fabric.policy.fuzz SEED COUNT`; COUNT questions, a mismatch is an
AssertionError. The fuzz target `policy` runs a million of them.

Half of the worlds are reached by changing the world before, so that what is kept between snapshots is tried too.
"""

from __future__ import annotations

import sys
import time

from fabric.policy import Cluster, Namespace, PolicySnapshot
from fabric.policy.parse import CHOICES, object_key
from fabric.policy.rules import Established
from tests.fabric.policy.naive import Naive
from tests.fabric.policy.worlds import World

QUESTIONS = 250
NAMES = {choice: name for name, choice in CHOICES.items()}


def become(cluster: Cluster, old: World | None, new: World) -> None:
    """Turn the cluster's inputs from one world into another by changes."""
    if old is not None:
        for key in {object_key(item) for item in old.objects} - {object_key(item) for item in new.objects}:
            cluster.apply(key, None)
        for namespace, name in {pod.key for pod in old.pods} - {pod.key for pod in new.pods}:
            cluster.delete_pod(namespace, name)
    for item in new.objects:
        result = cluster.apply(object_key(item), item)
        assert result.error is None, result.error
    for pod in new.pods:
        cluster.set_pod(pod)
    for namespace_ in new.namespaces:
        cluster.set_namespace(Namespace(namespace_.name, namespace_.labels))
    for node in new.nodes:
        cluster.set_node(node)


def fate(snapshot: PolicySnapshot, src: str, dst: str, protocol: str, port: int | None) -> str:
    """As `Naive.fate`."""
    choice, _, _ = snapshot.established(src, dst, protocol, port)
    return "" if choice is None else NAMES[Established(choice)]


def compare_worlds(seed: int, count: int, questions: int = QUESTIONS) -> dict[str, int]:
    """Ask at least `count` questions; how many flows were let pass and how many denied."""
    asked, before, cluster, passed = 0, None, Cluster(), 0
    while asked < count:
        world = World(seed, host_pods=True)
        if world.random.random() < 0.3:
            before, cluster = None, Cluster()
        become(cluster, before, world)
        snapshot = cluster.snapshot()
        naive = Naive(world.objects, world.pods, world.namespaces, world.nodes)
        for _ in range(questions):
            question = world.question()
            wanted = naive.fate(*question)
            assert snapshot.allowed(*question) == (wanted == ""), f"seed {seed}: {question}: the text says {wanted!r}"
            assert fate(snapshot, *question) == wanted, f"seed {seed}: {question}"
            passed += wanted == ""
        asked, before, seed = asked + questions, world, seed + 1
    return {"pass": passed, "denied": asked - passed}


if __name__ == "__main__":
    started = time.monotonic()
    found = compare_worlds(int(sys.argv[1]), int(sys.argv[2]))
    total = sum(found.values())
    seconds = time.monotonic() - started
    print(f"{total:,} questions, {found['denied']:,} denied, no mismatch, {total / seconds:,.0f} a second")
