"""SIGKILL before every system call of every verb (R28): no duplicate, no leak, and the next verbs work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.ipam import allocator
from tests.fabric.ipam.crash_server import SETS, TRACED
from tests.fabric.ipam.plugin import ROOT, document, files, reference, reserved
from tests.fabric.ipam.test_allocator import BOOT, NEXT_BOOT, conf, given, pod

pytestmark = pytest.mark.root  # strace attaches to a process that is not its child
KNOWN = {"lock", "boot_id", "last_reserved_ip.0", "last_reserved_ip.1"}


class Server:
    """The process that runs verbs; see `crash_server`."""

    def __init__(self, *wrapper: str) -> None:
        command = [*wrapper, sys.executable, "-m", "tests.fabric.ipam.crash_server"]
        self._process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT)

    def run(self, place: Path, verb: str, *options: str) -> int:
        """Exit code of `verb` under strace with `options`."""
        assert shutil.which("strace"), "strace is missing: apt-get install strace"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"place": str(place), "verb": verb}) + "\n")
        self._process.stdin.flush()
        begin = f"--inject=getppid:retval={TRACED}"
        subprocess.run(["strace", "-qq", begin, *options, "-p", self._line()], check=False, timeout=60)
        return int(self._line())

    def calls(self, place: Path, verb: str) -> list[str]:
        """The system calls of `verb`, without those for memory, whose number varies."""
        trace = place.with_suffix(".trace")
        assert self.run(place, verb, "-o", str(trace)) == 0
        names = [line.partition("(")[0] for line in trace.read_text().splitlines()]
        return [
            name
            for name in names
            if name not in ("getppid", "brk", "mmap", "munmap", "mremap", "madvise", "exit_group")
        ]

    def close(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def server_without_proc() -> Iterator[Server]:
    """Where a record cannot be linked into place, as there is no /proc to name it by."""
    running = Server("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh")
    yield running
    running.close()


def prepare(place: Path) -> dict[str, bytes]:
    """Two pods of this boot, one address has been used before; the records."""
    loaded = conf(place, *SETS)
    allocator.reconcile(loaded, [], BOOT)
    given(loaded, pod(0))
    given(loaded, pod(1))
    given(loaded, pod(2))
    allocator.release(loaded.place, pod(0))
    return reserved(place)


def crashes(server: Server, base: Path, verb: str) -> Iterator[tuple[Path, dict[str, bytes]]]:
    """The directory after a crash before each system call of `verb`, with the records from before `verb`."""
    prepare(base / "whole")
    calls = server.calls(base / "whole", verb)
    assert len(calls) > 30, "strace saw too little"
    seen: Counter[str] = Counter()
    for number, name in enumerate(calls):
        seen[name] += 1
        place = base / str(number)
        before = prepare(place)
        kill = f"--inject={name}:signal=KILL:when={seen[name]}"
        assert server.run(place, verb, "-o", "/dev/null", kill) == -9, f"{name} number {seen[name]}"
        yield place, before
        shutil.rmtree(place)


def owned(records: dict[str, bytes], number: int) -> dict[str, bytes]:
    return {address: content for address, content in records.items() if content == pod(number).record}


def others_go_on(place: Path, live: dict[str, bytes]) -> None:
    """Both implementations give new pods addresses that are no live pod's, and take them back."""
    text = document(place, *SETS)
    foreign = reference("ADD", text, pod(8).container_id)
    assert not foreign.error
    granted = given(conf(place, *SETS), pod(9))
    assert len({*foreign.addresses, *granted, *live}) == 4 + len(live)
    assert not reference("DEL", text, pod(9).container_id).error
    assert len(allocator.release(conf(place, *SETS).place, pod(8))) == 2


def test_allocate(server: Server, tmp_path: Path) -> None:
    """There is the whole record or none, so that DEL alone puts everything right."""
    for place, before in crashes(server, tmp_path, "allocate"):
        loaded = conf(place, *SETS)
        now = reserved(place)
        assert now.items() >= before.items()
        assert {content for address, content in now.items() if address not in before} <= {pod(3).record}
        others_go_on(place, now)
        allocator.release(loaded.place, pod(3))
        assert reserved(place) == before
        assert len({*given(loaded, pod(3)), *before}) == 2 + len(before)
        assert set(files(place / "pods")) == KNOWN | set(reserved(place))


def test_allocate_in_the_plain_way(server_without_proc: Server, tmp_path: Path) -> None:
    """A crash may leave an empty record; gc removes it."""
    empty = 0
    for place, before in crashes(server_without_proc, tmp_path, "allocate"):
        loaded = conf(place, *SETS)
        now = reserved(place)
        assert now.items() >= before.items()
        empty += sum(content == b"" for content in now.values())
        others_go_on(place, now)
        allocator.release(loaded.place, pod(3))
        assert len({*given(loaded, pod(3)), *before}) == 2 + len(before)
        allocator.gc(loaded, [pod(1), pod(2), pod(3)])
        assert len(reserved(place)) == 2 + len(before)
        assert reserved(place).items() >= before.items()
    assert empty > 0, "the plain way was not taken"


def test_release(server: Server, tmp_path: Path) -> None:
    for place, before in crashes(server, tmp_path, "release"):
        now = reserved(place)
        assert before.items() >= now.items() >= owned(before, 1).items()
        others_go_on(place, now)
        assert len(allocator.release(conf(place, *SETS).place, pod(2))) == len(owned(now, 2))
        assert reserved(place) == owned(before, 1)


def test_gc(server: Server, tmp_path: Path) -> None:
    for place, before in crashes(server, tmp_path, "gc"):
        now = reserved(place)
        assert before.items() >= now.items() >= owned(before, 1).items()
        others_go_on(place, now)
        allocator.gc(conf(place, *SETS), [pod(1)])
        assert reserved(place) == owned(before, 1)


def test_reconcile(server: Server, tmp_path: Path) -> None:
    for place, before in crashes(server, tmp_path, "reconcile"):
        now = reserved(place)
        assert before.items() >= now.items() >= owned(before, 1).items()
        others_go_on(place, now)
        allocator.reconcile(conf(place, *SETS), [pod(1)], NEXT_BOOT)
        assert reserved(place) == owned(before, 1)
        assert set(files(place / "pods")) == KNOWN | set(reserved(place))
        assert (place / "pods" / "boot_id").read_text() == f"boot_id={NEXT_BOOT.strip()}"
