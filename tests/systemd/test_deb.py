"""The Debian package by Debian's own tools: built, installed, upgraded, removed and purged, in a root directory that is
the host's with a layer of its own on top. How it runs: test_installed.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from deploy import deb
from tests.fabric.install.staged import host_python

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(host_python() != "/usr/bin/python3", reason="Debian's python3 is of another version"),
]
LAYER = """
set -e
layer=$1; package=$2
mount -t tmpfs tmpfs "$layer"
mkdir "$layer/upper" "$layer/work" "$layer/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$layer/upper,workdir=$layer/work" "$layer/root"
for path in proc dev; do mount --rbind "/$path" "$layer/root/$path"; done
cp "$package" "$layer/root/package.deb"
"""
LIFE = """
set -e
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
listed() { find /etc /opt /usr -not -path "*/__pycache__*" 2>/dev/null | sort; }
listed >/before
dpkg -i /package.deb >/dev/null
id -un podfabric
stat -c "%U %a" /run/flannel 2>/dev/null || true
/opt/podfabric/bin/python -I -c 'import fabric.daemon.node, fabric.forward.dataplane; print("imports")'
/usr/bin/fabricctl --version
readlink /opt/cni/bin/fabric-cni
dpkg -V podfabric && echo verified
dpkg -i /package.deb >/dev/null && echo upgraded
echo 'FABRICD_OPTIONS=--iface=eth7' >/etc/default/fabricd
mkdir -p /var/lib/fabric
dpkg -r podfabric >/dev/null
cat /etc/default/fabricd
dpkg -P podfabric >/dev/null
[ ! -e /var/lib/fabric ]
listed >/after
diff /before /after | grep -v -e /etc/passwd -e /etc/group -e /etc/shadow -e /etc/gshadow || echo clean
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deb.build(tmp_path_factory.mktemp("dist"), "/usr/bin/python3", "gzip")


def test_what_it_says_about_itself(package: Path) -> None:
    fields = subprocess.run(["dpkg-deb", "-f", package], check=True, capture_output=True, text=True).stdout
    assert re.search(r"^Package: podfabric$", fields, re.M)
    assert re.search(r"^Depends: python3 \(>= 3\.(\d+)\), python3 \(<< 3\.\d+\), libc6 ", fields, re.M)
    listed = subprocess.run(["dpkg-deb", "-c", package], check=True, capture_output=True, text=True).stdout
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    assert not [line for line in listed.splitlines() if "setuid" in line or re.match(r".{3}[sS]", line)]


def test_its_life(package: Path, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    script = f'{LAYER}\nexec chroot "$layer/root" sh -c "$3"'
    words = [str(layer), str(package), LIFE]
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("podfabric 755")]
    assert lines == [
        "podfabric", "imports", lines[2], "/opt/podfabric/bin/fabric-cni", "verified", "upgraded",
        "FABRICD_OPTIONS=--iface=eth7", "clean",
    ]  # fmt: skip
    assert re.fullmatch(r"fabricctl \d+\.\d+\.\d+", lines[2])
