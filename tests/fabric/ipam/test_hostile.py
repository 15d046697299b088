"""Hostile input (T12) and hostile neighbours (T15): nothing outside the network's directory is made or changed."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.ipam import allocator, config
from fabric.ipam.errors import INVALID_CONFIG, IO_FAILURE, IPAMError
from fabric.ipam.names import Attachment
from tests.fabric.ipam.calm import CALM
from tests.fabric.ipam.plugin import document, files, ours, reserved
from tests.fabric.ipam.test_allocator import BOOT, conf, pod
from tests.fabric.ipam.test_allocator import given as granted

TRICKS = st.sampled_from(
    ["../../x", "..", ".", "/etc/passwd", "pods/../x", "a\nb", "a\n", "x" * 5000, "\0", "10.244.1.2", "lock", "boot_id"]
)
TEXT = st.one_of(TRICKS, st.text(alphabet="./\\\n\0:-_aA0= \u00e9\u2028\ud800", max_size=20), st.text(max_size=20))
NAME = st.one_of(st.just("pods"), TEXT)


def state(base: Path, inside: Path) -> dict[str, tuple[int, int, int, int, int]]:
    """Everything below `base` but not below `inside`: inode, mode, size and times of change."""
    found = {}
    for path in [base, *base.rglob("*")]:
        if inside not in (path, *path.parents):
            seen = path.lstat()
            found[str(path)] = (seen.st_ino, seen.st_mode, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    return found


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory with things that must not be touched, beside the data directory `data`."""
    (tmp_path / "data" / "other").mkdir(parents=True)
    (tmp_path / "data" / "other" / "10.244.1.2").write_bytes(pod(1).record)
    (tmp_path / "x").write_text("precious")
    (tmp_path / "10.244.1.2").write_bytes(pod(1).record)
    return tmp_path


@pytest.mark.slow
@CALM
@given(st.sampled_from(["ADD", "DEL", "CHECK"]), NAME, TEXT, NAME, st.one_of(st.just(""), TEXT))
def test_hostile_names(base: Path, command: str, network: str, container: str, ifname: str, args: str) -> None:
    data = base / "data"
    before = state(base, data)
    found = ours(command, document(data, "10.244.1.0/24") | {"name": network}, container, ifname, args)
    assert found.error.isprintable()
    assert found.details.isprintable()
    assert state(base, data) == before
    assert files(data / "other") == {"10.244.1.2": pod(1).record}
    made = {path.name for path in data.iterdir()} - {"other"}
    assert made <= {network}
    for name in made:
        inside = {path.name for path in (data / name).iterdir()}
        assert inside <= {"10.244.1.2", "last_reserved_ip.0", "lock"}
        shutil.rmtree(data / name)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
KEYS = ("ranges", "subnet", "rangeStart", "rangeEnd", "gateway", "routes", "dataDir", "resolvConf")
SECTION = st.one_of(JSON, st.dictionaries(st.one_of(st.sampled_from(KEYS), TEXT), JSON, max_size=4))
DOCUMENT = st.fixed_dictionaries(
    {"name": NAME, "ipam": SECTION},
    optional={
        "cniVersion": JSON,
        "runtimeConfig": st.one_of(JSON, st.fixed_dictionaries({"ips": JSON, "ipRanges": JSON})),
        "args": st.one_of(JSON, st.fixed_dictionaries({"cni": st.one_of(JSON, st.fixed_dictionaries({"ips": JSON}))})),
    },
)


@pytest.mark.slow
@CALM
@given(DOCUMENT, TEXT)
def test_hostile_configurations(hostile: dict[str, Any], args: str) -> None:
    """Whatever the types: an error of ours, one printable line."""
    errors: list[IPAMError] = []
    for parse in (config.load, config.place, lambda item: config.requested(item, args)):
        try:
            parse(hostile)
        except IPAMError as error:
            errors.append(error)
    assert [text for error in errors for text in (error.msg, error.details) if not text.isprintable()] == []


def test_names_are_not_paths(base: Path) -> None:
    """The names get no further than the checks even when the caller skips the parser."""
    with pytest.raises(IPAMError):
        Attachment("../../x", "eth0")
    with pytest.raises(IPAMError):
        config.place({"name": "../x", "ipam": {"dataDir": str(base / "data")}})


