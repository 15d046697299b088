"""Which boot of the machine this is: what was written under another one describes containers that are gone."""

from __future__ import annotations

from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The kernel's. Raises OSError without /proc."""
    return BOOT_ID.read_text().strip()
