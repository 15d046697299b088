"""The compiled modules under AddressSanitizer: built into a temporary copy of the tree, then fuzzed and tested there.

Cython's output is taken over where the build has left one that is up to date: it is the very code that runs.

`PYTHONMALLOC=malloc` lets the sanitizer see the ends of Python's own byte strings too. Leaks are not looked for: the
interpreter keeps memory on purpose.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tun", "encap", "routes", "fabric")
FLAGS = ("-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer", "-fno-strict-aliasing", "-shared", "-fPIC")
# Asked for once, here: sysconfig fills its table on first use, and two threads must not do that at the same time.
INCLUDE = f"-I{sysconfig.get_path('include')}"
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
CYTHON = str(Path(sys.executable).with_name("cython"))
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile")
FUZZ_SCALE = "0.06"
# Those that reach compiled code; the others are Python alone.
FUZZED = (
    "parser", "decapsulation", "decapsulation-lenient", "decapsulation-udp", "decapsulation-by-host",
    "decapsulation-policed", "egress", "egress-by-host", "egress-policed", "split", "merge", "policy",
)  # fmt: skip
TESTS = ("tests/tun", "tests/encap", "tests/routes", "tests/fabric/forward", "tests/fuzz")


def runtime() -> str:
    """Path of the sanitizer's library, which has to be loaded before the interpreter's memory functions are used."""
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    if not os.path.isabs(found.strip()):
        sys.exit("asan: gcc has no libasan.so - install libasan of your gcc, on Debian it comes with gcc")
    return found.strip()


def sources() -> list[str]:
    """Files of the extension modules of our packages, as pyproject.toml lists them."""
    modules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    return [module["sources"][0] for module in modules if module["name"].split(".")[0] in PACKAGES]


def left_by_build(source: str, newest_pxd: float) -> Path | None:
    """The C file that the build made of `source`, unless one of the files it was made of has changed since."""
    made = (ROOT / source).with_suffix(".c")
    made_of = max((ROOT / source).stat().st_mtime, newest_pxd)
    return made if made.exists() and made.stat().st_mtime >= made_of else None


def build(tree: Path, source: str, newest_pxd: float) -> None:
    """Compile one module in place, instrumented. Raises CalledProcessError with the compiler's words."""
    base = source.removesuffix(".py")
    made = left_by_build(source, newest_pxd)
    if made is None:
        subprocess.run([CYTHON, "-3", source], cwd=tree, check=True)
    command = ["gcc", *FLAGS, "-w", INCLUDE, str(made or f"{base}.c"), "-o", f"{base}{SUFFIX}"]
    subprocess.run(command, cwd=tree, check=True)


def run(tree: Path, what: str, *arguments: str) -> bool:
    """A Python command in the instrumented tree; False when it failed or the sanitizer stopped it."""
    environment = os.environ | {
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1:abort_on_error=1:allocator_may_return_null=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    start = time.monotonic()
    code = subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, check=False).returncode
    verdict = "passed" if code == 0 else f"FAILED ({code})"
    print(f"asan: {what}: {verdict} in {time.monotonic() - start:.1f} s", flush=True)
    return code == 0


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fabric-asan-") as directory:
        tree = Path(directory)
        unwanted = shutil.ignore_patterns("*.so", "*.c", "__pycache__", "*.html")
        for package in (*PACKAGES, "tests"):
            shutil.copytree(ROOT / package, tree / package, ignore=unwanted)
        shutil.copy(ROOT / "pyproject.toml", tree)
        start = time.monotonic()
        newest_pxd = max(path.stat().st_mtime for package in PACKAGES for path in (ROOT / package).rglob("*.pxd"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda source: build(tree, source, newest_pxd), sources()))
        print(f"asan: {len(sources())} modules built in {time.monotonic() - start:.1f} s", flush=True)
        good = [
            run(tree, "fuzz", "-W", "error", "-m", "tests.fuzz", "--scale", FUZZ_SCALE, *FUZZED),
            # Nothing is quick or small under the sanitizer: tests that say so in their name are left out.
            run(tree, "tests", *PYTEST, "-m", "not root", "-k", "not quick and not resident", *TESTS),
        ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
