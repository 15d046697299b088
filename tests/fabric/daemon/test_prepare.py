"""The step before a start that root does: what it opens for the daemon's user, and what it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fabric.daemon.prepare import give_away, identify_namespace, main
from tun.errors import DeviceError


def test_only_a_namespace_is_opened(tmp_path: Path) -> None:
    """The path comes from a file that the daemon's user writes: a FIFO or a device would do something when opened."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, "/dev/zero", tmp_path / "nothing"):
        with pytest.raises(DeviceError):
            identify_namespace(str(path))
    assert identify_namespace("/proc/self/ns/net").inode == os.stat("/proc/self/ns/net").st_ino


def test_nothing_to_prepare(tmp_path: Path) -> None:
    """No state yet, or state without pods; options that fabricd refuses are fabricd's to say."""
    assert main([f"--state-dir={tmp_path / 'none'}"]) == 0
    assert main([f"--state-dir={tmp_path}", f"--cni-data-dir={tmp_path / 'no' / 'cni'}"]) == 0
    assert main(["--iface"]) == 2
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "cni.json"])


@pytest.mark.root
def test_files_are_given_away_but_not_those_of_others(tmp_path: Path) -> None:
    os.chown(tmp_path, 61_000, 61_000)
    (tmp_path / "mine").write_text("x")
    (tmp_path / "target").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.link(tmp_path / "target", tmp_path / "hard")
    for name in ("mine", "link", "hard", "nothing"):
        give_away(tmp_path, name)
    owners = {path.name: path.lstat().st_uid for path in tmp_path.iterdir()}
    assert owners == {"mine": 61_000, "target": 0, "link": 0, "hard": 0}
