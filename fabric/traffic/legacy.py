"""iptables-legacy's tables, through its own tools: the kernel's old interface is neither netlink nor in any library.

Looked at only where such tables exist, which is rare today. The kernel names those in use in this network namespace in
`/proc/net/ip_tables_names`; asking the tool for another table would create it.

Limits. Nothing announces a change of these tables, so whoever depends on one looks again from time to time. Only root
sees them: for a daemon of another user there are none, which it says once.
"""

from __future__ import annotations

import logging
import shlex
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fabric.errors import TrafficError
from fabric.model import Network
from fabric.traffic.gates import COMMENT, FAMILY_OF, IPTABLES_CHAIN, IPTABLES_TABLE

log = logging.getLogger("fabric.traffic")
PROGRAMS = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}
NAMES = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
PROC = Path("/proc/thread-self/net")
TIMEOUT, LOCK_SECONDS = 10.0, 5


def tables(family: str) -> frozenset[str]:
    """Names of the tables in use; none where the kernel has no such tables, or shows them to root only. Raises OSError.
    """
    try:
        return frozenset((PROC / NAMES[family]).read_text().split())
    except FileNotFoundError:
        return frozenset()
    except PermissionError:
        _say_unseen()
        return frozenset()


def save(family: str, table: str) -> list[str]:
    """The table in the form of `iptables-save`: `:CHAIN POLICY [counters]` and `-A CHAIN ...`. Raises TrafficError."""
    return _run(family, f"{PROGRAMS[family]}-save", "-t", table).splitlines()


def change(family: str, table: str, commands: Sequence[str]) -> None:
    """Apply `commands` (`-A ...`, `-D ...`, `-F ...`, `-X ...`) in one step; all else stays. Raises TrafficError."""
    script = "\n".join([f"*{table}", *commands, "COMMIT", ""])
    _run(family, f"{PROGRAMS[family]}-restore", "--noflush", "--wait", str(LOCK_SECONDS), script=script)


def delete(line: str) -> str:
    """The command that takes away the rule that `line` of `save` shows."""
    return "-D" + line.removeprefix("-A")


def keep_forward(networks: Sequence[Network]) -> list[str]:
    """The rules of `gates.iptables_requests` in the legacy FORWARD chains; one line per change. Raises TrafficError."""
    changed = []
    for version, family in FAMILY_OF.items():
        if IPTABLES_TABLE not in tables(family):
            continue
        lines = save(family, IPTABLES_TABLE)
        closed = any(line.startswith(f":{IPTABLES_CHAIN} DROP ") for line in lines)
        wanted = [
            f'-A {IPTABLES_CHAIN} {side} {network} -m comment --comment "{COMMENT}" -j ACCEPT'
            for network in networks
            if closed and network.version == version
            for side in ("-s", "-d")
        ]
        ours = [line for line in lines if line.startswith(f"-A {IPTABLES_CHAIN} ") and COMMENT in shlex.split(line)]
        if [shlex.split(line) for line in ours] != [shlex.split(line) for line in wanted]:
            change(family, IPTABLES_TABLE, [*(delete(line) for line in ours), *wanted])
            changed.append(f"{PROGRAMS[family]} chain {IPTABLES_CHAIN}: {len(wanted)} rules")
    return changed


@cache
def _say_unseen() -> None:
    log.info("iptables-legacy's tables are for root only: where their FORWARD chain drops, accept pods there by hand")


def _run(family: str, program: str, *arguments: str, script: str = "") -> str:
    try:
        done = subprocess.run(
            [program, *arguments], input=script, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except FileNotFoundError:
        raise TrafficError(
            f"the kernel has {PROGRAMS[family]} tables, but {program} is not installed: install iptables"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TrafficError(f"{program} cannot be run: {error}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TrafficError(f"{program} failed: {reason}")
    return done.stdout
