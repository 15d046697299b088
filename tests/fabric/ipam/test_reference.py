"""Our IPAM and the reference plugin are interchangeable: same addresses, files and refusals, on one directory."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.ipam import allocator, config
from fabric.ipam.errors import ALREADY_ALLOCATED
from tests.fabric.ipam.calm import CALM
from tests.fabric.ipam.plugin import Outcome, document, files, ours, reference, reserved

SEQUENCES = settings(CALM, max_examples=40)
CONFIGURATIONS = settings(CALM, max_examples=120)
SHAPES: tuple[tuple[object, ...], ...] = (
    ("10.244.1.0/29",),
    ("10.244.1.0/29", "2001:db8::/64"),
    ("2001:db8::/125", "10.244.1.0/30"),
    ([{"subnet": "10.244.1.0/29", "rangeStart": "10.244.1.2", "rangeEnd": "10.244.1.3"}, {"subnet": "10.244.9.0/30"}],),
    ([{"subnet": "10.244.1.0/29", "gateway": "10.244.1.4"}, {"subnet": "10.244.1.8/30"}], "2001:db8:0:1::/126"),
    ([{"subnet": "10.244.1.0/30", "rangeStart": "10.244.1.0", "rangeEnd": "10.244.1.3"}],),
)
REQUESTS = ("", "10.244.1.1", "10.244.1.2", "10.244.1.3", "10.244.1.9", "192.0.2.1", "2001:db8::3", "2001:db8:0:1::2")
Op = tuple[str, str, str, str, bool]
OPS: st.SearchStrategy[Op] = st.tuples(
    st.sampled_from(("ADD", "ADD", "ADD", "DEL", "CHECK")),
    st.sampled_from([f"pod-{number}" for number in range(6)]),
    st.sampled_from(("eth0", "eth1")),
    st.one_of(st.just(""), st.sampled_from(REQUESTS)),
    st.booleans(),
)


def same(one: Outcome, two: Outcome) -> None:
    assert one.result == two.result
    assert one.error.removeprefix("host-local: ") == two.error.removeprefix("host-local: ")


@pytest.mark.slow
@SEQUENCES
@given(st.sampled_from(SHAPES), st.lists(OPS, max_size=25))
def test_any_sequence_on_one_directory(shape: tuple[object, ...], ops: list[Op]) -> None:
    """Three directories see the same commands: one by the reference plugin, one by ours, one by either in turns."""
    with tempfile.TemporaryDirectory() as base:
        places = [Path(base, name) for name in ("reference", "ours", "shared")]
        for place in places:
            reference("DEL", document(place, *shape), "nobody")  # makes the lock
        for command, container, ifname, address, turn in ops:
            if address and f"{container}\r\n{ifname}".encode() in reserved(places[0]).values() and len(shape) > 1:
                address = ""  # see test_a_failed_add_keeps_what_the_container_had
            args = f"IgnoreUnknown=1;K8S_POD_NAME=x;IP={address}" if address else ""
            calls = (reference, ours, ours if turn else reference)
            outcomes = [
                call(command, document(place, *shape), container, ifname, args)
                for call, place in zip(calls, places, strict=True)
            ]
            same(outcomes[0], outcomes[1])
            same(outcomes[0], outcomes[2])
            assert files(places[0]) == files(places[1]) == files(places[2])


GOOD_SUBNETS = ("10.1.2.0/24", "10.1.2.8/29", "10.1.2.0/30", "10.1.0.0/16", "2001:db8::/64", "2001:DB8:0:0::/126")
BAD_SUBNETS = (
    "10.1.2.0/31", "10.1.2.0/32", "10.1.2.3/24", "2001:db8::/127", "2001:db8::1/64", "::ffff:10.1.2.0/120", "10.1.2.0",
    "10.1.2.0/33", "10.1.2.0/-1", "10.1.2.0/+24", "10.1.2.0/24/", "10.1.2.0/255.255.255.0", "10.01.2.0/24", "10.1.2/24",
    " 10.1.2.0/24", "fe80::%eth0/64", "2001:db8::/129", "2001:db8::/", "pods", "", None, 5,
)  # fmt: skip
GOOD_ADDRESSES = (
    None, "", "10.1.2.1", "10.1.2.2", "10.1.2.9", "10.1.2.14", "::ffff:10.1.2.2", "2001:db8::1", "2001:DB8::0:2",
)  # fmt: skip
ODD_ADDRESSES = ("10.1.2.0", "10.1.2.255", "10.1.3.1", "10.1.2.02", "2001:db8::", "2001:db8:1::1", "::1%lo", "x", 7)


def often(good: Sequence[object], bad: Sequence[object]) -> st.SearchStrategy[Any]:
    """Mostly one of `good`."""
    return st.one_of(*[st.sampled_from(good)] * 4, st.sampled_from(bad))


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


RANGE = st.builds(
    lambda subnet, others: {"subnet": subnet} | others,
    often((*GOOD_SUBNETS, "10.1.2.0/024"), BAD_SUBNETS),
    optional(
        # The last address as a start is in test_a_start_behind_the_default_end.
        rangeStart=often(GOOD_ADDRESSES, [item for item in ODD_ADDRESSES if item != "10.1.2.255"]),
        RANGEEND=often(GOOD_ADDRESSES, ODD_ADDRESSES),
        gateway=often(GOOD_ADDRESSES, ODD_ADDRESSES),
    ),
)
RANGE_SET = st.one_of(*[st.lists(RANGE, min_size=1, max_size=2)] * 9, st.sampled_from((None, [])))
REQUESTED = st.lists(often(GOOD_ADDRESSES[2:], ODD_ADDRESSES[:-1]), max_size=1)
OUTER = st.fixed_dictionaries(
    {"name": st.just("pods"), "cniVersion": st.sampled_from(("1.0.0", "0.4.0", "0.3.0", "0.2.0"))},
    optional={
        "runtimeConfig": optional(ipRanges=st.lists(RANGE_SET, max_size=1), ips=REQUESTED),
        "args": optional(cni=optional(ips=REQUESTED.map(lambda items: [f"{item}/24" for item in items]))),
    },
)
IPAM = st.builds(
    lambda single, others: single | others,
    st.one_of(st.just({}), RANGE),
    optional(
        ranges=st.one_of(st.none(), *[st.lists(RANGE_SET, min_size=1, max_size=2)] * 4),
        routes=st.lists(st.sampled_from(({"dst": "0.0.0.0/0"}, {"dst": "10.0.0.1/8", "gw": "10.1.2.1"}))),
    ),
)


@pytest.mark.slow
@CONFIGURATIONS
@given(OUTER, IPAM)
def test_any_configuration(outer: dict[str, Any], ipam: dict[str, Any]) -> None:
    """Three ADDs with one configuration end the same way."""
    with tempfile.TemporaryDirectory() as base:
        for number in range(3):
            confs = [outer | {"ipam": ipam | {"type": "x", "dataDir": f"{base}/{name}"}} for name in ("one", "two")]
            outcomes = [call("ADD", conf, f"pod-{number}") for call, conf in zip((reference, ours), confs, strict=True)]
            assert bool(outcomes[0].error) == bool(outcomes[1].error), outcomes
            if not outcomes[0].error and outer["cniVersion"] != "0.2.0":  # its form is not ours to give
                assert outcomes[0].result == outcomes[1].result
                assert files(Path(base, "one")) == files(Path(base, "two"))


def test_records_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """As in the reference plugin since version 1.2; older ones leave them readable to all."""
    ours("ADD", document(tmp_path, "10.244.1.0/24"), "pod-1")
    modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in (tmp_path / "pods").iterdir()}
    assert modes == {"10.244.1.2": 0o600, "last_reserved_ip.0": 0o600, "lock": 0o600}


def test_records_of_old_plugins_are_understood(tmp_path: Path) -> None:
    """Before version 0.8 a record had no interface."""
    conf = document(tmp_path, "10.244.1.0/24")
    ours("ADD", conf, "pod-1")
    (tmp_path / "pods" / "10.244.1.9").write_text("pod-9")
    assert ours("CHECK", conf, "pod-9") == reference("CHECK", conf, "pod-9") == Outcome({})
    refused = ours("ADD", conf, "pod-9")
    assert refused.code == ALREADY_ALLOCATED
    same(reference("ADD", conf, "pod-9"), refused)
    ours("DEL", conf, "pod-9")
    assert set(reserved(tmp_path)) == {"10.244.1.2"}


def test_the_boot_file_does_not_disturb_the_reference(tmp_path: Path) -> None:
    conf = document(tmp_path, "10.244.1.0/29")
    boot = "3d0ef0a4-0000-4000-8000-000000000001"
    allocator.reconcile(config.load(conf), (), boot)
    assert reference("ADD", conf, "pod-1").addresses == ["10.244.1.2"]
    for container in (boot, "pod-1", f"boot_id-{boot}"):
        assert not reference("DEL", conf, container).error
    assert reserved(tmp_path) == {}
    assert allocator.reconcile(config.load(conf), (), boot) == ()
    assert (tmp_path / "pods" / "boot_id").read_text() == f"boot_id={boot}"
