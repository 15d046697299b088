"""The message classes come without pyroute2's sockets, and nobody else notices."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROBE = """
import json, sys
{before}
from fabric.traffic import nft
loaded = [name for name in sys.modules if name.startswith("pyroute2")]
import pyroute2
import pyroute2.netlink.nlsocket as sockets
from pyroute2.nftables.main import NFTables
print(json.dumps([loaded, issubclass(NFTables, sockets.NetlinkSocket), nft.table_message("inet", "x")["nfgen_family"]]))
"""


def probe(before: str) -> tuple[list[str], bool, int]:
    words = [sys.executable, "-W", "error", "-c", PROBE.format(before=before)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded, is_real, family = json.loads(done.stdout)
    return loaded, is_real, family


@pytest.mark.slow
def test_only_messages_are_loaded_and_pyroute2_works_as_ever() -> None:
    loaded, is_real, family = probe("")

    assert (is_real, family) == (True, 1)
    assert "pyroute2.netlink.nfnetlink" in loaded
    assert not {"pyroute2", "pyroute2.netlink.nlsocket", "pyroute2.netlink.core"} & set(loaded)


@pytest.mark.slow
def test_pyroute2_that_is_there_already_is_left_as_it_is() -> None:
    loaded, is_real, family = probe("import pyroute2")

    assert (is_real, family) == (True, 1)
    assert {"pyroute2", "pyroute2.netlink.nlsocket", "pyroute2.netlink.nfnetlink.nftsocket"} <= set(loaded)
