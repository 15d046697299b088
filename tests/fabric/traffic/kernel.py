"""What `nft` and `iptables` see in the namespace of the calling thread: the witnesses of what we did."""

from __future__ import annotations

import re
import subprocess
from functools import lru_cache

import pytest

CHAIN = re.compile(r"^\tchain .*?^\t\}$", re.MULTILINE | re.DOTALL)


def run(*words: str, script: str = "", check: bool = True) -> str:
    """A command's output."""
    done = subprocess.run([*words], input=script, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"
    return done.stdout


def nft(command: str) -> str:
    """`nft COMMAND`, the command as nft's own language."""
    return run("nft", "-f", "-", script=command)


def ruleset(*, without: str = "inet podfabric") -> str:
    """The whole ruleset with handles and counters, except one table."""
    text = run("nft", "-a", "list", "ruleset")
    tables = re.split(r"^(?=table )", text, flags=re.MULTILINE)
    return "".join(table for table in tables if not table.startswith(f"table {without} "))


def own_table() -> str:
    """Our table as nft shows it, or nothing, with counters at zero and the chains in the order of their names."""
    text = run("nft", "list", "table", "inet", "podfabric", check=False)
    text = re.sub(r"packets \d+ bytes \d+", "packets 0 bytes 0", text)
    chains = iter(sorted(CHAIN.findall(text)))
    return CHAIN.sub(lambda _: next(chains), text)


def handle(table: str, chain: str, text: str) -> str:
    """The handle of the first rule of a chain that shows `text`."""
    listing = run("nft", "-a", "list", "chain", *table.split(), chain)
    (line, *_) = [line for line in listing.splitlines() if text in line]
    return line.rsplit(" ", 1)[1]


@lru_cache
def legacy_works() -> bool:
    """Whether this kernel still has iptables-legacy's tables; asked in a namespace of its own."""
    words = ["unshare", "-n", "iptables-legacy", "-nL"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def skip_without(flavour: str) -> None:
    """Skip the test where iptables of that flavour cannot work."""
    if flavour == "legacy" and not legacy_works():
        pytest.skip("this kernel has no iptables-legacy tables")
