"""fabricd in a container as docs/kubernetes/daemonset.yaml has it: `/proc/sys` is read-only there, as every runtime
makes it for what is not privileged, and the host's `/proc/sys/net` is at `/host/proc/sys/net`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fabric.daemon.nodes import TestNode, connect, ip, wait_for

pytestmark = pytest.mark.root
# The new root has everything of the old one. $1 is where to make it, $2 whether it gets the host's settings.
CONTAINER = """
set -e
root=$1 settings=$2; shift 2
mount -t tmpfs tmpfs "$root"
for path in /*; do
    if [ -L "$path" ]; then cp -P "$path" "$root"
    elif [ -d "$path" ]; then mkdir "$root$path"; mount --rbind "$path" "$root$path"
    fi
done
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
if [ "$settings" = given ]; then
    mkdir -p "$root/host/proc/sys/net"
    mount --bind /proc/sys/net "$root/host/proc/sys/net"
fi
exec chroot "$root" "$@"
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[TestNode, TestNode]]:
    (tmp_path / "store").mkdir()
    (tmp_path / "net-conf.json").write_text('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')
    made: list[TestNode] = []
    try:
        made.extend(TestNode(tmp_path, number) for number in (11, 12))
        connect(*made)
        yield made[0], made[1]
    finally:
        for node in made:
            node.remove()


def contain(node: TestNode, directory: Path, settings: str) -> None:
    """`ip netns exec`, by which it is started, has given it a mount namespace."""
    directory.mkdir()
    project = str(Path(__file__).parents[3])
    enter = ["sh", "-c", CONTAINER, "sh", str(directory), settings, "env", f"PYTHONPATH={project}", sys.executable]
    node.python = lambda words: [*enter, *words]


def sysctl(node: TestNode, name: str) -> str:
    return subprocess.run(
        ["ip", "netns", "exec", node.netns, "sysctl", "-n", name], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_it_writes_the_host_s_settings(pair: tuple[TestNode, TestNode], tmp_path: Path) -> None:
    """And keeps them so."""
    node, other = pair
    contain(node, tmp_path / "root", "given")
    node.start()
    other.start()
    wait_for(lambda: node.pings(other.address), what="the other node to be reached")
    wanted = "net.ipv4.conf.flannel/1.accept_local"
    kept = sysctl(node, wanted)
    assert kept == sysctl(other, wanted) != ""
    ip("netns", "exec", node.netns, "sysctl", "-qw", f"{wanted}={1 - int(kept)}")
    wait_for(lambda: sysctl(node, wanted) == kept, what="the setting to be as it was")
    assert not [line for line in node.messages() if "sysctl net/" in line]


def test_without_them_it_says_what_to_do(pair: tuple[TestNode, TestNode], tmp_path: Path) -> None:
    node, _ = pair
    contain(node, tmp_path / "root", "none")
    node.launch()
    wait_for(node.ended, what="the refusal")
    assert "mount /proc/sys writable, or the host's /proc/sys/net at /host/proc/sys/net" in node.messages()[-1]
    assert node.links() == ["lo", "eth0"]
