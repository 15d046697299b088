"""The life of the Debian package in a root directory: installed, verified, upgraded, configured, removed, purged.

    python -m tests.systemd.package_life [--suite bookworm] [--mirror http://deb.debian.org/debian] [--keep DIRECTORY]

makes a fresh root with debootstrap (a minute, and the network) and takes the package through it, as `test_deb` does in
a layer over the host's root. Needs root, and debootstrap of the package of that name.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy import deb

PACKAGES = "python3,systemd"  # what the package depends on
LIFE = """
set -e
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
# An empty /opt goes with the last package in it: dpkg.
listed() { find /etc /opt /usr -mindepth 1 -not -path "*/__pycache__*" 2>/dev/null | sort; }
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
# Makes the root directory $1/root, a layer over the root $4; $2 is the package.
LAYER = """
set -e
mkdir -p "$1"
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$4,upperdir=$1/upper,workdir=$1/work" "$1/root"
for path in proc dev; do mount --rbind "/$path" "$1/root/$path"; done
cp "$2" "$1/root/package.deb"
exec chroot "$1/root" sh -c "$3"
"""


def live(package: Path, layer: Path, root: Path = Path("/")) -> None:
    """In a layer over `root`, made at `layer` for as long as this runs. Raises AssertionError: what differs."""
    words = [layer, package, LIFE, root]
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", LAYER, "sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("podfabric 755")]
    assert lines[:2] + lines[3:] == [
        "podfabric", "imports", "/opt/podfabric/bin/fabric-cni", "verified", "upgraded",
        "FABRICD_OPTIONS=--iface=eth7", "clean",
    ], done.stdout  # fmt: skip
    assert re.fullmatch(r"fabricctl \d+\.\d+\.\d+", lines[2]), done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--keep", type=Path, help="where the fresh root is, or is left for the next time")
    asked = parser.parse_args()
    if not (asked.keep or shutil.which("debootstrap")):
        sys.exit("package_life: there is no debootstrap - apt-get install debootstrap")
    with tempfile.TemporaryDirectory(prefix="podfabric-life-") as name:
        directory = asked.keep or Path(name)
        fresh = directory / "fresh"
        if not fresh.exists():
            fresh.mkdir(parents=True)
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", asked.suite, fresh, asked.mirror]
            subprocess.run(command, check=True)
        live(deb.build(Path(name), "/usr/bin/python3", "gzip"), Path(name) / "layer", fresh)
    print(f"package_life: installed, upgraded, removed and purged in a fresh {asked.suite}: nothing is left of it")


if __name__ == "__main__":
    main()
