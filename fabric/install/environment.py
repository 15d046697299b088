"""The running distribution in an environment of its own: an interpreter's link, site-packages, scripts.

Made beside its place and moved there when it is complete, so that there is the old one or the new one. It is compiled
to bytecode, since fabricd's user may not write there. Nothing in it mentions where it was made.
"""

from __future__ import annotations

import compileall
import contextlib
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from fabric.cni import launcher
from fabric.install import layout

DISTRIBUTION = "podfabric"
PACKAGES = ("fabric", "encap", "routes", "tun")
SUFFIXES = (".py", ".so", ".typed")
SCRIPT = """#!{python} -I
import sys

from {module} import {function}

sys.exit({function}())
"""
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


class EnvironmentProblem(Exception):
    """The environment cannot be made; the text is one line for people."""


def base_python() -> str:
    """The interpreter behind the running one."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def check_python(python: str) -> None:
    """Raises EnvironmentProblem unless `python` is of our version and other users can run it."""
    code = "import sys; print(sys.implementation.cache_tag)"
    try:
        found = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentProblem(f"{python} does not run: {error}") from None
    if found.stdout.strip() != sys.implementation.cache_tag:
        wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise EnvironmentProblem(f"{python} is {found.stdout.strip()}, the compiled modules are for Python {wanted}")
    real = Path(os.path.realpath(python))
    for path in (real, *real.parents):
        if not path.stat().st_mode & 0o001:
            what = f"{real} is out of reach of fabricd's user: {path} is for its owner only"
            raise EnvironmentProblem(f"{what}; give --python, such as /usr/bin/python3")


def make(place: Path, prefix: str, python: str) -> None:
    """Make or replace the environment at `place`, which is `prefix` when it is used. Raises OSError."""
    building, old = place.with_name(f".{place.name}.new"), place.with_name(f".{place.name}.old")
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    building.mkdir(mode=0o755)
    try:
        _fill(building, prefix, python)
        if place.exists():
            place.rename(old)
        building.rename(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _fill(place: Path, prefix: str, python: str) -> None:
    (place / "bin").mkdir()
    (place / "bin" / "python").symlink_to(python)
    home = str(Path(python).parent)
    (place / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    site = place / SITE
    site.mkdir(parents=True)
    for name in required(DISTRIBUTION):
        _copy_distribution(metadata.distribution(name), site)
    _copy_own(site)
    shutil.copytree(layout.sources(), place / "share" / "podfabric" / "systemd")
    for script in metadata.distribution(DISTRIBUTION).entry_points.select(group="console_scripts"):
        path = place / "bin" / script.name
        path.write_text(_script(prefix, script))
        path.chmod(0o755)
    for path in place.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent == place / "bin" else 0o644)
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(
        site, quiet=2, stripdir=str(place), prependdir=prefix, invalidation_mode=unchecked, workers=1
    )


def _script(prefix: str, script: metadata.EntryPoint) -> str:
    python = f"{prefix}/bin/python"
    quick = launcher.text(python, (f"{prefix}/{SITE}",), alone=True) if script.name == launcher.PROGRAM else ""
    return quick or SCRIPT.format(python=python, module=script.module, function=script.attr)


def required(name: str) -> list[str]:
    """Distributions that `name` needs, and those need, as far as they are installed: others are for other systems."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        for text in metadata.distribution(waiting.pop()).requires or ():
            match = re.match(r"[A-Za-z0-9._-]+", text)
            if match is None or re.search(r";.*\bextra\s*==", text) or match[0] in found:
                continue
            with contextlib.suppress(metadata.PackageNotFoundError):
                metadata.distribution(match[0])
                found[match[0]] = None
                waiting.append(match[0])
    return list(found)


def _copy_distribution(distribution: metadata.Distribution, site: Path) -> None:
    for file in distribution.files or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue  # scripts, and what is compiled anew
        target = site / Path(*file.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file.locate()), target)


def _copy_own(site: Path) -> None:
    """Ours, from where it runs: an editable distribution lists no files of its packages."""
    tree = Path(__file__).parents[2]
    for path in _own_files(tree):
        target = site / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    info = metadata.distribution(DISTRIBUTION)
    target = site / f"{DISTRIBUTION}-{info.version}.dist-info"
    target.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (target / name).write_text(info.read_text(name) or "")
    (target / "INSTALLER").write_text("fabricctl\n")


def _own_files(tree: Path) -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((tree / package).rglob("*")):
            if path.suffix in SUFFIXES and "__pycache__" not in path.parts and not _is_of_another_python(path):
                yield path


def _is_of_another_python(path: Path) -> bool:
    return path.suffix == ".so" and not path.name.endswith(str(sysconfig.get_config_var("EXT_SUFFIX")))
