"""Records: there and back, damaged in every way, and the lock between processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.cni import state
from fabric.cni.attachment import Attachment, Record, parse_key, parse_port, parse_record, port_prefix
from fabric.cni.errors import CniError
from fabric.cni.result import parse as parse_result
from fabric.cni.state import Store

ONE = Attachment("net", "c1", "eth0")
RESULT = parse_result(
    {
        "ips": [{"address": "10.244.1.2/24", "gateway": "10.244.1.1"}, {"address": "2001:db8::2/128"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1", "priority": 5}],
    }
)
RECORD = Record(
    ONE, "veth", "/run/netns/x", {"name": "net", "type": "t"}, RESULT.ips, RESULT.routes, 1450, "02:00:00:00:00:01"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data" / "net", "net")


def test_a_record_comes_back(store: Store, tmp_path: Path) -> None:
    assert store.load(ONE) is None
    store.save(RECORD)
    assert store.load(ONE) == RECORD
    assert store.all() == [ONE]
    path = tmp_path / "data" / "net" / "c1@eth0"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.remove(ONE)
    store.remove(ONE)
    assert (store.load(ONE), store.all(), os.listdir(path.parent)) == (None, [], [])


@given(st.text(max_size=20), st.dictionaries(st.text(), st.text()))
def test_any_text_comes_back(text: str, document: dict[str, str]) -> None:
    record = RECORD._replace(netns=text, document=document)
    assert parse_record(record.emit(), ONE) == record


def test_the_records_of_attachments_are_apart(store: Store) -> None:
    """`-` and `.` may be in ids and interfaces: no two attachments share a file or a port's name."""
    pairs = [
        ("a-b", "c"),
        ("a", "b-c"),
        ("a.b", "c"),
        ("a", "b.c"),
        ("a", "b@c"),
        ("a", "c"),
        ("a.tmp", "c"),
        ("a", "c.1.tmp"),
    ]
    found = [Attachment("net", *pair) for pair in pairs]
    for attachment in found:
        store.save(RECORD._replace(attachment=attachment))
    assert sorted(store.all()) == sorted(found)
    assert len({attachment.port for attachment in found}) == len(found)
    assert len({attachment.host_interface for attachment in found}) == len(found)
    for attachment in found:
        assert parse_key("net", attachment.key) == attachment
        assert parse_port(attachment.port, "net") == attachment
        assert len(attachment.host_interface) == 15


def test_ports_of_others_are_nobodys_attachment() -> None:
    for name in ("node", "node1-pod1", "cni/other/c1/eth0", "cni/net/c1", "cni/net/../eth0", port_prefix("net")):
        assert parse_port(name, "net") is None


def test_every_truncation_and_every_changed_byte_is_noticed_or_means_the_same() -> None:
    whole = RECORD.emit()
    for position in range(len(whole)):
        for data in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x01]) + whole[position + 1 :]):
            try:
                found = parse_record(data, ONE)
            except ValueError:
                continue
            assert found.attachment == ONE, "a damaged record is never another attachment's"


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\xff", b"[" * 5000, b'{"version":2}'])
def test_a_damaged_record_counts_as_absent_and_is_said(
    store: Store, tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    store.save(RECORD)
    (tmp_path / "data" / "net" / ONE.key).write_bytes(data)
    assert store.load(ONE) is None
    assert "is damaged, going by the names" in capsys.readouterr().err
    assert store.all() == [ONE], "GC still finds it"
    store.remove(ONE)
    assert store.all() == []


def test_a_record_that_others_could_have_written_is_not_believed(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.save(RECORD)
    path = tmp_path / "data" / "net" / ONE.key
    path.chmod(0o622)
    assert store.load(ONE) is None
    path.unlink()
    (tmp_path / "elsewhere").write_bytes(RECORD.emit())
    path.symlink_to(tmp_path / "elsewhere")
    assert store.load(ONE) is None
    assert "cannot be read" in capsys.readouterr().err
    store.remove(ONE)
    assert (tmp_path / "elsewhere").exists(), "the link goes, not what it leads to"


def test_what_a_killed_write_leaves_is_found_and_removed(store: Store, tmp_path: Path) -> None:
    store.save(RECORD)
    store.remove(ONE)
    directory = tmp_path / "data" / "net"
    for name in (".c1@eth0.77.tmp", f".{state.LATE}c1@eth0.77.tmp"):
        (directory / name).write_text("{")
    (directory / ".c2@eth0.5.tmp").write_text("{")
    assert store.all() == [ONE, Attachment("net", "c2", "eth0")]
    store.remove(ONE)
    assert os.listdir(directory) == [".c2@eth0.5.tmp"]


def test_postponed_records_wait_until_settled_or_added_again(store: Store) -> None:
    store.postpone(RECORD)
    assert (store.all(), store.late(), store.load(ONE)) == ([], [ONE], None)
    assert store.load_late(ONE) == RECORD
    store.settle(ONE)
    store.settle(ONE)
    assert (store.late(), store.load_late(ONE)) == ([], None)
    store.postpone(RECORD)
    store.save(RECORD)
    assert store.late() == [], "the port of the new one must stay"


def test_errors_name_the_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the place of the directory")
    for call in (lambda: store.save(RECORD), store.all, lambda: enter(store, ONE, create=True)):
        with pytest.raises(CniError, match=r"data/net") as caught:
            call()
        assert caught.value.code == 5
    store.remove(ONE)
    enter(store, ONE, create=False)


def enter(store: Store, attachment: Attachment | None, create: bool) -> None:
    with store.locked(attachment, create):
        pass


HOLDER = """
import sys
from pathlib import Path
from fabric.cni.attachment import Attachment
from fabric.cni.state import Store
attachment = Attachment("net", *sys.argv[2:]) if sys.argv[2:] else None
with Store(Path(sys.argv[1]), "net").locked(attachment, True):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(directory: Path, *pair: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock of an attachment, or of all."""
    command = [sys.executable, "-c", HOLDER, str(directory), *pair]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_containers_do_not_wait_for_each_other_but_for_themselves_and_gc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LOCK_SECONDS", 0.05)
    store, other = Store(tmp_path, "net"), Attachment("net", "c2", "eth0")
    with held(tmp_path, "c1", "eth0"):
        enter(store, other, create=True)
        for attachment in (ONE, None):
            with pytest.raises(CniError, match="another call works on") as caught:
                enter(store, attachment, create=True)
            assert caught.value.code == 11
        with store.claimed(ONE) as ours:
            assert not ours
        with store.claimed(other) as ours:
            assert ours
    enter(store, ONE, create=True)
    with held(tmp_path):
        for attachment in (ONE, other, None):
            with pytest.raises(CniError):
                enter(store, attachment, create=True)
    enter(store, None, create=True)


def test_who_waits_gets_the_lock_when_its_holder_is_killed(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    with held(tmp_path, "c1", "eth0") as process:
        process.kill()
        enter(store, ONE, create=False)


def test_no_lock_is_needed_where_nothing_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "nothing", "net")
    enter(store, ONE, create=False)
    with store.claimed(ONE) as ours:
        assert not ours
    assert not (tmp_path / "nothing").exists()
