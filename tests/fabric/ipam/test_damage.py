"""State files that were cut short or changed (R29): a live address is never given twice, and all heals."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.ipam import allocator
from fabric.ipam.errors import TRY_AGAIN_LATER
from fabric.ipam.names import Attachment
from tests.fabric.ipam.calm import CALM
from tests.fabric.ipam.plugin import reserved
from tests.fabric.ipam.test_allocator import BOOT, NEXT_BOOT, conf, pod, refusal
from tests.fabric.ipam.test_allocator import given as granted

LIVE = Attachment("0123456789abcdef" * 4, "eth0")


def damaged(content: bytes) -> Iterator[bytes]:
    """Every truncation and every flip of one bit; a few longer forms."""
    for length in range(len(content)):
        yield content[:length]
    for position in range(len(content) * 8):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        yield bytes(changed)
    yield b"\0" * len(content)
    yield content + b"\n"
    yield b"\xff" * 4096


@pytest.mark.slow
def test_a_live_record(tmp_path: Path) -> None:
    """The only address of the range is LIVE's. Whatever its file says, it stays reserved while LIVE lives."""
    loaded = conf(tmp_path, "10.244.1.0/30")
    granted(loaded, LIVE)
    record = tmp_path / "pods" / "10.244.1.2"
    for content in damaged(LIVE.record):
        record.write_bytes(content)
        assert refusal(loaded, pod(1))[0] == TRY_AGAIN_LATER
        assert allocator.release(loaded.place, pod(1)) == ()
        assert allocator.gc(loaded, [LIVE, pod(2)]) == ()
        assert allocator.reconcile(loaded, [pod(2), LIVE], os.urandom(16).hex()) == ()


@pytest.mark.slow
def test_a_record_whose_owner_is_gone(tmp_path: Path) -> None:
    """It is freed by gc although it says nothing useful, as soon as every live attachment has a record."""
    loaded = conf(tmp_path, "10.244.1.0/29")
    granted(loaded, pod(2))
    record = tmp_path / "pods" / "10.244.1.3"
    for content in damaged(LIVE.record):
        record.write_bytes(content)
        assert [str(item) for item in allocator.gc(loaded, [pod(2)])] == ["10.244.1.3"]
    assert granted(loaded, pod(3)) == ["10.244.1.3"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last_reserved_ip.0", "boot_id", "lock", ".last_reserved_ip.0.tmp"])
def test_the_other_files(tmp_path: Path, name: str) -> None:
    loaded = conf(tmp_path, "10.244.1.0/29")
    granted(loaded, LIVE)
    allocator.reconcile(loaded, [LIVE], BOOT)
    path = tmp_path / "pods" / name
    content = path.read_bytes() if path.exists() else b"10.244.1.2"
    for wrong in damaged(content):
        path.write_bytes(wrong)
        assert granted(loaded, pod(1)) != ["10.244.1.2"]
        assert allocator.reconcile(loaded, [LIVE, pod(1)], BOOT) == ()
        assert len(allocator.release(loaded.place, pod(1))) == 1
    assert set(reserved(tmp_path)) == {"10.244.1.2"}


FOREIGN = st.sampled_from(["empty", "directory", "link", "dangling", "fifo", "socket", "unreadable"])


def put(path: Path, kind: str) -> None:
    """Something that is no record under a record's name."""
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("link", "dangling"):
        path.symlink_to(path.parent / ("lock" if kind == "link" else "nowhere"))
    elif kind == "socket":
        os.mknod(path, 0o140600)
    else:
        path.touch(0o600 if kind == "empty" else 0)


@pytest.mark.slow
@CALM
@given(st.lists(st.one_of(FOREIGN, st.binary(max_size=80)), min_size=1, max_size=4))
def test_foreign_things_are_reserved_addresses(tmp_path: Path, kinds: list[str | bytes]) -> None:
    """Nothing of the kind blocks or breaks a verb, and its address is given to nobody."""
    shutil.rmtree(tmp_path / "pods", ignore_errors=True)
    loaded = conf(tmp_path, "10.244.1.0/29")
    allocator.reconcile(loaded, [], BOOT)
    for number, kind in enumerate(kinds):
        path = tmp_path / "pods" / f"10.244.1.{2 + number}"
        if isinstance(kind, bytes):
            path.write_bytes(kind)
        else:
            put(path, kind)
    free = [f"10.244.1.{number}" for number in range(2 + len(kinds), 7)]
    assert [granted(loaded, pod(number))[0] for number in range(len(free))] == free
    assert refusal(loaded, pod(9))[0] == TRY_AGAIN_LATER
    for number in range(len(free)):
        allocator.release(loaded.place, pod(number))
    for path in (tmp_path / "pods").iterdir():
        if path.is_dir() and not path.is_symlink():
            path.rmdir()  # the only thing that gc cannot remove
    allocator.reconcile(loaded, [], NEXT_BOOT)
    assert granted(loaded, pod(9)) != []
    assert len(reserved(tmp_path)) == 1
