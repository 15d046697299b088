"""The file with the pods' records: what is written comes back, and nothing damaged is believed."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from fabric.daemon import pods_file
from fabric.daemon.pods_file import Known
from fabric.errors import FabricError
from fabric.model import Endpoint
from tun.netns import NetnsIdentity

ENDPOINT = Endpoint(
    "cni/podnet/c1/eth0", "tun", "/run/netns/a", "eth0", (ip_address("10.244.1.5"), ip_address("2001:db8:42::5")), 1430,
    "", "shop", "web-1", "u-1", "c1", {"app": "web"}, 12.5,
)  # fmt: skip
PODS = (Known(ENDPOINT, NetnsIdentity(4, 4026532000, 7)), Known(Endpoint("b", "bridge", "/x", "eth0"), None))
ASK = {"name": "p", "netns": "/run/netns/a", "ifname": "eth0", "addresses": ["10.244.1.5/24"]}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    pods_file.save(tmp_path, "boot", PODS)
    assert pods_file.load(tmp_path) == pods_file.Remembered("boot", PODS)
    assert (tmp_path / pods_file.NAME).stat().st_mode & 0o777 == 0o600


def test_without_a_file_there_is_nothing_and_no_problem(tmp_path: Path) -> None:
    assert pods_file.load(tmp_path) == pods_file.Remembered()


def test_every_truncation_is_noticed_and_gives_no_pods(tmp_path: Path) -> None:
    pods_file.save(tmp_path, "boot", PODS)
    path = tmp_path / pods_file.NAME
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        found = pods_file.load(tmp_path)
        assert found.problem
        assert found.pods == ()


@pytest.mark.parametrize(
    "change",
    [{"name": ""}, {"kind": "wire"}, {"addresses": ["no"]}, {"mtu": -1}, {"since": None}, {"netns_id": [1, 2]},
     {"labels": {"a": 1}}, {"pod": [1]}],
    ids=str,
)  # fmt: skip
def test_a_damaged_record_costs_no_other_its_port(tmp_path: Path, change: dict[str, Any]) -> None:
    pods_file.save(tmp_path, "boot", PODS)
    path = tmp_path / pods_file.NAME
    document = json.loads(path.read_bytes())
    document["pods"][0] |= change
    path.write_text(json.dumps(document))
    found = pods_file.load(tmp_path)
    assert (found.pods, found.problem) == (PODS[1:], "1 records are damaged")


def test_a_file_that_others_may_write_to_is_not_believed(tmp_path: Path) -> None:
    pods_file.save(tmp_path, "boot", PODS)
    (tmp_path / pods_file.NAME).chmod(0o666)
    assert pods_file.load(tmp_path) == pods_file.Remembered(problem="others may write to it")


@pytest.mark.parametrize(
    "change", [{"name": "a\nb"}, {"netns": 7}, {"mtu": True}, {"mtu": "9"}, {"labels": ["x"]}], ids=str
)
def test_a_request_is_refused_with_the_field_that_is_wrong(change: dict[str, Any]) -> None:
    with pytest.raises(FabricError, match=rf"^port\.add: {next(iter(change))} must be"):
        pods_file.parse(ASK | change, "port.add", 0)
