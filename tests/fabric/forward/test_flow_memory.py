"""The flow table's memory from run to run: what comes back, and what is not used."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from fabric.forward import flow_memory, kept
from fabric.forward.flow_memory import HEADER, SLOT, FlowMemory
from tests.fabric.forward.managers import Manager
from tests.fabric.forward.test_flow_table import ALIEN, PODS, connect, on

FLOWS = 64
CLIENT, OTHER, SERVER = (PODS[0], 40_000), (PODS[0], 40_001), (ALIEN, 80)
LAYOUTS = {1: "3800485292b0565c", 2: "d73358f9ed7c9b25", 3: "4aef070ae550440e"}
"""By LAYOUT: what `layout_hash` was when it was given."""


def first_run(manager: Manager) -> FlowMemory:
    """Two connections of a pod, and the end of the run."""
    memory = FlowMemory(FLOWS, manager)
    probe = on(memory.table)
    memory.remember()
    for client in (CLIENT, OTHER):
        connect(probe, client, SERVER, 1, 100)
    manager.next_run()
    return memory


def shown(memory: FlowMemory) -> list[tuple[object, ...]]:
    names = ("source", "sport", "destination", "dport", "state", "entry", "account", "expires_in")
    return sorted(tuple(flow[name] for name in names) for flow in memory.table.dump(FLOWS, 100))


def test_connections_go_on(manager: Manager) -> None:
    before = first_run(manager)
    again = FlowMemory(FLOWS, manager)
    assert again.recover() == 2
    assert again.recover() == 0, "once is enough"
    assert shown(again) == shown(before)
    assert [flow[4] for flow in shown(again)] == ["established"] * 2
    assert again.table.account("pod0") == 1
    assert again.table.counters()["flows"] == 2
    probe = on(again.table)
    connect(probe, CLIENT, SERVER, 1, 101)
    assert again.table.counters()["flows"] == 2, "it was found, with the same hash"


def test_nothing_is_kept_where_nobody_keeps() -> None:
    memory = FlowMemory(FLOWS, kept.Nothing())
    memory.remember()
    assert memory.recover() == 0
    assert memory.table.capacity == FLOWS


def test_a_bucket_whose_writer_was_killed_is_emptied(manager: Manager) -> None:
    first_run(manager)
    (fd,) = manager.fds[kept.FLOWS]
    buckets = HEADER + FLOWS * 64
    for number in range(FLOWS // 8):
        place = buckets + number * 64
        sequence = int.from_bytes(os.pread(fd, 8, place), "little")
        assert sequence % 2 == 0
        os.pwrite(fd, (sequence + 1).to_bytes(8, "little"), place)
    again = FlowMemory(FLOWS, manager)
    assert again.recover() == 0
    assert shown(again) == []
    connect(on(again.table), CLIENT, SERVER, 1, 101)
    connect(on(again.table), OTHER, SERVER, 1, 101)
    assert again.table.counters()["flows"] == 2


@pytest.mark.parametrize("what", ["layout", "size", "damage", "twice"])
def test_what_does_not_fit_is_not_used(manager: Manager, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    first_run(manager)
    (fd,) = manager.fds[kept.FLOWS]
    before = os.fstat(fd).st_ino
    if what == "layout":
        monkeypatch.setattr(flow_memory, "LAYOUT", flow_memory.LAYOUT + 1)
    elif what == "damage":
        for slot in (0, SLOT):
            os.pwrite(fd, b"x", slot + 40)
    elif what == "twice":
        manager.given[kept.FLOWS].append(os.dup(fd))
    again = FlowMemory(FLOWS * (2 if what == "size" else 1), manager)
    assert again.recover() == 0
    assert shown(again) == []
    assert os.fstat(manager.fds[kept.FLOWS][0]).st_ino != before


def test_a_torn_slot_leaves_the_one_before(manager: Manager) -> None:
    memory = first_run(manager)
    memory.table.account("later")
    memory.remember()
    (fd,) = manager.fds[kept.FLOWS]
    numbers = [int.from_bytes(os.pread(fd, 8, slot + 8), "little") for slot in (0, SLOT)]
    os.pwrite(fd, b"x", (0 if numbers[0] > numbers[1] else SLOT) + 40)
    again = FlowMemory(FLOWS, manager)
    assert again.recover() == 2
    assert again.table.identity()["accounts"] == {"pod0": 1, "pod1": 2}


def test_the_layouts_number_follows_the_structures() -> None:
    """When this fails the memory of the last version would be misread: raise LAYOUT and put the new hash here."""
    assert LAYOUTS[flow_memory.LAYOUT] == layout_hash()


def layout_hash() -> str:
    """Of the structures and the states, without comments."""
    place = Path(flow_memory.__file__).parent
    table = (place / "flow_table.pxd").read_text()
    parts = [re.search(rf"cdef struct {name}:.*?\n\n", table, re.DOTALL) for name in ("Bucket", "Flow", "FlowRest")]
    key = re.search(r"cdef struct FlowKey:.*?\n\n", (place / "flow_key.pxd").read_text(), re.DOTALL)
    states = re.search(r"cdef enum.*?\n\n(?=cdef [^e])", (place / "flow_state.pxd").read_text(), re.DOTALL)
    text = "".join(part[0] for part in [*parts, key, states] if part)
    return hashlib.sha256(re.sub(r"#.*|\s", "", text).encode()).hexdigest()[:16]
