"""`fabricctl install` and `uninstall` in a root directory of the test's."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fabric.cli.main import main
from fabric.install import environment
from fabric.install.environment import EnvironmentProblem, check_python, required
from tests.fabric.install.staged import host_python

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not host_python(), reason="no Python here that every user can run")]
FILES = {
    "etc/cni/net.d/10-fabric.conflist", "etc/default/fabricd", "etc/systemd/system/fabricd.service",
    "etc/sysusers.d/podfabric.conf", "etc/tmpfiles.d/podfabric.conf", "opt/cni/bin/fabric-cni",
    "usr/local/bin/fabricctl",
}  # fmt: skip


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation, made twice: the second time there is hardly anything to do."""
    place = tmp_path_factory.mktemp("root")
    first = run("install", f"--root={place}", f"--python={host_python()}")
    assert first.exit_code == 0, first.output
    (place / "opt/podfabric/of-an-older-version").touch()
    (place / "etc/default/fabricd").write_text("FABRICD_OPTIONS=--iface=eth7\n")
    again = run("install", f"--root={place}", f"--python={host_python()}")
    assert again.exit_code == 0, again.output
    assert again.output.count("already") == 6
    assert "left as it is" in again.output
    return place


def others(root: Path) -> set[str]:
    """Files and links outside the environment."""
    found = [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]
    return {str(path.relative_to(root)) for path in found if "opt/podfabric/" not in str(path)}


@pytest.mark.slow
def test_everything_is_in_its_place(root: Path) -> None:
    assert others(root) - {"etc/systemd/system/fabricd.service.d/254.conf"} == FILES
    assert not (root / "opt/podfabric/of-an-older-version").exists()
    assert [path.name for path in (root / "opt").iterdir() if path.name.startswith(".")] == []
    assert (root / "usr/local/bin/fabricctl").readlink() == Path("/opt/podfabric/bin/fabricctl")
    assert json.loads((root / "etc/cni/net.d/10-fabric.conflist").read_text())["plugins"][0]["type"] == "fabric-cni"
    assert (root / "etc/default/fabricd").read_text() == "FABRICD_OPTIONS=--iface=eth7\n"


