"""The program as a whole, without privilege: whatever comes in, one JSON object goes out and nothing is touched."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fabric.cni.main import serve
from fabric.cni.protocol import VERSIONS

COMMANDS = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]
CODES = {1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51}


def ask(
    capsys: pytest.CaptureFixture[str], environ: dict[str, str], data: bytes
) -> tuple[int, dict[str, Any] | None, str]:
    """Exit code, the object on stdout (None for nothing), stderr."""
    code = serve(environ, io.BytesIO(data))
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def environment(command: str, **changes: str) -> dict[str, str]:
    found = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": "/nowhere/netns", "CNI_IFNAME": "eth0"}
    return {**found, "CNI_PATH": "/nowhere", **changes}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer, _ = ask(capsys, {"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"1.0.0"}')
    assert (code, answer) == (0, {"cniVersion": "1.0.0", "supportedVersions": list(VERSIONS)})


@pytest.mark.parametrize("data", [b"", b"rubbish", b"[]", b"[" * 5000, b'{"cniVersion":7}'])
def test_version_is_answered_whatever_comes(capsys: pytest.CaptureFixture[str], data: bytes) -> None:
    code, answer, _ = ask(capsys, {"CNI_COMMAND": "VERSION"}, data)
    assert (code, answer) == (0, {"cniVersion": "1.1.0", "supportedVersions": list(VERSIONS)})


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "VERSION"])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", 6),
        (b"[1]", 6),
        (b'{"cniVersion":"1.1.0","type":"fabric-cni"}', 7),
        (b'{"cniVersion":"1.1.0","name":"a/b","type":"fabric-cni"}', 7),
        (b'{"cniVersion":"9.0.0","name":"n","type":"fabric-cni"}', 1),
        (b'{"cniVersion":"1.1.0","name":"n","type":"../x"}', 7),
    ],
)
def test_bad_configurations(capsys: pytest.CaptureFixture[str], command: str, data: bytes, code: int) -> None:
    status, answer, log = ask(capsys, environment(command), data)
    assert status == 1
    assert answer is not None
    assert answer["code"] == code
    assert answer["msg"] in log, "stderr says it, too, for whoever reads the runtime's log"


def test_an_error_is_in_the_configurations_version(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for version in VERSIONS:
        conf = {"cniVersion": version, "name": "n", "type": "flannel", "subnetFile": str(tmp_path / "no")}
        _, answer, _ = ask(capsys, environment("ADD"), json.dumps(conf).encode())
        assert answer is not None
        assert (answer["cniVersion"], answer["code"]) == (version, 11)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "mtu", "ipam", "dns", "delegate", "runtimeConfig", "args", "prevResult", "subnetFile", "runDir", "bridge",
    "isGateway", "hairpinMode", "promiscMode", "ipMasq", "cni.dev/valid-attachments", "CNIVERSION", "capabilities",
]  # fmt: skip
TEXT = st.text(alphabet=st.characters(exclude_characters="\0"), max_size=20)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(
    command=st.sampled_from(COMMANDS) | TEXT,
    environ=st.dictionaries(
        st.sampled_from(["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"]), TEXT
    ),
    kind=st.sampled_from(["fabric-cni", "flannel"]),
    interface=st.sampled_from(["veth", "bridge", "tap", "../veth", 3, []]),
    changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4),
)
@example(command="GC", environ={}, kind="fabric-cni", interface="veth", changes={"cni.dev/valid-attachments": [None]})
@example(command="DEL", environ={"CNI_NETNS": "/proc/self/ns/net"}, kind="flannel", interface=None, changes={})
def test_any_input_is_answered_with_one_object(
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    command: str,
    environ: dict[str, str],
    kind: str,
    interface: Any,
    changes: dict[str, Any],
) -> None:
    """Hostile values in every variable and key. Nothing but the data directory may be touched: here it stays empty."""
    directory = tmp_path_factory.mktemp("any")
    base = {"cniVersion": "1.1.0", "name": "n", "type": kind, "kind": interface, "subnetFile": str(directory / "none")}
    fixed = {"dataDir": str(directory / "data"), "ipam": {"dataDir": str(directory / "networks")}}
    document = {**base, **changes, **fixed}
    code, answer, log = ask(capsys, environment(command, **environ), json.dumps(document).encode())
    if code == 0:
        assert command in ("VERSION", "DEL", "GC"), "nothing else can succeed here"
    else:
        assert answer is not None
        assert answer["code"] in CODES, (answer, log)
        assert set(answer) <= {"cniVersion", "code", "msg", "details"}
    assert "Traceback" not in log
    assert not any(path.is_file() for path in directory.rglob("*"))


def run(environ: dict[str, str], data: bytes, **files: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "fabric.cni.main"]
    files = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **files}
    return subprocess.run(command, input=data, env=os.environ | environ, check=False, timeout=30, **files)


def test_the_process_says_so_by_its_exit_code() -> None:
    good = run({"CNI_COMMAND": "VERSION"}, b"{}")
    assert (good.returncode, json.loads(good.stdout)["supportedVersions"]) == (0, list(VERSIONS))
    bad = run({"CNI_COMMAND": "nonsense"}, b"{}")
    assert (bad.returncode, json.loads(bad.stdout)["code"]) == (1, 4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_nobody_gets_is_an_error_without_a_traceback() -> None:
    with open("/dev/full", "wb") as full:
        done = run({"CNI_COMMAND": "VERSION"}, b"{}", stdout=full)
    assert done.returncode == 1
    assert b"cannot write the result" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_closed_stderr_does_not_matter() -> None:
    read, write = os.pipe()
    os.close(read)
    done = run({"CNI_COMMAND": "GC"}, b"{}", stderr=write)
    os.close(write)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 4)