LINKS = ["10.244.1.2", "last_reserved_ip.0", ".last_reserved_ip.0.tmp", "boot_id", ".boot_id.tmp", "lock"]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("target", ["precious", "nothing"])
def test_links_are_not_followed(tmp_path: Path, name: str, target: str) -> None:
    (tmp_path / "precious").write_text("precious")
    place = tmp_path / "data"
    loaded = conf(place, "10.244.1.0/29")
    (place / "pods").mkdir(0o755, parents=True)
    (place / "pods" / name).symlink_to(tmp_path / target)
    if name == "lock":
        with pytest.raises(IPAMError) as error:
            granted(loaded, pod(1))
        assert error.value.code == INVALID_CONFIG
        assert error.value.msg.startswith(f"{place}/pods/lock: a link or a file is in the way: ")
    else:
        assert granted(loaded, pod(1)) == ["10.244.1.3" if name == "10.244.1.2" else "10.244.1.2"]
        allocator.reconcile(loaded, [pod(1)], BOOT)
        allocator.release(loaded.place, pod(1))
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["data", "precious"]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_network_that_is_no_directory(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "pods"
    path.symlink_to(tmp_path / "elsewhere") if kind == "link" else path.touch()
    loaded = conf(tmp_path)
    for verb in (lambda: granted(loaded, pod(1)), lambda: allocator.release(loaded.place, pod(1))):
        with pytest.raises(IPAMError) as error:
            verb()
        assert error.value.code in (INVALID_CONFIG, IO_FAILURE)
        assert error.value.msg.startswith(f"{path}")
        assert "pods/pods" not in error.value.msg
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "data", tmp_path / "data" / "pods"):
        path.mkdir(exist_ok=True)
        path.chmod(0o777)
        with pytest.raises(IPAMError) as error:
            granted(conf(tmp_path / "data"), pod(1))
        assert (error.value.code, error.value.msg) == (
            INVALID_CONFIG,
            f"{path} may be written to by others: addresses cannot be kept there",
        )
        path.chmod(0o755)
    assert granted(conf(tmp_path / "data"), pod(1)) == ["10.244.1.2"]


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IPAMError) as error:
        granted(conf(tmp_path / "file" / "networks"), pod(1))
    assert error.value.msg == f"{tmp_path}/file/networks/pods: a link or a file is in the way: Not a directory"


def test_no_umask_opens_the_files(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        granted(conf(tmp_path / "a" / "b"), pod(1))
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o7777 for path in (tmp_path / "a" / "b" / "pods").iterdir()} == {0o600}
    assert {(tmp_path / name).stat().st_mode & 0o7777 for name in ("a", "a/b", "a/b/pods")} == {0o755}


RACER = """
import os, sys
directory, victim = sys.argv[1:]
names = ["10.244.1.%d" % number for number in range(2, 7)] + ["last_reserved_ip.0", ".last_reserved_ip.0.tmp"]
print("ready", flush=True)
while True:
    for name in names:
        path = os.path.join(directory, name)
        try:
            os.unlink(path)
        except OSError:
            pass
        try:
            os.symlink(victim, path)
        except OSError:
            pass
"""


@pytest.mark.slow
def test_a_racing_symlinker_gets_nothing_written(tmp_path: Path) -> None:
    """A neighbour without rights over our lock exchanges our files for links all the time."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    loaded = conf(tmp_path / "data", "10.244.1.0/29")
    granted(loaded, pod(1))
    command = [sys.executable, "-c", RACER, str(tmp_path / "data" / "pods"), str(victim)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as racer:
        try:
            assert racer.stdout is not None
            racer.stdout.readline()
            for number in itertools.islice(itertools.cycle(range(2, 9)), 400):
                with contextlib.suppress(IPAMError):
                    granted(loaded, pod(number))
                    allocator.release(loaded.place, pod(number))
                assert victim.read_text() == "precious"
        finally:
            racer.kill()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["data", "victim"]
    for path in (tmp_path / "data" / "pods").iterdir():
        path.unlink()
    granted(loaded, pod(1))
    assert set(reserved(tmp_path / "data")) == {"10.244.1.2"}
