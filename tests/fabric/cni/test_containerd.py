"""A foreign runtime: containerd's `ctr run --cni`, which is go-cni over libcni. Two containers a kind.

No image, no registry: the root file system is made of the host's files. containerd is started for the test, with its
socket and files in directories of the test; ctr's fixed directories of networks and plugins are covered in a mount
namespace. It executes DEL when the container has ended, without a namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.fabric.cni import rootfs
from tests.fabric.cni.host import DaemonHost, Host
from tests.fabric.cni.test_podman import a_host_for

NEEDED = [shutil.which(name) for name in ("containerd", "ctr", "crun")]
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(None in NEEDED, reason="needs Debian's containerd and crun"),
]
CONFIG = """
version = 2
root = "{root}/containerd"
state = "{short}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "{short}/socket"
"""
SCRIPT = """
set -e
for where in /opt/cni/bin /usr/lib/cni; do [ ! -d $where ] || mount --bind {root}/bin $where; done
mount --bind {root}/net.d /etc/cni/net.d
umount -q /sys/fs/cgroup/unified || :  # crun does not take the hybrid layout; cgroups are off anyway
containerd -c {root}/config.toml -l warn >&2 &
daemon=$!
ctr="ctr -a {short}/socket"
finish() {{
    for name in one two; do $ctr task kill -s KILL $name || :; done
    wait $one $two || :
    kill $daemon
    wait $daemon || :
}}
trap finish EXIT
until_true() {{ timeout 10 sh -c "until $1; do sleep 0.01; done" >/dev/null 2>&1; }}
pid_of() {{ $ctr task ls | awk -v name=$1 '$1 == name {{print $2}}'; }}
until_true "$ctr version"
run="$ctr run --cni --cgroup= --runc-binary crun --null-io --rootfs {root}/rootfs"
$run one /bin/sleep 1000 >&2 & one=$!
$run two /bin/sleep 1000 >&2 & two=$!
for name in one two; do
    until_true "$ctr task ls | grep -q '^$name .*RUNNING'"  # comes after ADD
done
address() {{ nsenter -t $1 -n ip -j -4 address show dev eth0 | sed 's/.*"local":"\\([0-9.]*\\)".*/\\1/'; }}
one_ip=$(address $(pid_of one)) two_ip=$(address $(pid_of two))
nsenter -t $(pid_of one) -n ping -q -c 1 -w 5 $two_ip >&2
ping -q -c 1 -w 5 $one_ip >&2
echo $one_ip $two_ip
"""


def conflist(host: Host, kind: str) -> dict[str, Any]:
    ours = {key: value for key, value in host.conf(kind).items() if key not in ("name", "cniVersion")}
    return {"cniVersion": "1.0.0", "name": "podnet", "plugins": [ours]}


def shell(host: Host, directory: Path, kind: str) -> str:
    """Run the script on the host; its output."""
    short = f"/run/{host.netns}"  # of sockets' paths, too
    rootfs.make(directory)
    for name in ("net.d", "bin"):
        (directory / name).mkdir()
    shutil.copy(host.bin / "fabric-cni", directory / "bin")
    (directory / "net.d" / "10-podnet.conflist").write_text(json.dumps(conflist(host, kind)))
    (directory / "config.toml").write_text(CONFIG.format(root=directory, short=short))
    script = SCRIPT.format(root=directory, short=short)
    inside = ["nsenter", f"--net=/run/netns/{host.netns}", "unshare", "--mount", "--propagation", "private"]
    environ = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [*inside, "sh", "-c", script], capture_output=True, text=True, env=environ, check=False, timeout=60
    )
    shutil.rmtree(short, ignore_errors=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.parametrize("kind", ["tun", "bridge"])
def test_containerd_runs_containers_and_removes_them(tmp_path: Path, kind: str) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "ctr").mkdir()
    with a_host_for(kind, tmp_path / "host") as host:
        env = dict(line.split("=", 1) for line in host.subnet_file.read_text().splitlines())
        subnet = ip_network(env["FLANNEL_SUBNET"], strict=False)
        one, two = (ip_address(text) for text in shell(host, tmp_path / "ctr", kind).split())
        assert one != two
        assert one in subnet
        assert two in subnet
        assert (host.reserved(), host.records()) == (set(), set())
        assert not isinstance(host, DaemonHost) or host.ports() == {}
        assert not any(name.startswith("veth") for name in host.links())
