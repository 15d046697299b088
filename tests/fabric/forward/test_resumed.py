"""A data path that forwards as the last one did before anybody has told it anything."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest

from fabric.forward import kept, last_state
from fabric.forward.resumed import LastingDataplane, resume
from fabric.model import Endpoint
from fabric.policy import Pod, PolicySnapshot, compile_policies
from tests.fabric.forward.harness import prefixes_of
from tests.fabric.forward.managers import Manager
from tests.fabric.forward.test_dataplane import PORTS, PlaneNode
from tests.fabric.forward.test_kept import SETTINGS, ended
from tests.tun.conftest import Namespace, wait_for

pytestmark = pytest.mark.root
WORDS = ["--iface=lo"]
ADDRESS = prefixes_of(1)[0].network_address + 9
POLICED = {"policy_required": True, "flows": 1024}
ALLOWED, REFUSED = "10.244.2.1", "10.244.2.2"


@pytest.fixture
def namespace(stack: ExitStack) -> Namespace:
    made = Namespace()
    stack.callback(made.delete)
    made.command("ip", "link", "set", "lo", "up")
    return made


@pytest.fixture
def endpoint(stack: ExitStack) -> Endpoint:
    pods = Namespace()
    stack.callback(pods.delete)
    return Endpoint("p1", "tun", pods.path, "eth1", (ADDRESS,))


def ran(namespace: Namespace, manager: Manager, endpoint: Endpoint, **changes: object) -> None:
    """A run that had a pod, and ended."""
    node = PlaneNode(namespace, 1)
    node.plane = plane = LastingDataplane(replace(SETTINGS, **changes), manager, WORDS)  # type: ignore[arg-type]
    node.start()
    plane.add_port(endpoint)
    ended(plane, manager)


def next_run(
    namespace: Namespace, manager: Manager, stack: ExitStack, words: list[str] = WORDS
) -> LastingDataplane | None:
    found = namespace.run(lambda: resume(manager, words))
    if found is not None:
        stack.callback(found.stop)
    return found


def names(plane: LastingDataplane) -> list[str]:
    return [port["name"] for port in plane.status()["ports"]]  # type: ignore[attr-defined]


def test_it_forwards_at_once(namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint) -> None:
    """Node port, pods and sockets are there, with what has arrived in them since, and threads that look at it."""
    ran(namespace, manager, endpoint)
    with namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        for _ in range(20):
            sender.sendto(bytes(50), ("127.0.0.1", PORTS["vxlan"]))
    plane = next_run(namespace, manager, stack)
    assert plane is not None
    assert names(plane) == ["node", "p1"]
    wait_for(lambda: plane.counters()["receive_datagrams"] >= 20)


def test_the_start_finds_it_there(namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint) -> None:
    """The same calls as ever; what was resumed and is asked for stays, also over one more run."""
    ran(namespace, manager, endpoint)
    for _ in range(2):
        plane = next_run(namespace, manager, stack)
        assert plane is not None
        generation = plane.status()["generation"]
        plane.open()
        plane.create_node_port()
        plane.attach_port(endpoint)
        plane.start()
        assert plane.status()["generation"] == generation, "nothing was different"
        assert names(plane) == ["node", "p1"]
        ended(plane, manager)


def test_a_node_port_that_was_deleted_is_made_again(
    namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint
) -> None:
    ran(namespace, manager, endpoint)
    plane = next_run(namespace, manager, stack)
    assert plane is not None
    plane.create_node_port()
    plane.start()
    namespace.command("ip", "link", "delete", SETTINGS.device)
    namespace.run(plane.recreate_node_port)
    assert SETTINGS.device in namespace.command("ip", "-br", "link")


def test_what_nobody_asks_for_goes(
    namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint
) -> None:
    ran(namespace, manager, endpoint)
    plane = next_run(namespace, manager, stack)
    assert plane is not None
    plane.start()
    assert names(plane) == ["node"]
    assert kept.pod("p1") not in manager.fds


def test_an_address_that_changed_meanwhile(
    namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint
) -> None:
    ran(namespace, manager, endpoint)
    plane = next_run(namespace, manager, stack)
    assert plane is not None
    address = prefixes_of(1)[0].network_address + 10
    plane.delete_port("p1")
    plane.add_port(replace(endpoint, addresses=(address,)))
    plane.start()
    assert plane.status()["ports"][1]["addresses"] == [str(address)]  # type: ignore[index]


def test_another_command_line_resumes_nothing(
    namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint
) -> None:
    ran(namespace, manager, endpoint)
    assert next_run(namespace, manager, stack, ["--iface=other"]) is None
    assert manager.holds(kept.NODE), "for the rest of the start"
    assert manager.holds(kept.STATE)


def test_policy_without_verdicts_resumes_nothing(
    namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint
) -> None:
    """Without them nothing may pass."""
    ran(namespace, manager, endpoint, **POLICED)
    assert next_run(namespace, manager, stack) is None


def verdicts(*sources: str) -> PolicySnapshot:
    """The pod takes from these only."""
    blocks = [{"ipBlock": {"cidr": f"{source}/32"}} for source in sources]
    policy = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p1"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": blocks}]},
    }  # fmt: skip
    return compile_policies([policy], [Pod("default", "p1", {}, (ADDRESS,))], [], [])


def judged(plane: LastingDataplane) -> list[bool]:
    """What is said of a flow from each of the two."""
    snapshot = plane.live().policy
    assert snapshot is not None
    return [snapshot.allowed(source, ADDRESS, "UDP", 7) for source in (ALLOWED, REFUSED)]


def test_policy_goes_on_as_it_was(
    namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint
) -> None:
    """Over any number of runs, until a new one is there."""
    node = PlaneNode(namespace, 1)
    node.plane = plane = LastingDataplane(replace(SETTINGS, **POLICED), manager, WORDS)  # type: ignore[arg-type]
    node.start()
    plane.add_port(endpoint)
    plane.set_policy(verdicts(ALLOWED, REFUSED))
    plane.set_policy(verdicts(ALLOWED))
    ended(plane, manager)
    for _ in range(2):
        resumed = next_run(namespace, manager, stack)
        assert resumed is not None
        assert judged(resumed) == [True, False]
        resumed.attach_port(endpoint)
        resumed.start()
        ended(resumed, manager)


def test_a_change_of_policy_leaves_nothing_to_go_on_with_until_it_is_written(
    namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint
) -> None:
    """A process that is killed then has its successor compile: what was allowed before never passes again."""
    later: list[Callable[[], None]] = []
    node = PlaneNode(namespace, 1)
    settings = replace(SETTINGS, **POLICED)  # type: ignore[arg-type]
    node.plane = plane = LastingDataplane(settings, manager, WORDS, later.append)
    stack.callback(plane.stop)
    node.start()
    plane.add_port(endpoint)
    plane.set_policy(verdicts(ALLOWED, REFUSED))
    later.pop()()
    assert known(manager)
    plane.set_policy(verdicts(ALLOWED))
    assert not known(manager)
    later.pop()()
    assert known(manager)
    plane.set_policy(verdicts())
    plane.halt()
    assert not known(manager), "the successor's policy may be another one"
    later.pop()()
    assert not known(manager)


def known(manager: Manager) -> bool:
    """Whether a run that began now would have anything to go on with."""
    manager.next_run()
    return last_state.read(manager) is not None


def test_a_pod_that_is_gone_holds_up_nothing(
    namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint
) -> None:
    ran(namespace, manager, endpoint)
    namespace.command("nsenter", f"--net={endpoint.netns}", "ip", "link", "delete", "eth1")
    plane = next_run(namespace, manager, stack)
    assert plane is not None
    assert names(plane) == ["node"]
