"""A file system without space, without inodes, and a read-only one (R27): nothing leaks, DEL works."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.ipam import allocator
from fabric.ipam.errors import IO_FAILURE, TRY_AGAIN_LATER, IPAMError
from fabric.ipam.names import Attachment
from tests.fabric.ipam.plugin import Outcome, document, files, ours, reserved
from tests.fabric.ipam.test_allocator import BOOT, conf, pod

pytestmark = pytest.mark.root  # mounts small file systems
SETS = ("10.244.1.0/24", "2001:db8::/64")
CYCLES = 1000


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=0755,{options}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


PAGE = 4096


def fill(place: Path, spare: int = 0) -> None:
    """Take what is left of blocks, but for `spare` pages, and of inodes."""
    with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as file:
        while file.write(b"\0" * PAGE):
            pass
    with contextlib.suppress(OSError):
        os.truncate(place / "ballast", max(0, (place / "ballast").stat().st_size - spare * PAGE))
    with contextlib.suppress(OSError):
        for number in range(1000):
            (place / f"ballast-{number}").touch()


def empty(place: Path) -> None:
    for path in place.glob("ballast*"):
        path.unlink()


def owner(number: int) -> Attachment:
    """Every third one has a record of two pages: it can be cut short by a full disk."""
    return Attachment(pod(number).container_id * (1 if number % 3 else 80), "eth0")


# Reservations, hints and the file that replaces a hint take a page of 4 KiB each, so 64 KiB are soon used up.
@pytest.mark.parametrize("options", ["size=64k", "size=1m,nr_inodes=20"])
def test_a_thousand_cycles_at_the_limit(tmp_path: Path, options: str) -> None:
    place = tmp_path / "disk"
    chance = random.Random(27)
    live: dict[int, set[str]] = {}
    refused = 0
    with mounted(place, options):
        text, loaded = document(place, *SETS), conf(place, *SETS)
        for number in range(CYCLES):
            if chance.random() < 0.02:
                fill(place, chance.randrange(4))
            elif chance.random() < 0.03:
                empty(place)
            added = ours("ADD", text, owner(number).container_id)
            if added.error:
                assert added.code == TRY_AGAIN_LATER
                assert added.error.startswith(f"{place}/pods")
                assert added.error.endswith(": No space left on device")
                refused += 1
            else:
                live[number] = set(added.addresses)
            if live and chance.random() < 0.45:
                gone = chance.choice(list(live))
                assert {str(item) for item in allocator.release(loaded.place, owner(gone))} == live.pop(gone)
            assert set(reserved(place)) == set().union(*live.values())
            assert [name for name in files(place / "pods") if name.startswith(".")] == []
        empty(place)
        for number in live:
            allocator.check(loaded.place, owner(number))
        for number in live:
            allocator.release(loaded.place, owner(number))
        assert reserved(place) == {}
        assert len(allocator.allocate(loaded, pod(0))) == 2
    assert CYCLES // 10 < refused < CYCLES


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    """Not even the directory or its lock can be made: DEL succeeds, as there is nothing to free."""
    place = tmp_path / "disk"
    with mounted(place, "size=64k,nr_inodes=8"):
        loaded = conf(place, *SETS)
        fill(place)
        for made_room in (False, True):  # for the directory, and not for the lock in it
            if made_room:
                (place / "ballast-0").unlink()
            with pytest.raises(IPAMError) as error:
                allocator.allocate(loaded, pod(1))
            assert error.value.code == TRY_AGAIN_LATER
            assert allocator.release(loaded.place, pod(1)) == ()
            assert allocator.gc(loaded, []) == ()
            assert (place / "pods").exists() == made_room
        with pytest.raises(IPAMError):
            allocator.reconcile(loaded, [], BOOT)
        empty(place)
        assert allocator.reconcile(loaded, [], BOOT) == ()
        assert len(allocator.allocate(loaded, pod(1))) == 2


def test_a_read_only_file_system(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    with mounted(place, "size=64k"):
        text = document(place, *SETS)
        ours("ADD", text, "pod-1")
        before = reserved(place)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        assert ours("ADD", text, "pod-2").code == IO_FAILURE
        assert ours("DEL", text, "pod-2") == Outcome({})
        assert ours("CHECK", text, "pod-1") == Outcome({})
        kept = ours("DEL", text, "pod-1")
        assert (kept.code, "Read-only file system" in kept.error) == (IO_FAILURE, True)
        assert reserved(place) == before
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        assert ours("DEL", text, "pod-1") == Outcome({})
        assert reserved(place) == {}
