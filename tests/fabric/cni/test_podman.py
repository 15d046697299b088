"""A foreign runtime: podman with its CNI backend, which is libcni 1.1.2. A pod of podman's on each kind of interface.

The root file system is three files copied from the host; no image, no registry. podman runs in a mount namespace of its
own, of which only /run/netns is shared: that is where its pods' namespaces appear, for the daemon too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fabric.cni import rootfs
from tests.fabric.cni.host import DaemonHost, Host, a_daemon_host, a_host

NEEDED = [shutil.which(name) for name in ("podman", "crun")]
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(None in NEEDED, reason="needs Debian's podman and crun"),
]
PREPARE = """
mount --make-rprivate /sys
umount -q /sys/fs/cgroup/unified || :  # crun does not take the hybrid layout; cgroups are off anyway
"""


class Podman:
    """podman inside a host's namespace, with one CNI network of ours."""

    def __init__(self, host: Host, directory: Path, conflist: dict[str, Any]) -> None:
        self.host = host
        self._directory = directory
        rootfs.make(directory)
        (directory / "net.d").mkdir()
        (directory / "net.d" / "10-podnet.conflist").write_text(json.dumps(conflist))
        (directory / "containers.conf").write_text(
            f'[network]\nnetwork_backend = "cni"\nnetwork_config_dir = "{directory / "net.d"}"\n'
            f'cni_plugin_dirs = ["{host.bin}"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
        )

    def shell(self, script: str) -> str:
        """Run a script in which `$podman` is podman; its output."""
        root = self._directory
        short = f"/run/{self.host.netns}"  # podman takes at most 50 characters
        options = f"--root {root}/store --runroot {short} --tmpdir {short}/tmp --storage-driver vfs --runtime crun"
        command = ["nsenter", f"--net=/run/netns/{self.host.netns}", "unshare", "--mount", "--propagation", "unchanged"]
        inner = f"{PREPARE}\npodman='podman {options}'\nrootfs={root}/rootfs\nset -e\n{script}"
        environ = {"PATH": os.environ["PATH"], "CONTAINERS_CONF": f"{root}/containers.conf", "HOME": str(root)}
        done = subprocess.run(
            [*command, "sh", "-c", inner], capture_output=True, text=True, env=environ, check=False, timeout=120
        )
        shutil.rmtree(short, ignore_errors=True)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout


RUN = "$podman run -d --cgroups=disabled --ulimit nofile=512:512 --ulimit nproc=512:512 --network podnet {options} \
--rootfs $rootfs /bin/sleep 1000"
SCRIPT = f"""
trap '$podman rm -f -a -t 0 >&2' EXIT
one=$({RUN.format(options="--name one --ip {ip}")})
two=$({RUN.format(options="--name two -p 8080:80")})
$podman inspect one two
one_pid=$($podman inspect --format '{{{{.State.Pid}}}}' one)
two_ip=$($podman inspect --format '{{{{.NetworkSettings.Networks.podnet.IPAddress}}}}' two)
nsenter -t $one_pid -n ip -j address show dev eth0 >&2
nsenter -t $one_pid -n ping -q -c 1 -W 2 $two_ip >&2
ping -q -c 1 -W 2 $two_ip >&2
$podman rm -f -t 0 one >&2
$podman rm -f -t 0 two >&2
"""


def conflist(host: Host, kind: str) -> dict[str, Any]:
    ours = {key: value for key, value in host.conf(kind).items() if key not in ("name", "cniVersion")}
    ours["capabilities"] = {"ips": True}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "podnet", "plugins": [ours, portmap]}


@contextmanager
def a_host_for(kind: str, directory: Path) -> Iterator[Host | DaemonHost]:
    with (a_daemon_host if kind == "tun" else a_host)(directory) as host:
        yield host


@pytest.mark.parametrize("kind", ["tun", "veth", "bridge"])
def test_podman_runs_pods_and_removes_them(tmp_path: Path, kind: str) -> None:
    (tmp_path / "host").mkdir()
    with a_host_for(kind, tmp_path / "host") as host:
        env = dict(line.split("=", 1) for line in host.subnet_file.read_text().splitlines())
        wanted = f"{env['FLANNEL_SUBNET'].rpartition('.')[0]}.77"
        podman = Podman(host, tmp_path / "podman", conflist(host, kind))
        out = podman.shell(SCRIPT.replace("{ip}", wanted))
        one, two = json.loads(out)
        settings = [item["NetworkSettings"]["Networks"]["podnet"] for item in (one, two)]
        assert settings[0]["IPAddress"] == wanted
        assert settings[1]["IPAddress"] != wanted
        assert settings[0]["GlobalIPv6Address"].startswith("2001:db8:42:")
        assert (host.reserved(), host.records()) == (set(), set())
        assert not isinstance(host, DaemonHost) or host.ports() == {}
        assert not any(name.startswith("veth") for name in host.links())
