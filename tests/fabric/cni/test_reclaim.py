"""What the daemon removes at its start of attachments that are gone, and what it keeps; no daemon, no interfaces."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from fabric.cni import reclaim
from fabric.cni.attachment import Attachment, Record
from fabric.cni.result import IPConfig
from fabric.cni.state import Store
from fabric.ipam import allocator
from fabric.ipam import config as ranges
from fabric.ipam.names import Attachment as Owner

pytestmark = pytest.mark.root  # removing asks the kernel
NOW, BEFORE = "this-boot", "another-boot"
SUBNET = "10.244.1.0/24"


class Node:
    """The plugin's directories."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "fabric"
        self.flannel = directory / "flannel"
        self.run_dir = directory / "run"
        self.networks = directory / "networks"

    def document(self, name: str = "podnet") -> dict[str, Any]:
        ipam = {"type": "host-local", "dataDir": str(self.networks), "ranges": [[{"subnet": SUBNET}]]}
        document = {"cniVersion": "1.1.0", "name": name, "type": "fabric-cni", "ipam": ipam}
        return document | {"runDir": str(self.run_dir)}

    def add(self, container_id: str, boot_id: str, kind: str = "tun") -> Attachment:
        attachment = Attachment("podnet", container_id, "eth0")
        granted = allocator.allocate(ranges.load(self.document()), Owner(container_id, "eth0"))
        ips = tuple(IPConfig(ip_interface(f"{item.address.ip}/32"), None) for item in granted)
        record = Record(attachment, kind, f"/run/netns/{container_id}", self.document(), ips, boot_id=boot_id)
        with self.store.locked(attachment, create=True):
            self.store.save(record)
        return attachment

    def add_flannel(self, container_id: str, name: str = "cbr0") -> None:
        """As flannel's plugin and `host-local` leave it."""
        allocator.allocate(ranges.load(self.document(name)), Owner(container_id, "eth0"))
        self.flannel.mkdir(exist_ok=True)
        (self.flannel / container_id).write_text(json.dumps({**self.document(name), "type": "bridge"}))
        (self.flannel / container_id).chmod(0o600)

    @property
    def store(self) -> Store:
        return Store(self.data / "podnet", "podnet")

    def containers(self) -> set[str]:
        return {attachment.container_id for attachment in self.store.all()}

    def holders(self, network: str = "podnet") -> set[str]:
        """The containers that have an address."""
        files = (self.networks / network).iterdir()
        return {path.read_text().split()[0] for path in files if path.name[0].isdigit()}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def lost(node: Node, rebooted: bool, container_id: str = "a", netns: str = "") -> reclaim.Outcome:
    name = Attachment("podnet", container_id, "eth0").port
    return reclaim.lost(node.data, [reclaim.Lost(name, netns or f"/run/netns/{container_id}", rebooted)], NOW)


def test_after_a_reboot_its_records_go_and_others_stay(node: Node) -> None:
    for container_id, boot_id in (("old", BEFORE), ("new", NOW), ("unknown", "")):
        node.add(container_id, boot_id)
    assert reclaim.rebooted(node.data, NOW) == reclaim.Outcome(1)
    assert node.containers() == node.holders() == {"new", "unknown"}
    assert reclaim.rebooted(node.data, NOW) == reclaim.Outcome(0)


def opened(work: Callable[[], object]) -> int:
    """How many files are opened meanwhile."""
    found = 0

    def count(_frame: object, event: str, called: object) -> None:
        nonlocal found
        found += event == "c_call" and called is os.open

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def test_the_work_grows_with_their_number_and_not_with_its_square(node: Node) -> None:
    """Each removed one by one, all reservations would be read for each: 250 of them kept a start for seconds."""
    for number in range(reclaim.AT_ONCE + 1):
        node.add(f"s{number}", BEFORE)
    count = reclaim.AT_ONCE + 1
    assert opened(lambda: reclaim.rebooted(node.data, NOW)) < 12 * count
    assert node.holders() == node.containers() == set()


def test_an_attachment_that_a_call_works_on_is_left_to_it(node: Node) -> None:
    with node.store.locked(node.add("a", BEFORE), create=True):
        assert reclaim.rebooted(node.data, NOW) == lost(node, rebooted=True) == reclaim.Outcome(0)
    assert node.holders() == {"a"}


@pytest.mark.parametrize("kind", ["tun", "tap", "veth", "bridge"])
@pytest.mark.parametrize(("rebooted", "boot_id", "goes"), [
    (True, BEFORE, True),
    (True, "", True),
    (True, NOW, False),  # added again since
    (False, NOW, True),
    (False, "", True),
])  # fmt: skip
def test_what_the_daemon_has_lost(node: Node, kind: str, rebooted: bool, boot_id: str, goes: bool) -> None:
    node.add("a", boot_id, kind)
    node.add("b", NOW)
    assert lost(node, rebooted) == reclaim.Outcome(int(goes))
    assert node.holders() == node.containers() == ({"b"} if goes else {"a", "b"})


def test_a_record_of_another_namespace_stays(node: Node) -> None:
    node.add("a", NOW)
    assert lost(node, rebooted=False, netns="/run/netns/other") == reclaim.Outcome(0)
    assert node.holders() == {"a"}


@pytest.mark.parametrize("name", ["node", "cni/", "cni/podnet/", "cni/../a/eth0", "cni/podnet/../eth0", "lab/a/eth0"])
def test_ports_that_are_not_the_plugins_are_passed_over(node: Node, name: str) -> None:
    assert reclaim.lost(node.data, [reclaim.Lost(name, "/run/netns/a", True)], NOW) == reclaim.Outcome(0)


def test_what_cannot_be_removed_is_reported_and_the_rest_is_removed(node: Node) -> None:
    broken, _ = node.add("a", BEFORE), node.add("b", BEFORE)
    record = node.store.load(broken)
    assert record is not None
    node.store.save(record._replace(document={**node.document(), "ipam": {"type": "nowhere"}}))
    found = reclaim.rebooted(node.data, NOW)
    assert (found.removed, len(found.problems)) == (1, 1)
    assert (node.holders(), node.containers()) == ({"a"}, {"a"})


def test_nothing_there_is_nothing_to_do(node: Node) -> None:
    assert reclaim.rebooted(node.data, NOW) == reclaim.flannels(node.flannel) == reclaim.Outcome(0)


def test_containers_of_flannels_type_of_before_this_boot(node: Node) -> None:
    for container_id in ("old", "new"):
        node.add_flannel(container_id)
    allocator.allocate(ranges.load(node.document("cbr0")), Owner("nobodys", "eth0"))
    (node.flannel / "damaged").write_text("{")
    for name in ("old", "damaged"):
        os.utime(node.flannel / name, (1, 1))
    found = reclaim.flannels(node.flannel)
    assert (found.removed, len(found.problems)) == (1, 1)
    assert node.holders("cbr0") == {"new", "nobodys"}
    assert not (node.flannel / "old").exists()
