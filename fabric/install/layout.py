"""Where an installation puts its files, inside `root`. Paths in files never mention `root`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

PREFIX = "/opt/podfabric"
UNIT = "fabricd.service"


def sources() -> Path:
    """The directory of the unit and its companions: of a source tree, or of an installed distribution.

    Raises FileNotFoundError.
    """
    places = (Path(__file__).parents[2] / "systemd", Path(sys.prefix) / "share" / "podfabric" / "systemd")
    for place in places:
        if (place / UNIT).exists():
            return place
    raise FileNotFoundError(f"the unit is in none of {', '.join(map(str, places))}: the installation is not complete")


@dataclass(frozen=True, slots=True)
class Layout:
    """`vendor` is a package's way (/usr), else an administrator's (/etc, /usr/local)."""

    root: Path
    prefix: str = PREFIX
    vendor: bool = False

    def at(self, path: str) -> Path:
        """A path of the host inside `root`."""
        return self.root / path.lstrip("/")

    @property
    def environment(self) -> Path:
        return self.at(self.prefix)

    @property
    def units(self) -> Path:
        return self.at("/usr/lib/systemd/system" if self.vendor else "/etc/systemd/system")

    @property
    def unit(self) -> Path:
        return self.units / UNIT

    @property
    def later(self) -> Path:
        """Settings for systemd 254 and later."""
        return self.units / f"{UNIT}.d" / "254.conf"

    @property
    def sysusers(self) -> Path:
        return self.at("/usr/lib/sysusers.d" if self.vendor else "/etc/sysusers.d") / "podfabric.conf"

    @property
    def tmpfiles(self) -> Path:
        return self.at("/usr/lib/tmpfiles.d" if self.vendor else "/etc/tmpfiles.d") / "podfabric.conf"

    @property
    def options(self) -> Path:
        """fabricd's options."""
        return self.at("/etc/default/fabricd")

    @property
    def command(self) -> Path:
        """`fabricctl` where people find it."""
        return self.at("/usr/bin" if self.vendor else "/usr/local/bin") / "fabricctl"

    @property
    def cni_bin(self) -> Path:
        return self.at("/opt/cni/bin")

    @property
    def cni_conf(self) -> Path:
        return self.at("/etc/cni/net.d")

    @property
    def live(self) -> bool:
        """Whether this is the running host."""
        return self.root == Path("/")
