"""A real systemd as PID 1 of its own namespaces, with our unit in it and nothing of the host's.

Own are processes, mounts, IPC, host name, control groups; the network namespace is one of the test's. `/run`,
`/var/lib`, `/tmp` and `/etc/default` are empty at the start, the targets that a boot would pull in are stubs, users are
the host's and ours. Files inside are read through `root`; namespaces in the test's `/run/netns` appear inside, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.scenarios.waiting import wait_for
from tests.unprivileged import ROOT, Reachable

SYSTEMD = Path("/lib/systemd/systemd")
UNIT = "fabricd.service"
PYTHON = "/opt/podfabric/bin/python"
TARGETS = ("boot", "sysinit", "basic", "network", "network-online", "shutdown", "multi-user")
REACH = Path("/run/reach")
LOG = "/run/fabricd.log"

PREPARE = """
set -e
run=$1; files=$2; opt=$3; shared=$4
mount -t tmpfs -o mode=755 tmpfs "$run"
mkdir "$run/netns" "$run/lock" "$run/units" "$run/reach" "$run/etc"
mount --rbind /run/netns "$run/netns"
cp -r "$files"/units/. "$run/units"
cp /etc/passwd /etc/group "$run/etc"
mkdir -p "$run/stage"; mv "$run/etc" "$run/stage/etc"
systemd-sysusers --root="$run/stage" "$files/podfabric.sysusers"
mount --bind "$run/stage/etc/passwd" /etc/passwd
mount --bind "$run/stage/etc/group" /etc/group
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /etc/default
cp "$files/default" /etc/default/fabricd
mount -n --move "$run" /run
systemd-tmpfiles --create "$files/podfabric.tmpfiles"
[ -z "$opt" ] || mount --bind "$opt" /opt
[ -z "$shared" ] || { mount --bind "$shared" /srv; chown podfabric: /srv; }
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# The settings of the host are not ours to change; those of the network namespace are.
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
"""
BOOT = (
    "mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /var/tmp\n"  # the tree may be below
    'exec env -i PATH="$PATH" container=fabtest SYSTEMD_UNIT_PATH=/run/units '
    f"{SYSTEMD} --system --unit=boot.target --log-level=notice --log-target=console --show-status=no"
)


class Booted:
    """systemd in the network namespace `netns`, until `close`. `options` are fabricd's, `settings` more of its unit.

    fabricd is that of the source tree, or what `fabricctl install` has put into the root directory `installed`. The
    directory `shared` is `/srv` inside, and fabricd's user's.
    """

    def __init__(
        self,
        netns: str,
        options: str,
        settings: Mapping[str, str] | None = None,
        installed: Path | None = None,
        shared: Path | None = None,
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="fabtest-boot-", dir="/var/tmp"))
        self._group = _cgroups() / self._directory.name
        self._installed = installed
        self._write_files(options, settings or {})
        (self._directory / "run").mkdir()
        self._group.mkdir()
        enter = f'echo 0 >{self._group}/cgroup.procs && exec "$@"'
        inner = f"{PREPARE}\n{Reachable(REACH).mounts}\n{BOOT}"
        command = ["sh", "-c", enter, "sh", "ip", "netns", "exec", netns, *_UNSHARE, "sh", "-c", inner, "sh",
                   str(self._directory / "run"), str(self._directory),
                   str(installed / "opt") if installed else "", str(shared or "")]  # fmt: skip
        with (self._directory / "console").open("wb") as console:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            self.pid = wait_for(self._child, "systemd to be there")
            wait_for(lambda: (self.root / "run/systemd/private").exists(), "systemd to listen", 20)
        except BaseException:
            print(self.console())
            self.close()
            raise

    @property
    def root(self) -> Path:
        """The file system as seen inside."""
        return Path(f"/proc/{self.pid}/root")

    def console(self) -> str:
        """What systemd said."""
        return (self._directory / "console").read_text(errors="replace")

    def log(self) -> str:
        """What fabricd said."""
        try:
            return (self.root / LOG.lstrip("/")).read_text()
        except OSError:
            return ""

    def run(self, *words: str) -> str:
        """The output of a command inside. Raises CalledProcessError."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-C", "--"]
        return subprocess.run([*enter, *words], check=True, capture_output=True, text=True).stdout

    def systemctl(self, *words: str) -> str:
        return self.run("systemctl", *words)

    def show(self, *names: str) -> dict[str, str]:
        """Properties of our unit."""
        shown = self.systemctl("show", UNIT, *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in shown.splitlines())

    def main_pid(self) -> int:
        """fabricd's, as the test sees it; 0 while there is none."""
        inside = self.show("MainPID")["MainPID"]
        with contextlib.suppress(OSError):  # the unit's group has just gone
            for status in self._group.rglob("cgroup.procs"):
                for pid in status.read_text().split():
                    if _innermost(int(pid)) == inside:
                        return int(pid)
        return 0

    def close(self) -> None:
        """End systemd and all that runs under it."""
        self._process.kill()  # and with it PID 1 of the namespace (--kill-child), and with that everything
        self._process.wait()
        wait_for(self._remove_group, "everything to end")
        shutil.rmtree(self._directory)

    def _child(self) -> int:
        """Of `unshare`, into which the process has turned by then."""
        assert self._process.poll() is None, self.console()
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        pids = path.read_text().split()
        return int(pids[0]) if pids and (Path("/proc") / pids[0] / "comm").read_text() == "systemd\n" else 0

    def _remove_group(self) -> bool:
        with contextlib.suppress(OSError):
            for path in sorted(self._group.rglob("*/"), reverse=True):
                path.rmdir()
            self._group.rmdir()
        return not self._group.exists()

    def _write_files(self, options: str, settings: Mapping[str, str]) -> None:
        units = self._directory / "units"
        (units / f"{UNIT}.d").mkdir(parents=True)
        for name in TARGETS:
            (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        lines = ["[Service]", f"StandardOutput=append:{LOG}", f"StandardError=append:{LOG}"]
        if self._installed is None:
            unit, companions = ROOT / "systemd" / UNIT, ROOT / "systemd"
            lines += _from_source(unit.read_text())
            sources = {name: companions / f"podfabric.{name}" for name in ("sysusers", "tmpfiles")}
        else:
            etc = self._installed / "etc"
            unit = etc / "systemd/system" / UNIT
            sources = {name: etc / f"{name}.d" / "podfabric.conf" for name in ("sysusers", "tmpfiles")}
        shutil.copy(unit, units)
        for name, source in sources.items():
            shutil.copy(source, self._directory / f"podfabric.{name}")
        lines += [f"{name}={value}" for name, value in settings.items()]
        (units / f"{UNIT}.d" / "test.conf").write_text("\n".join([*lines, ""]))
        (self._directory / "default").write_text(f"FABRICD_OPTIONS={options}\n")


def _from_source(unit: str) -> list[str]:
    """Settings by which the unit runs the tree's fabricd, with a Python that its user can reach."""
    reach = Reachable(REACH)
    prepare = re.search(r"^ExecStartPre=(.*)$", unit, re.MULTILINE)
    assert prepare
    environment = " ".join(f"{name}={value}" for name, value in reach.environment.items())
    return [
        "ExecStartPre=", f"ExecStartPre={prepare[1].replace(PYTHON, reach.python)}", "ExecStart=",
        f"ExecStart={reach.python} -m fabric.daemon.main $FABRICD_OPTIONS", f"Environment={environment}",
    ]  # fmt: skip


_UNSHARE = ("unshare", "--fork", "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--kill-child", "--mount-proc",
            "--propagation", "slave")  # fmt: skip


def _cgroups() -> Path:
    """Where the second version of control groups is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(path)
    raise AssertionError("no cgroup2 is mounted: systemd cannot run here")


def _innermost(pid: int) -> str:
    """The process's id in its own namespace; empty when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split()[-1] for line in lines if line.startswith("NSpid:")), "")


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
