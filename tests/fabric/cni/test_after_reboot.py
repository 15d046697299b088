"""A start of the real daemon after a reboot or a crash: what pods that are gone had is free."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from fabric.cni.attachment import Attachment, Record
from fabric.cni.state import Store
from fabric.ipam import allocator
from fabric.ipam import config as ranges
from fabric.ipam.names import Attachment as Owner
from tests.fabric.cni.host import DaemonHost, add
from tests.fabric.daemon.nodes import wait_for

pytestmark = pytest.mark.root
STALE = 250


def leave_stale(host: DaemonHost, count: int) -> None:
    """What a machine that lost its power had of so many pods."""
    subnet = host.node.env()["FLANNEL_SUBNET"].replace(".1/", ".0/")
    ipam = {"type": "host-local", "dataDir": str(host.networks), "ranges": [[{"subnet": subnet}]]}
    conf = host.conf("tun", ipam=ipam)
    store = Store(host.data / "podnet", "podnet")
    for number in range(count):
        attachment = Attachment("podnet", f"stale{number}", "eth0")
        allocator.allocate(ranges.load(conf), Owner(attachment.container_id, "eth0"))
        store.save(Record(attachment, "tun", f"/run/netns/stale{number}", conf, boot_id="another"))


def reboot(host: DaemonHost) -> None:
    """As far as the daemon can tell: its last look was in another boot."""
    path = host.node.directory / "state" / "cni.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "boot_id": "another"}))


@contextmanager
def reservations_locked(host: DaemonHost) -> Iterator[Callable[[], int]]:
    """Nobody gets an address or gives one back meanwhile; how many wait for it."""
    path = host.networks / "podnet" / "lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inode = f":{path.stat().st_ino} "
        yield lambda: sum("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


def owners(directory: Path) -> set[str]:
    return {path.read_text().split()[0] for path in directory.iterdir() if path.name[0].isdigit()}


def test_a_subnet_full_of_stale_addresses_is_free_before_the_first_add_and_live_ones_stay(
    daemon_host: DaemonHost,
) -> None:
    host, conf = daemon_host, daemon_host.conf("tun")
    live = [host.pod(), host.pod()]
    for pod in live:
        add(host, pod, "tun")
    leave_stale(host, STALE)
    host.stop()
    reboot(host)
    host.start()
    adding = [host.pod() for _ in range(3)]
    with ThreadPoolExecutor(len(adding)) as pool:
        answers = list(pool.map(lambda pod: host.execute("fabric-cni", host.environment("ADD", pod), conf), adding))
    assert [answer.status for answer in answers] == [0, 0, 0]
    kept = {pod.container_id for pod in (*live, *adding)}
    assert owners(host.networks / "podnet") == kept
    assert host.records() == {f"{name}@eth0" for name in kept}
    assert len(host.ports()) == len(kept)
    for pod in (*live, *adding):
        host.call("DEL", conf, pod).must()


def test_an_add_that_arrives_during_the_start_is_refused_or_served_and_never_taken_for_a_stale_one(
    daemon_host: DaemonHost,
) -> None:
    host, conf = daemon_host, daemon_host.conf("tun")
    leave_stale(host, 10)
    subnet = host.node.env()["FLANNEL_SUBNET"].replace(".1/", ".0/")
    kernels = host.conf("veth", ipam={"dataDir": str(host.networks), "ranges": [[{"subnet": subnet}]]})
    host.stop()
    reboot(host)
    early, needs_no_daemon = host.pod(), host.pod()
    with ThreadPoolExecutor(1) as pool:
        with reservations_locked(host) as waiting:
            host.node.launch()
            wait_for(lambda: waiting() == 1, what="the start, which releases addresses")
            refused = host.call("ADD", conf, early)
            environ = host.environment("ADD", needs_no_daemon)
            served = pool.submit(host.execute, "fabric-cni", environ, kernels)
            wait_for(lambda: waiting() == 2, what="the ADD, which wants an address")
        served.result().must()
    assert refused.code == 11, refused
    wait_for(host.node.ready, what="the daemon")
    host.call("ADD", conf, early).must()
    kept = {early.container_id, needs_no_daemon.container_id}
    assert owners(host.networks / "podnet") == kept
    assert host.records() == {f"{name}@eth0" for name in kept}
    assert host.pings(served.result().object["ips"][0]["address"].split("/")[0])
    host.call("DEL", conf, early).must()
    host.call("DEL", kernels, needs_no_daemon).must()


def test_what_a_pod_had_whose_namespace_went_while_the_daemon_was_down_is_free(daemon_host: DaemonHost) -> None:
    host, conf = daemon_host, daemon_host.conf("tun")
    gone, live = host.pod(), host.pod()
    for pod in (gone, live):
        add(host, pod, "tun")
    host.stop()
    host.delete_pod(gone)
    host.start()
    assert owners(host.networks / "podnet") == {live.container_id}
    assert len(host.routes()) == 1
    host.call("DEL", conf, live).must()
