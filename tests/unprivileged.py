"""fabricd as a user of its own with CAP_NET_ADMIN and nothing else, as its unit runs it.

Python, the project and /dev/net/tun may be out of an ordinary user's reach where tests run (below /root, mode 0600):
the process gets them by mounts in a mount namespace of its own.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UID = 61_234
_DROP = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--inh-caps=-all,+net_admin",
         "--ambient-caps=+net_admin", "--bounding-set=-all,+net_admin", "--no-new-privs")  # fmt: skip


class Reachable:
    """Python and the project below `directory`, which everybody may read. `mounts` is shell text for root."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        sources = {"python": sys.base_prefix, "project": str(ROOT), "site": sysconfig.get_path("purelib")}
        lines = [f"mkdir -p {directory / at}; mount --bind {path} {directory / at}" for at, path in sources.items()]
        tun = directory / "tun"
        lines.append(f"[ -e {tun} ] || mknod {tun} c 10 200; chmod 666 {tun}; mount --bind {tun} /dev/net/tun")
        self.mounts = "\n".join(["set -e", *lines])

    @property
    def python(self) -> str:
        return str(self.directory / "python" / "bin" / Path(os.path.realpath(sys.executable)).name)

    @property
    def environment(self) -> Mapping[str, str]:
        """For Python to find everything, itself included."""
        return {
            "PYTHONPATH": f"{self.directory / 'project'}:{self.directory / 'site'}",
            "LD_LIBRARY_PATH": str(self.directory / "python" / "lib"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def command(self, words: Sequence[str]) -> list[str]:
        """Python with `words`, as the user. The mounts go to the caller's namespace: `ip netns exec` makes one."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        script = f'{self.mounts}\nexec "$@"'
        return ["sh", "-c", script, "sh", *_DROP, "env", *settings, self.python, *words]