@pytest.mark.slow
def test_the_environment_stands_alone(root: Path) -> None:
    """Everything is imported from it, nothing from the tree it was made of, and nothing is left to be compiled."""
    code = (
        "import sys, fabric.cli.main, fabric.cni.main, fabric.daemon.node, fabric.forward.dataplane, fabric.lab.cli,"
        "fabric.policy.judge, fabric.daemon.prepare, fabric.traffic.manager, fabric.store.etcd, fabric.store.kube\n"
        "print([m.__file__ for m in sys.modules.values() if 'packages' in (getattr(m, '__file__', '') or '')"
        " and not m.__file__.startswith(sys.prefix)], sys.prefix)"
    )
    place = root / "opt/podfabric"
    done = subprocess.run([place / "bin/python", "-I", "-B", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"[] {place}\n", "")
    version = subprocess.run([place / "bin/python", "-I", place / "bin/fabricctl", "--version"],
                             capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert version == run("--version").output.replace("main", "fabricctl")
    sources = list((place / "lib").rglob("fabric/**/*.py"))
    assert sources
    assert [path for path in sources if not list(path.parent.glob(f"__pycache__/{path.stem}.*.pyc"))] == []


def test_the_plugin_has_the_quick_start(root: Path) -> None:
    place = root / "opt/podfabric"
    program = (place / "bin/fabric-cni").read_text()
    assert program.startswith("#!/opt/podfabric/bin/python -IS\n")
    moved = root / "fabric-cni"
    moved.write_text(program.replace("/opt/podfabric", str(place)).split("\n", 1)[1])
    done = subprocess.run([place / "bin/python", "-IS", moved], env={"CNI_COMMAND": "VERSION"}, input="{}",
                          capture_output=True, text=True, check=True)  # fmt: skip
    moved.unlink()
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


def test_nothing_mentions_where_it_was_made(root: Path) -> None:
    scripts = [*(root / "opt/podfabric/bin").glob("fabric*"), root / "etc/systemd/system/fabricd.service",
               root / "opt/podfabric/pyvenv.cfg"]  # fmt: skip
    assert len(scripts) == 5
    for path in scripts:
        assert str(root) not in path.read_text()
    compiled = next((root / "opt/podfabric/lib").rglob("fabric/daemon/__pycache__/main.*.pyc")).read_bytes()
    assert str(root).encode() not in compiled
    assert b"/opt/podfabric/lib" in compiled


@pytest.mark.slow
def test_uninstall_takes_everything_away_but_what_was_changed(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(root, place, symlinks=True)
    (place / "var/lib/fabric").mkdir(parents=True)
    (place / "opt/cni/bin/bridge").write_text("somebody else's")
    done = run("uninstall", f"--root={place}")
    assert done.exit_code == 0, done.output
    assert others(place) == {"etc/default/fabricd", "opt/cni/bin/bridge"}
    assert not (place / "opt/podfabric").exists()
    assert "was changed and stays" in done.output
    assert run("uninstall", f"--root={place}", "--purge").exit_code == 0
    assert others(place) == {"opt/cni/bin/bridge"}
    assert not (place / "var/lib/fabric").exists()
    again = run("uninstall", f"--root={place}")
    assert (again.exit_code, again.output) == (0, "")


def test_a_prefix_of_ones_own_and_the_packages_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "make", lambda place, prefix, python: place.mkdir(parents=True))
    words = [f"--root={tmp_path}", "--prefix=/usr/lib/podfabric", "--vendor"]
    done = run("install", *words, f"--python={host_python()}", "--kind=none")
    assert done.exit_code == 0, done.output
    unit = (tmp_path / "usr/lib/systemd/system/fabricd.service").read_text()
    assert "ExecStart=/usr/lib/podfabric/bin/fabricd " in unit
    assert "/opt/podfabric" not in unit
    assert not (tmp_path / "etc/cni").exists()
    assert (tmp_path / "usr/bin/fabricctl").is_symlink()
    assert run("uninstall", *words).exit_code == 0
    assert others(tmp_path) == set()


def test_only_what_the_plugin_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the DaemonSet has it, where fabricd runs in a container."""
    monkeypatch.setattr(environment, "make", lambda place, prefix, python: place.mkdir(parents=True))
    done = run("install", f"--root={tmp_path}", f"--python={host_python()}", "--no-service")
    assert done.exit_code == 0, done.output
    assert others(tmp_path) == {"etc/cni/net.d/10-fabric.conflist", "opt/cni/bin/fabric-cni"}


def test_what_is_somebody_elses_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "make", lambda place, prefix, python: place.mkdir(parents=True))
    (tmp_path / "etc/cni/net.d").mkdir(parents=True)
    foreign = tmp_path / "etc/cni/net.d/10-fabric.conflist"
    foreign.write_text('{"plugins": [{"type": "bridge"}]}')
    done = run("install", f"--root={tmp_path}", f"--python={host_python()}")
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith(f"fabricctl: {foreign} says something else")
    run("uninstall", f"--root={tmp_path}")
    assert foreign.exists()


@pytest.mark.parametrize("prefix", ["opt/podfabric", "/", "/opt", "/opt/../etc/x"])
def test_bad_prefixes(tmp_path: Path, prefix: str) -> None:
    done = run("install", f"--root={tmp_path}", f"--prefix={prefix}")
    assert done.exit_code == 1
    assert "--prefix" in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_interpreter_has_to_fit(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    own = hidden / "python"
    own.write_text(f'#!/bin/sh\nexec {host_python()} "$@"\n')
    own.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match=r"out of reach .* give --python"):
        check_python(str(own))
    with pytest.raises(EnvironmentProblem, match="does not run"):
        check_python(str(tmp_path / "none"))
    own.write_text("#!/bin/sh\necho cpython-27\n")
    with pytest.raises(EnvironmentProblem, match="is cpython-27, the compiled modules are for Python 3"):
        check_python(str(own))


def test_what_is_required() -> None:
    found = required("podfabric")
    assert {"click", "uvloop", "hpack", "protobuf"} <= set(found)
    assert not {"pytest", "colorama", "ruff"} & set(found)
