"""fabricctl cni install: launchers and a network, written once, never over somebody else's file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fabric.cli.main import main
from fabric.cni import kinds, launcher
from fabric.cni.config import load

PROGRAM = Path(sys.executable).with_name("fabric-cni")
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="needs the installed distribution")


def install(tmp_path: Path, *words: str) -> Result:
    places = ["--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "net.d")]
    return CliRunner().invoke(main, ["cni", "install", *places, *words])


def written(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "net.d" / "10-fabric.conflist").read_text())
    return content


def test_a_launcher_and_a_network(tmp_path: Path) -> None:
    result = install(tmp_path)
    assert result.exit_code == 0, result.output
    program = tmp_path / "bin" / "fabric-cni"
    assert (program.read_text(), program.stat().st_mode & 0o777) == (launcher.here(), 0o755)
    assert written(tmp_path) == {
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": "cbr0",
        "plugins": [{"type": "fabric-cni", "kind": "tun", "capabilities": {"ips": True, "portMappings": True}}],
    }
    assert (tmp_path / "net.d" / "10-fabric.conflist").stat().st_mode & 0o777 == 0o644
    again = install(tmp_path)
    assert again.exit_code == 0
    assert again.output.count("already") == 2


@pytest.mark.parametrize("kind", kinds.NAMES)
def test_what_is_written_is_what_the_plugin_takes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("portmap", "bandwidth", "bridge"):
        (tmp_path / "bin" / name).write_text("")
    result = install(tmp_path, "--kind", kind, "--name", "pods", "--run-dir", "/run/x", "--subnet-file", "/run/y.env")
    assert result.exit_code == 0, result.output
    content = written(tmp_path)
    chained = [] if kind in kinds.PORTS else ["bandwidth"]
    assert [item["type"] for item in content["plugins"]] == ["fabric-cni", *chained]
    assert content["plugins"][1:] == [{"type": "bandwidth", "capabilities": {"bandwidth": True}} for _ in chained]
    assert content["plugins"][0]["capabilities"]["portMappings"]
    conf = load({**content["plugins"][0], "name": content["name"], "cniVersion": content["cniVersion"]})
    assert (kinds.wanted(conf), conf.name) == (kind, "pods")
    assert (conf.path("rundir", ""), conf.path("subnetfile", "")) == ("/run/x", "/run/y.env")
    assert conf.section("capabilities").get("mac", False) is (kind != "tun")


def test_files_of_others_are_replaced_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "net.d").mkdir()
    (tmp_path / "bin" / "flannel").write_text("theirs")
    (tmp_path / "net.d" / "10-fabric.conflist").write_text("{}")
    result = install(tmp_path)
    assert (result.exit_code, "says something else" in result.output) == (1, True)
    result = install(tmp_path, "--flannel")
    assert (result.exit_code, "is another program" in result.output) == (1, True)
    assert (tmp_path / "bin" / "flannel").read_text() == "theirs"
    assert (tmp_path / "net.d" / "10-fabric.conflist").read_text() == "{}"
    assert install(tmp_path, "--flannel", "--force").exit_code == 0
    assert (tmp_path / "bin" / "flannel").read_text() == launcher.here()
    assert written(tmp_path)["name"] == "cbr0"


def test_a_link_of_an_older_installation_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "fabric-cni"
    program.symlink_to("/nowhere/fabric-cni")
    assert install(tmp_path).exit_code == 0
    assert (program.is_symlink(), program.read_text()) == (False, launcher.here())
    program.write_text(launcher.text("/nowhere/python", ()))
    assert install(tmp_path).exit_code == 0
    assert program.read_text() == launcher.here()


def test_a_link_where_the_kernel_would_run_no_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launcher.text("/srv/my programs/python", ()) == launcher.text("/" + "x" * 127, ()) == ""
    monkeypatch.setattr(launcher, "here", lambda: "")
    assert install(tmp_path).exit_code == 0
    assert (tmp_path / "bin" / "fabric-cni").readlink() == PROGRAM


def test_refusals(tmp_path: Path) -> None:
    assert install(tmp_path, "--name", "../x").exit_code == 1
    assert install(tmp_path, "--kind", "ipvlan").exit_code == 2
    (tmp_path / "net.d").write_text("a file in the place of the directory")
    result = install(tmp_path)
    assert (result.exit_code, result.output.count("\n")) == (1, 2)


def answer(program: Path, command: str) -> tuple[int, Any]:
    done = subprocess.run([program], input=b"{}", capture_output=True, check=False, env={"CNI_COMMAND": command})
    return done.returncode, json.loads(done.stdout)


def test_the_installed_program_answers(tmp_path: Path) -> None:
    assert install(tmp_path).exit_code == 0
    program = tmp_path / "bin" / "fabric-cni"
    status, found = answer(program, "VERSION")
    assert (status, "1.1.0" in found["supportedVersions"]) == (0, True)
    status, found = answer(program, "PAUSE")
    assert (status, found["code"]) == (1, 4)


def test_a_launcher_whose_packages_are_elsewhere_now_starts_the_console_script(tmp_path: Path) -> None:
    program = tmp_path / "fabric-cni"
    program.write_text(launcher.text(sys.executable, (str(tmp_path / "nowhere"),)))
    program.chmod(0o755)
    assert answer(program, "VERSION")[0] == 0
