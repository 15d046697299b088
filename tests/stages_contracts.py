"""Import contracts: import-linter holds those of `pyproject.toml`; this file holds the same for `cimport`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("tun", "encap", "routes")
OURS = {*LIBRARIES, "fabric"}
PXD_LINE = re.compile(r"^\s*(?:from\s+([\w.]+)\s+cimport\b|cimport\s+([\w.]+))", re.MULTILINE)


def cimports_of(file: Path) -> Iterator[str]:
    """Modules that a .pxd or a pure-mode .py cimports, by dotted name."""
    text = file.read_text()
    if file.suffix == ".pxd":
        for match in PXD_LINE.finditer(text):
            yield match[1] or match[2]
        return
    prefix = "cython.cimports."
    for node in ast.walk(ast.parse(text, str(file))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            if name.startswith(prefix):
                yield name.removeprefix(prefix)


def broken_cimports(root: Path = ROOT) -> list[str]:
    """One line for each cimport by which a library knows another package of ours."""
    broken = []
    for package in LIBRARIES:
        for file in sorted([*(root / package).rglob("*.py"), *(root / package).rglob("*.pxd")]):
            for name in cimports_of(file):
                other = name.partition(".")[0]
                if other in OURS and other != package:
                    broken.append(f"{file.relative_to(root)} cimports {name}: {package} may know no other package")
    return broken


def main() -> int:
    broken = broken_cimports()
    for line in broken:
        print(line)
    print(f"cimports: {len(broken)} contracts broken")
    linter = subprocess.run([str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], cwd=ROOT, check=False)
    return 1 if broken or linter.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
