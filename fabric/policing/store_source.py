"""etcd or SQLite as source of policies: one key for each object below `<prefix>/policy/`, its value the object as JSON.

The key's rest is the object's own name, `apiVersion/kind/namespace/name` (without the third part where the kind has no
namespace); a value that names itself otherwise is a problem and not used. A value that cannot be read keeps the last
good one. While the store is away what was last known stays, and only a store that once had an object can remove it: one
that was made anew and is empty opens nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fabric import jsonsafe
from fabric.errors import ConflictError, StoreError, StoreUnavailableError
from fabric.policing import objects
from fabric.policing.documents import Given
from fabric.policing.source import Content, PolicySourceError, Refusal
from fabric.policy import PolicyError
from fabric.store.base import Snapshot, Store, Unavailable

log = logging.getLogger("fabric.policy")
FIRST_SECONDS = 3.0
TRIES = 3
MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Row:
    """What one key of the store has: `given` is its last good object under `key`, `problem` why the value is none."""

    value: bytes
    key: str = ""
    given: Given | None = None
    problem: str = ""


class StorePolicySource:
    """A `PolicySource` over an open store. `prefix` ends with a slash; `kind` and `url` are the store's for people."""

    def __init__(self, store: Store, prefix: str, kind: str, url: str) -> None:
        self.title = f"store {kind} {url}"
        self.content: Content | None = None
        self.changed: Callable[[], None] = lambda: None
        self._store = store
        self._prefix = prefix
        self._away = ""
        self._store_id = ""
        self._rows: dict[str, _Row] = {}  # by the store's key
        self._kept: dict[str, Given] = {}  # of an earlier store, by the object's key
        self._said: set[str] = set()

    def problem(self) -> str:
        return self._away

    async def first(self, remembered: Mapping[str, Given] | None) -> None:
        last = ""
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                while True:
                    try:
                        self._take(await self._store.list(self._prefix))
                        return
                    except StoreUnavailableError as error:
                        last = str(error)
                        await asyncio.sleep(0.1)
        except TimeoutError:
            self._away = last or f"{self.title} does not answer"
        if remembered:
            log.warning("%s: going on with the policies of the last run", self._away)
            self._kept = dict(remembered)
            self.content = Content(remembered)

    async def run(self) -> None:
        async with contextlib.aclosing(self._store.watch(self._prefix)) as items:  # type: ignore[type-var]
            async for item in items:
                if isinstance(item, Unavailable):
                    self._away = item.reason
                else:
                    self._take(item)

    async def close(self) -> None:
        return None  # the store is somebody else's

    def _take(self, snapshot: Snapshot) -> None:
        self._away = ""
        anew = bool(self._store_id) and snapshot.store_id != self._store_id
        if anew:
            self._kept |= {key: given for key, given in self._by_object().items() if key not in self._kept}
        elif not self._store_id and self._kept:
            self._kept = {}  # remembered ones: the store has spoken, and it is complete
        self._store_id = snapshot.store_id
        self._rows = {name: self._row(name, entry.value) for name, entry in snapshot.entries.items()}
        found = self._by_object()
        self._kept = {key: given for key, given in self._kept.items() if key not in found}
        if anew and self._kept:
            log.warning("policy: the store was made anew: %d policies that it does not have stay in force; write them "
                        "again, or delete them", len(self._kept))  # fmt: skip
        self._show()

    def _show(self) -> None:
        problems = {name: row.problem for name, row in self._rows.items() if row.problem}
        self._say(problems)
        self.content = Content({**self._kept, **self._by_object()}, problems)
        self.changed()

    def _by_object(self) -> dict[str, Given]:
        return {row.key: row.given for row in self._rows.values() if row.given is not None}

    def _row(self, name: str, value: bytes) -> _Row:
        old = self._rows.get(name) or _Row(b"")
        if old.value == value:
            return old
        try:
            key, document = objects.normal(jsonsafe.loads(value, max_bytes=MAX_BYTES))
        except (jsonsafe.JsonError, PolicyError) as error:
            return replace(old, value=value, problem=f"{error}: it is not used")
        if self._name(key) != name:
            problem = f"it is {objects.title(key)}, which belongs at {self._name(key)}: it is not used"
            return replace(old, value=value, problem=problem)
        return _Row(value, key, Given(document))

    def _say(self, problems: Mapping[str, str]) -> None:
        lines = {f"{name}: {text}" for name, text in problems.items()}
        for line in sorted(lines - self._said):
            log.warning("policy: %s", line)
        self._said = lines

    def _name(self, key: str) -> str:
        """The store's key of an object."""
        return self._prefix + key.replace("//", "/")

    # -- writing

    def refused(self, refusals: Sequence[Refusal]) -> None:
        return None  # the log and `fabricctl policy list` say it

    async def put(self, key: str, value: Mapping[str, Any]) -> str:
        name = self._name(key)
        data = jsonsafe.dumps(value).encode()
        await self._write(name, lambda revision: self._store.put(name, data, revision, None))
        return f"{self.title}, key {name}"

    async def remove(self, key: str) -> str:
        name = self._name(key)
        if await self._write(name, lambda revision: self._store.delete(name, revision), must_exist=True):
            return f"{self.title}, key {name}"
        # An object of an earlier store, perhaps not told of the new one yet.
        known = [self._rows.pop(name, None), self._kept.pop(key, None)]
        if not any(known):
            raise PolicySourceError(f"{objects.title(key)} is not in {self.title}")
        self._show()
        return "memory"

    async def _write(self, name: str, act: Callable[[int], Any], must_exist: bool = False) -> bool:
        """Against the key's revision as it is now; somebody else's write in between has us look again. False when the
        key has to exist and does not."""
        for _ in range(TRIES):
            try:
                found = (await self._store.list(name)).entries.get(name)
                if found is None and must_exist:
                    return False
                await act(found.revision if found else 0)
                return True
            except ConflictError:
                continue
            except StoreError as error:
                raise PolicySourceError(str(error)) from None
        raise PolicySourceError(f"{name} is being written by others: try again")
