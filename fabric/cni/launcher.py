"""The program that container runtimes execute, as `fabricctl cni install` writes it. Pure but for `here`.

A console script of a virtual environment starts Python with its `site` module, which reads every `.pth` file and, in an
editable installation, loads import hooks: 17 to 50 ms of a program that runs for every pod (ADR 16). The launcher goes
without (`-S`), isolated from the environment and the current directory (`-I`), with the few directories that hold our
packages on its path. No garbage is collected in a process that lives for a moment, and the interpreter is not taken
apart at its end: the result was written, and the kernel frees the rest. Where the packages are not found any more (the
environment was made anew by another Python), the console script runs instead.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("fabric", "routes", "tun", "pytun", "pyroute2")
"""What the plugin imports; the standard library is always there."""
MAX_SHEBANG = 127
"""Bytes of a script's first line that every kernel takes (BINPRM_BUF_SIZE before Linux 5.1)."""
PROGRAM = "fabric-cni"
MARK = "# written by fabricctl cni install"


def text(interpreter: str, directories: tuple[str, ...], alone: bool = False) -> str:
    """The launcher; empty when the kernel could not run it: the interpreter's path is too long or has a space.

    `alone`: it takes the place of the console script, so there is none to run instead.
    """
    first = f"#!{interpreter} -IS"
    if len(first.encode()) > MAX_SHEBANG or any(letter.isspace() for letter in interpreter):
        return ""
    program = str(Path(interpreter).with_name(PROGRAM))
    start = "from fabric.cni.main import main"
    instead = ("try:", f"    {start}", "except ImportError:", f"    os.execv({program!r}, [{program!r}])")
    lines = (
        first,
        MARK,
        "import gc",
        "import os",
        "import sys",
        "gc.disable()",
        f"sys.path += {list(directories)!r}",
        *((start,) if alone else instead),
        "os._exit(main())",
    )
    return "\n".join(lines) + "\n"


def here() -> str:
    """The launcher for this interpreter and the packages that it imports; empty as for `text`."""
    found = (find_spec(name) for name in PACKAGES)
    places = (spec.origin for spec in found if spec is not None and spec.origin)
    directories = dict.fromkeys(str(_root(Path(place))) for place in places)
    return text(sys.executable, tuple(directories))


def _root(origin: Path) -> Path:
    return origin.parent.parent if origin.name == "__init__.py" else origin.parent
