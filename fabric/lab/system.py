"""The machine as the lab uses it: iproute2 in batches, commands in namespaces, processes found by namespace.

Nothing here touches a namespace whose name does not start with `fablab-`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fabric.lab.plan import PREFIX, LabError

NETNS_DIR = Path("/run/netns")
PACKAGES = {"ip": "iproute2", "ethtool": "ethtool", "tcpdump": "tcpdump", "bridge": "iproute2"}
TERM_SECONDS = 5.0

# Descriptors handed to the ip that makes and deletes namespaces: the lab's lock. An ip that outlives a killed lab goes
# on; as long as it holds the lock nobody else sweeps or builds, so nothing appears or vanishes behind their back.
inherited: set[int] = set()


@contextmanager
def shielded() -> Iterator[None]:
    """Put off what would interrupt a clean-up half way; only where signals arrive, in the main thread.

    A signal that came meanwhile takes effect at the end of the block: whoever pressed Ctrl-C is heard, once. Commands
    of the lab run in sessions of their own, so that Ctrl-C reaches none of them directly; in here they also inherit
    the blocked signals, since a process belongs to our session until it has made its own. Blocking alone would not
    do: another thread would take the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    which = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, remember) for number in which}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, which)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def require(*tools: str) -> None:
    """Raises LabError with one line unless we are root and every tool is installed."""
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces and needs root; run it with sudo")
    for tool in tools:
        if shutil.which(tool) is None:
            raise LabError(f"{tool} is not installed; apt-get install {PACKAGES.get(tool, tool)}")


def batch(lines: Iterable[str], netns: str | None = None) -> None:
    """Run ip commands (without the word ip) in one process, in `netns` or the host's namespace.

    Raises LabError naming the first line that failed and ip's own words.
    """
    commands = list(lines)
    if not commands:
        return
    argv = ["ip", *(["-n", ours(netns)] if netns else []), "-batch", "-"]
    text = "\n".join(commands) + "\n"
    done = subprocess.run(
        argv, input=text, capture_output=True, text=True, start_new_session=True, pass_fds=tuple(inherited)
    )
    if done.returncode:
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        number = next((int(line.rpartition(":")[2]) for line in words if line.startswith("Command failed")), 0)
        which = commands[number - 1] if 0 < number <= len(commands) else commands[0]
        where = f" in {netns}" if netns else ""
        raise LabError(f"`ip {which}`{where} failed: {words[0] if words else 'no reason given'}")


def ours(netns: str) -> str:
    """The name itself; raises LabError for a namespace that cannot be the lab's."""
    if not netns.startswith(PREFIX) or "/" in netns:
        raise LabError(f"{netns} is not a namespace of the lab")
    return netns


def inside(netns: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in a namespace."""
    return ["ip", "netns", "exec", ours(netns), *argv]


def run(netns: str, argv: Sequence[str], *, check: bool = True, timeout: float | None = 60) -> str:
    """Standard output of a command in a namespace; raises LabError when it fails or does not end."""
    try:
        done = subprocess.run(
            inside(netns, argv), capture_output=True, text=True, timeout=timeout, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(argv)}` in {netns} did not end within {timeout} s") from None
    if check and done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise LabError(f"`{' '.join(argv)}` in {netns} failed: {words[-1] if words else done.returncode}")
    return done.stdout


def namespaces() -> list[str]:
    """The lab's namespaces that exist now."""
    return sorted(path.name for path in NETNS_DIR.glob(PREFIX + "*")) if NETNS_DIR.is_dir() else []


def netns_inodes(names: Iterable[str]) -> dict[int, str]:
    """Namespace inode to name; a name whose mount is gone is left out."""
    found = {}
    for name in names:
        try:
            found[(NETNS_DIR / name).stat().st_ino] = name
        except OSError:
            continue
    return found


def processes_in(names: Iterable[str]) -> list[int]:
    """Processes in one of the named network namespaces or about to enter one; never this process."""
    wanted = set(names)
    inodes = netns_inodes(wanted)
    our_mounts = Path("/proc/self/ns/mnt").stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            # In this order: `ip netns exec` is seen either as such, with our mounts (a container's lab has others and
            # the same names), or later, when it has entered the namespace.
            entering = enters((entry / "cmdline").read_bytes()) in wanted
            entering = entering and (entry / "ns/mnt").stat().st_ino == our_mounts
            if entering or (entry / "ns/net").stat().st_ino in inodes:
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def enters(command_line: bytes) -> str | None:
    """The namespace an `ip netns exec` that has not become its command yet is about to enter."""
    words = command_line.split(b"\0")
    return words[3].decode(errors="replace") if words[:3] == [b"ip", b"netns", b"exec"] and len(words) > 3 else None


def stop(pids: Iterable[int], first: signal.Signals = signal.SIGTERM, seconds: float = TERM_SECONDS) -> None:
    """Signal the processes, wait until they are gone, SIGKILL what is left after `seconds`."""
    handles: dict[int, int] = {}
    for pid in pids:
        try:
            handles[pid] = os.pidfd_open(pid)
        except OSError:
            continue
    try:
        for which, wait in ((first, seconds), (signal.SIGKILL, seconds)):
            for handle in handles.values():
                try:
                    signal.pidfd_send_signal(handle, which)
                except OSError:
                    continue
            if wait_gone(list(handles), wait):
                return
    finally:
        for handle in handles.values():
            os.close(handle)


def wait_gone(pids: Sequence[int], seconds: float) -> bool:
    """Wait until none of the processes runs any more (zombies count as gone, and our own are reaped)."""
    deadline = time.monotonic() + seconds
    while True:
        left = [pid for pid in pids if alive(pid)]
        if not left:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def remove_namespaces(names: Sequence[str]) -> None:
    """Stop what runs in the namespaces, then delete them with every device they hold."""
    for _ in range(3):
        pids = processes_in(names)
        if not pids:
            break
        stop(pids)
    for name in names:
        delete = ["ip", "netns", "del", ours(name)]
        subprocess.run(delete, capture_output=True, start_new_session=True, pass_fds=tuple(inherited))
        (NETNS_DIR / name).unlink(missing_ok=True)
