"""`--policy-dir`: YAML and JSON files of one directory, watched by inotify(7).

Theory of operation. Every event leads to one look at all files (stat(2)); what is different is read. Names that begin
with a dot and those without an ending of `.yaml`, `.yml`, `.json` are not looked at; links are followed, so a mounted
ConfigMap works. A file that somebody has open for writing is not read yet; where the file system cannot say that, one
that nobody has touched for UNTOUCHED_SECONDS is whole. A file that is gone counts for SETTLE_SECONDS, since editors
rename the old one away before they write the new one. One that cannot be read or parsed keeps its last good objects;
where it never had any nothing is shown, since nobody knows what it would have denied. The same holds for the whole
directory, whose last good objects are those of the last run.

Of two objects of one name the file that is first by name wins, and the other is a problem. Limits: MAX_FILES files of
`documents.MAX_BYTES`, no directories below. Writing (`put`, `remove`) makes one file for each object.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import signal
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any

from fabric.files import write_atomic
from fabric.policing import objects
from fabric.policing.documents import MAX_BYTES, DocumentError, Given, parse_documents
from fabric.policing.source import Content, PolicySourceError, Refusal
from fabric.policy import PolicyError
from fabric.store.inotify import FINISHED, DirectoryWatch

log = logging.getLogger("fabric.policy")
ENDINGS = (".yaml", ".yml", ".json")
SETTLE_SECONDS = 0.1
UNTOUCHED_SECONDS = 1.0
RETRY_SECONDS = 1.0
FIRST_SECONDS = 2.0
MAX_FILES = 10_000
F_SETSIG = 10  # linux/fcntl.h
Signature = tuple[int, int, int, int, int]
Objects = dict[str, Given]


@dataclass(slots=True)
class _File:
    """What is known of one file. `objects` is None while it was never read whole."""

    signature: Signature | None = None
    objects: Objects | None = None
    problem: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    missing_since: float | None = None


class PolicyDirectory:
    """A `PolicySource`. `clock` gives Unix time in seconds, as files' times are."""

    def __init__(self, path: Path, clock: Callable[[], float] = time) -> None:
        self.title = f"directory {path}"
        self.content: Content | None = None
        self.changed: Callable[[], None] = lambda: None
        self._path = path
        self._clock = clock
        self._files: dict[str, _File] = {}
        self._problem = ""
        self._said: set[str] = set()
        self._waiting = False  # something is not certain yet: look again soon
        self._looking = asyncio.Lock()

    def problem(self) -> str:
        return self._problem

    async def first(self, remembered: Mapping[str, Given] | None) -> None:
        for key, given in (remembered or {}).items():
            known = self._files.setdefault(given.file, _File())
            known.objects = {**(known.objects or {}), key: given}
        await self.look(set())
        for _ in range(int(FIRST_SECONDS / SETTLE_SECONDS)):
            if not self._waiting:
                break
            await asyncio.sleep(SETTLE_SECONDS)
            await self.look(set())
        if self.content is None and remembered and self._problem:
            log.warning("%s: going on with the policies of the last run", self._problem)
            self._show()

    async def run(self) -> None:
        while True:
            try:
                watch = DirectoryWatch(FINISHED)
            except OSError as error:
                log.warning("policy: no inotify (%s): looking again in %g s", error.strerror, RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
                await self.look(set())
                continue
            try:
                watch.watch(self._path)
                await self._follow(watch)
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)  # `look` says what is wrong with the directory
            finally:
                watch.close()
            await self.look(set())

    async def _follow(self, watch: DirectoryWatch) -> None:
        """Until the directory itself goes."""
        loop = asyncio.get_running_loop()
        news = asyncio.Event()
        loop.add_reader(watch.fileno(), news.set)
        try:
            await self.look(set())  # what changed before the watch stood
            while True:
                try:
                    async with asyncio.timeout(SETTLE_SECONDS if self._waiting else None):
                        await news.wait()
                except TimeoutError:
                    pass
                news.clear()
                names = watch.read()
                await self.look(names)
                if "" in names:
                    return
        finally:
            loop.remove_reader(watch.fileno())

    async def close(self) -> None:
        return None  # `run` closes what it opens

    async def look(self, finished: set[str]) -> None:
        """One look at all files; those in `finished` are known to be whole."""
        async with self._looking:
            changed = await asyncio.to_thread(self._scan, finished)
            whole = all(known.objects is not None for known in self._files.values())
            if not self._problem and whole and (changed if self.content else not self._waiting):
                self._show()
            self._say()

    def _scan(self, finished: set[str]) -> bool:
        """Bring `_files` up to date; whether objects or problems of one are different."""
        self._waiting = False
        try:
            names = sorted(n for n in os.listdir(self._path) if n.endswith(ENDINGS) and not n.startswith("."))
        except OSError as error:
            self._problem = f"--policy-dir {self._path} cannot be read: {error.strerror}"
            return False
        if len(names) > MAX_FILES:
            self._problem = f"--policy-dir {self._path} has {len(names)} files, more than {MAX_FILES}"
            return False
        changed, self._problem = bool(self._problem), ""
        for name in names:
            known = self._files.setdefault(name, _File())
            known.missing_since = None
            changed |= self._look_at(name, known, name in finished)
        now = self._clock()
        for name in self._files.keys() - set(names):
            known = self._files[name]
            if known.missing_since is None:
                known.missing_since = now
            if 0 <= now - known.missing_since < SETTLE_SECONDS:
                self._waiting = True
            else:
                del self._files[name]
                changed = True
        return changed

    def _look_at(self, name: str, known: _File, finished: bool) -> bool:
        before = known.problem
        try:
            signature = _signature(os.stat(self._path / name))
            if signature == known.signature and not before:
                return False
            data = self._read(self._path / name, finished)
            if data is None or _signature(os.stat(self._path / name)) != signature:
                self._waiting = True
                return False
            known.objects, known.refused = _objects(parse_documents(data, name))
            known.signature, known.problem = signature, ""
            return True
        except FileNotFoundError:  # since listdir(2), or a link to nothing
            self._waiting = True
            known.problem = "leads nowhere" if (self._path / name).is_symlink() else before
        except OSError as error:
            known.problem = f"cannot be read: {error.strerror or error}"
        except DocumentError as error:
            known.problem = str(error)
        known.signature = None
        return known.problem != before

    def _read(self, path: Path, finished: bool) -> bytes | None:
        """The content, None while somebody writes it. Raises OSError."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(0, "it is not a regular file")
            written = _is_being_written(handle)
            if written is None and not finished:  # this file system does not say
                written = 0 <= self._clock() - found.st_mtime < UNTOUCHED_SECONDS
            return None if written else file.read(MAX_BYTES + 1)

    def _show(self) -> None:
        found: Objects = {}
        problems: dict[str, str] = {}
        for name in sorted(self._files):
            known = self._files[name]
            if known.problem:
                problems[name] = known.problem
            problems.update(known.refused)
            for key, given in (known.objects or {}).items():
                if key in found:
                    problems[given.place()] = f"{objects.title(key)} is in {found[key].place()} already"
                else:
                    found[key] = given
        self.content = Content(found, problems)
        self.changed()

    def _say(self) -> None:
        """What is wrong now and was not at the last look."""
        lines = [self._problem] if self._problem else []
        for name, known in self._files.items():
            if known.problem:
                kept = known.objects is not None
                then = "its last good objects stay" if kept else "pods stay closed until it can be read"
                lines.append(f"{name}: {known.problem}: {then}")
        lines += [f"{place}: {text}" for place, text in (self.content.problems if self.content else {}).items()
                  if place not in self._files]  # fmt: skip
        for line in lines:
            if line not in self._said:
                log.warning("policy: %s", line)
        self._said = set(lines)

    # -- writing

    def refused(self, refusals: Sequence[Refusal]) -> None:
        return None  # the log and `fabricctl policy list` say it

    async def put(self, key: str, value: Mapping[str, Any]) -> str:
        import yaml

        name = self._file_of(key) or file_name(key)
        text = yaml.safe_dump(dict(value), sort_keys=False)
        await asyncio.to_thread(self._write, name, text.encode())
        await self.look({name})
        return str(self._path / name)

    async def remove(self, key: str) -> str:
        name = self._file_of(key)
        if not name:
            raise PolicySourceError(f"{objects.title(key)} is not in {self._path}")
        try:
            os.unlink(self._path / name)
        except OSError as error:
            raise PolicySourceError(f"{self._path / name} cannot be removed: {error.strerror}") from None
        async with self._looking:
            self._files.pop(name, None)
            self._show()
        return str(self._path / name)

    def _file_of(self, key: str) -> str:
        """The name of the file that has this object alone, empty when none has it. Raises PolicySourceError."""
        given = self.content.objects.get(key) if self.content else None
        if given is None:
            return ""
        if not given.alone:
            raise PolicySourceError(
                f"{objects.title(key)} is at {given.place()} beside other objects: change that file instead"
            )
        return given.file

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_atomic(self._path / name, data, 0o644, 0o755)
        except OSError as error:
            raise PolicySourceError(f"{self._path / name} cannot be written: {error.strerror}") from None


def file_name(key: str) -> str:
    """Where `put` writes an object: `networkpolicy-default-web.yaml`, `calico-networkpolicy-default-web.yaml`."""
    version, kind, namespace, name = key.rsplit("/", 3)
    family = ["calico"] if "projectcalico" in version else []
    words = "-".join([*family, kind.lower(), *([namespace] if namespace else []), name])
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in words) + ".yaml"


def _objects(givens: list[Given]) -> tuple[Objects, dict[str, str]]:
    """By key; what has no key, or one that is there already, by place with the reason."""
    found: Objects = {}
    refused: dict[str, str] = {}
    for given in givens:
        try:
            key, value = objects.normal(given.value)
        except PolicyError as error:
            refused[given.place()] = str(error)
            continue
        if key in found:
            refused[given.place()] = f"{objects.title(key)} is in {found[key].place()} already"
            continue
        found[key] = Given(value, given.file, given.line, given.lines, given.alone)
    return found, refused


def _signature(found: os.stat_result) -> Signature:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_being_written(handle: int) -> bool | None:
    """Whether somebody has the file open for writing; None where that cannot be known.

    A read lease is only given when nobody has (fcntl(2)). Who opens it in the moment that we hold the lease waits that
    long; the signal that tells us of that is one that does nothing.
    """
    try:
        fcntl.fcntl(handle, F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    return False
