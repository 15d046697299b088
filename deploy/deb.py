"""The Debian package, by Debian's own dpkg-deb: `./dev deb [--out DIR] [--python /usr/bin/python3]`.

What `fabricctl install` makes of the running distribution, in a package's places, with maintainer scripts. The
environment under /opt/podfabric is built for Debian's python3, whose minor version the package depends on. Installing
starts nothing; an upgrade restarts a running fabricd, which loses no packet under systemd.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from fabric.install import environment, steps
from fabric.install.layout import Layout

SCRIPTS = Path(__file__).with_name("debian")
CONTROL = """\
Package: podfabric
Version: {version}
Architecture: {architecture}
Maintainer: podfabric <podfabric@example.org>
Installed-Size: {size}
Depends: python3 (>= {python}), python3 (<< {next}), libc6 (>= {libc}), systemd (>= 247)
Suggests: containernetworking-plugins, iptables
Section: net
Priority: optional
Description: pod traffic between Linux nodes over VXLAN from user space
 A node daemon, compatible with flannel, its CNI plugin and its command line
 tool. It runs as a systemd service of a user of its own, with CAP_NET_ADMIN as
 its only capability.
 .
 Installing does not start it: put options into /etc/default/fabricd, then
 systemctl enable --now fabricd.
"""


def build(out: Path, python: str, compression: str = "xz") -> Path:
    """Make the package in the directory `out`; its path. Raises EnvironmentProblem, OSError, SubprocessError."""
    with tempfile.TemporaryDirectory(prefix="podfabric-deb-") as directory:
        tree = Path(directory) / "tree"
        tree.mkdir(mode=0o755)
        for line in steps.install(Layout(tree, vendor=True), python, kind="", force=False):
            print(line.replace(f"{tree}/", "/"))
        _control(tree)
        out.mkdir(parents=True, exist_ok=True)
        name = f"podfabric_{_version()}_{_architecture()}.deb"
        command = ["dpkg-deb", "--root-owner-group", f"-Z{compression}", "--build", str(tree), str(out / name)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out / name


def _control(tree: Path) -> None:
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    place = tree / "DEBIAN"
    place.mkdir(mode=0o755)
    minor = sys.version_info.minor
    values = {
        "version": _version(), "architecture": _architecture(), "libc": _libc(),
        "size": sum(path.stat().st_size for path in files) // 1024 + 1,
        "python": f"3.{minor}", "next": f"3.{minor + 1}",
    }  # fmt: skip
    (place / "control").write_text(CONTROL.format(**values))
    (place / "conffiles").write_text("/etc/default/fabricd\n")
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files]
    (place / "md5sums").write_text("".join(sums))
    for script in sorted(SCRIPTS.iterdir()):
        shutil.copyfile(script, place / script.name)
        (place / script.name).chmod(0o755)


def _version() -> str:
    return metadata.version("podfabric")


def _architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()


def _libc() -> str:
    """The C library the modules were compiled against."""
    match = re.fullmatch(r"glibc (\d+\.\d+)", os.confstr("CS_GNU_LIBC_VERSION") or "")
    return match[1] if match else "2.36"


def main() -> int:
    """Exit code 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="./dev deb", description="Build the Debian package.")
    parser.add_argument("--out", default="dist", help="directory for the package (default: %(default)s)")
    parser.add_argument("--python", default="/usr/bin/python3", help="the target's interpreter (default: %(default)s)")
    asked = parser.parse_args()
    try:
        path = build(Path(asked.out), asked.python)
    except (environment.EnvironmentProblem, OSError, subprocess.SubprocessError) as error:
        print(f"dev: the package was not built: {error}", file=sys.stderr)
        return 1
    print(f"{path} {path.stat().st_size >> 20} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
