"""Faults around a call: many at once, signals, a reader that is gone, full and read-only disks, slow delegates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fabric.cni.host import GC_KEY, DaemonHost, Host, PodNamespace, add
from tests.fabric.cni.test_hostside import elements
from tests.scenarios.waiting import wait_for

pytestmark = pytest.mark.root


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bridge", "tun"])
def test_fifty_pods_at_once(request: pytest.FixtureRequest, kind: str) -> None:
    """Processes of their own, as a runtime starts them; then the same with DEL."""
    host: Host = request.getfixturevalue("daemon_host" if kind == "tun" else "host")
    pods = [host.pod() for _ in range(50)]
    conf = host.conf(kind)

    def call(command: str, pod: PodNamespace) -> Any:
        return host.execute("fabric-cni", host.environment(command, pod), conf).must()

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(lambda pod: call("ADD", pod), pods))
        addresses = [item["address"] for result in results for item in result["ips"]]
        assert len(addresses) == len(set(addresses)) == 100
        assert all(address in pod.addresses() for pod, result in zip(pods, results, strict=True)
                   for address in [result["ips"][0]["address"]])  # fmt: skip
        list(pool.map(lambda pod: call("DEL", pod), pods))
    host.call("GC", conf | {GC_KEY: []}).must()  # on a machine this busy the daemon may have answered too late
    assert (host.reserved(), host.records(), host.routes()) == (set(), set(), set())
    assert not isinstance(host, DaemonHost) or host.ports() == {}
    for pod in pods:
        host.delete_pod(pod)


@contextmanager
def slow_ipam(host: Host) -> Iterator[Path]:
    """An IPAM plugin that waits in ADD until its fifo is written to; its log has the commands it got."""
    fifo, log, path = (host.bin / name for name in ("slow-fifo", "slow-log", "slow-ipam"))
    path.write_text(f'#!/bin/sh\necho "$CNI_COMMAND" >> {log}\n[ "$CNI_COMMAND" != ADD ] || read -r line < {fifo}\n'
                    'echo \'{"cniVersion":"1.0.0","ips":[{"address":"198.51.100.9/24"}]}\'\n')  # fmt: skip
    path.chmod(0o755)
    os.mkfifo(fifo)
    try:
        yield log
    finally:
        for item in (fifo, log, path):
            item.unlink(missing_ok=True)


def start(host: Host, pod: PodNamespace, conf: dict[str, Any], **streams: Any) -> subprocess.Popen[bytes]:
    command = ["ip", "netns", "exec", host.netns, str(host.bin / "fabric-cni")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=host.environment("ADD", pod), **streams)
    assert process.stdin is not None
    process.stdin.write(json.dumps(conf).encode())
    process.stdin.close()
    process.stdin = None
    return process


def test_sigterm_undoes_what_was_begun(host: Host) -> None:
    pod = host.pod()
    with slow_ipam(host) as log:
        process = start(host, pod, host.conf(cniVersion="1.0.0", ipam={"type": "slow-ipam"}))
        wait_for(lambda: log.exists() and log.read_text(), "IPAM to be asked")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 1
        answer = json.loads(out)
        assert (answer["code"], answer["msg"]) == (114, "interrupted by SIGTERM"), err
        assert log.read_text().split() == ["ADD", "DEL"], "the delegate's ADD is followed by its DEL"
    assert set(pod.links()) == {"lo"}
    assert host.records() == set()


def test_a_result_that_nobody_reads_is_undone(host: Host) -> None:
    """The runtime is gone: it can never know that there is an interface."""
    for kind in ("veth", "bridge"):
        pod = host.pod()
        read, write = os.pipe()
        os.close(read)
        process = start(host, pod, host.conf(kind), stdout=write)
        os.close(write)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert b"cannot write the result" in err
        assert b"Traceback" not in err
        assert (set(pod.links()), host.reserved(), host.records()) == ({"lo"}, set(), set())


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k,mode=0755", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def fill(directory: Path) -> Path:
    """Take all space and all inodes that are left."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"\0" * 1024)
            except OSError:
                return filler


@pytest.mark.parametrize("where", ["data", "networks"])
def test_a_full_disk_fails_add_without_a_leak_and_no_del(host: Host, tmp_path: Path, where: str) -> None:
    with small_disk(tmp_path / "disk") as disk:
        paths = {"dataDir": str(disk)} if where == "data" else {"ipam": {"dataDir": str(disk)}}
        mappings = [{"hostPort": 80, "containerPort": 80}]
        conf, early = host.conf(**paths, runtimeConfig={"portMappings": mappings}), host.pod()
        host.call("ADD", conf, early).must()
        filler = fill(disk)
        for _ in range(20):
            answer = host.call("ADD", conf, host.pod())
            assert answer.code in (5, 11), answer
        assert host.call("DEL", conf, early).status == 0, "a full disk is no reason to keep a pod"
        filler.unlink()
        left = [name for _, _, names in os.walk(disk) for name in names if name[0].isdigit() or "@" in name]
        assert left == []
        late = host.pod()
        host.call("ADD", conf, late).must()
        host.call("DEL", conf, late).must()
    assert (host.reserved(), elements(host)) == (set(), [])


def test_a_read_only_disk(host: Host, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        conf, pod = host.conf(dataDir=str(disk)), host.pod()
        host.call("ADD", conf, pod).must()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert host.call("ADD", conf, host.pod()).code == 5
        deleted = host.call("DEL", conf, pod)
        assert deleted.code == 5, "the record stays, and so the runtime tries again"
        assert "Read-only file system" in deleted.text
        assert (set(pod.links()), host.reserved()) == ({"lo"}, set()), "everything but the record is gone"
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert host.call("DEL", conf, pod).status == 0


@pytest.mark.slow
def test_a_daemon_that_dies_during_add_leaves_nothing(daemon_host: DaemonHost) -> None:
    """Killed at some moment of an ADD, again and again: the call succeeds or undoes, and DEL cleans up."""
    host = daemon_host
    pods = [host.pod() for _ in range(6)]
    for number, pod in enumerate(pods):
        if host.node.ended():
            host.start()
        process = start(host, pod, host.conf("tun"))
        deadline = time.monotonic() + 0.03 * number
        wait_for(lambda until=deadline: time.monotonic() > until, "the moment")
        host.stop(signal.SIGKILL)
        out, err = process.communicate(timeout=30)
        if process.returncode:
            assert json.loads(out)["code"] in (11, 111, 112), err
            assert host.reserved() == set()
        assert host.call("DEL", host.conf("tun"), pod).status == 0
        assert host.reserved() == set()
    host.start()
    add(host, pods[0], "tun")
    host.call("DEL", host.conf("tun"), pods[0]).must()
    assert host.records() == set()
    assert host.ports() == {}
