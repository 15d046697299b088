"""What `fabricctl install` puts on a host and `uninstall` takes away. Every step says what it did, in one line.

A second run changes nothing and says so. Only files that are ours are replaced or removed: a link has to lead into our
environment, a network has to name our plugin, options that were changed stay.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from fabric.cli.cni import CONFLIST, PROGRAM, conflist, link, write_conflist
from fabric.files import write_atomic
from fabric.install import environment
from fabric.install.layout import PREFIX, UNIT, Layout, sources

LATER = 254
"""The systemd version from which RestartSteps= is known."""
OPTIONS = """\
# fabricd's options, as on its command line: see fabricd --help. For example
#   FABRICD_OPTIONS="--kube-subnet-mgr --kubeconfig-file=/etc/podfabric/kubeconfig --ip-masq"
# Files that are named here have to be readable for the user podfabric.
FABRICD_OPTIONS="--ip-masq"
"""
Run = Callable[..., None]


def install(where: Layout, python: str, kind: str, force: bool, service: bool = True) -> Iterator[str]:
    """Put everything in place; without `service` only what the CNI plugin needs. Raises OSError, EnvironmentProblem."""
    environment.check_python(python)
    environment.make(where.environment, where.prefix, python)
    yield f"{where.environment}: podfabric and what it needs, for {python}"
    if service:
        yield from _files(where)
        yield link(Path(where.prefix) / "bin" / "fabricctl", where.command, force)
    yield link(Path(where.prefix) / "bin" / PROGRAM, where.cni_bin / PROGRAM, force)
    if kind:
        content = conflist("cbr0", kind, where.cni_bin, {})
        yield write_conflist(where.cni_conf / CONFLIST, content, force)


def activate(where: Layout, run: Run) -> Iterator[str]:
    """Make user and directories, and let systemd know. Only on the running host. Raises OSError, SubprocessError."""
    run("systemd-sysusers", str(where.sysusers))
    run("systemd-tmpfiles", "--create", str(where.tmpfiles))
    run("systemctl", "daemon-reload")
    yield "user podfabric and its directories are there; options are in /etc/default/fabricd"
    yield "start it now and at every boot: systemctl enable --now fabricd"


def uninstall(where: Layout, purge: bool) -> Iterator[str]:
    """Take away what `install` made; with `purge` also options and state. Raises OSError."""
    for path in (where.command, where.cni_bin / PROGRAM):
        if path.is_symlink() and str(path.readlink()).startswith(f"{where.prefix}/"):
            yield _remove(path)
    network = where.cni_conf / CONFLIST
    if _is_our_network(network):
        yield _remove(network)
    for path in (where.unit, where.later, where.sysusers, where.tmpfiles):
        if path.exists():
            yield _remove(path)
    if where.later.parent.is_dir() and not any(where.later.parent.iterdir()):
        where.later.parent.rmdir()
    if where.environment.exists():
        shutil.rmtree(where.environment)
        yield f"{where.environment} removed"
    yield from _leftovers(where, purge)


def deactivate(run: Run) -> Iterator[str]:
    """Stop the service before its files go. Raises SubprocessError."""
    run("systemctl", "disable", "--now", UNIT, check=False)
    yield "fabricd is stopped; pods on its ports have no network until it, or another, takes them over"


def system_run(*words: str, check: bool = True) -> None:
    """Run a command of the host. Raises OSError, SubprocessError."""
    subprocess.run(words, check=check, capture_output=True, text=True, timeout=120)


def systemd_version() -> int:
    """The host's; 0 when there is none."""
    try:
        shown = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.match(r"systemd (\d+)", shown.stdout)
    return int(match[1]) if match else 0


def _files(where: Layout) -> Iterator[str]:
    given = sources()
    unit = (given / UNIT).read_text().replace(f"{PREFIX}/", f"{where.prefix}/")
    yield _write(where.unit, unit)
    if systemd_version() >= LATER:
        yield _write(where.later, (given / "fabricd-254.conf").read_text())
    yield _write(where.sysusers, (given / "podfabric.sysusers").read_text())
    yield _write(where.tmpfiles, (given / "podfabric.tmpfiles").read_text())
    if where.options.exists():
        yield f"{where.options} is left as it is"
    else:
        yield _write(where.options, OPTIONS)


def _leftovers(where: Layout, purge: bool) -> Iterator[str]:
    if where.options.exists() and (purge or where.options.read_text() == OPTIONS):
        yield _remove(where.options)
    elif where.options.exists():
        yield f"{where.options} was changed and stays: remove it, or use --purge"
    state = where.at("/var/lib/fabric")
    if state.is_dir() and purge:
        shutil.rmtree(state)
        yield f"{state} removed"
    elif state.is_dir():
        yield f"{state} stays, with the node's subnet and MAC: remove it, or use --purge"


def _write(path: Path, text: str) -> str:
    data = text.encode()
    if path.exists() and path.read_bytes() == data:
        return f"{path} is as it should be already"
    write_atomic(path, data, 0o644, 0o755)
    return f"{path} written"


def _remove(path: Path) -> str:
    path.unlink()
    return f"{path} removed"


def _is_our_network(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
        return any(plugin["type"] == PROGRAM for plugin in content["plugins"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
