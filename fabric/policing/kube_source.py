"""The Kubernetes API as source of policies: five kinds of objects, each listed and then watched.

Nothing is shown before every kind was listed whole, so that a policy never meets pods or namespaces that are only known
in part. Kinds are followed independently, as the API offers it: a policy may be seen a moment before the pod that it is
about. While the API is away what was last known stays; a start without the API shows what was remembered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from fabric.errors import StoreError
from fabric.policing import objects
from fabric.policing.documents import Given
from fabric.policing.kube_events import EventReporter, Pace, Refused
from fabric.policing.source import KEPT, NOTHING, Content, PolicySourceError, Refusal
from fabric.store.kube.api import Api, ForbiddenError, NotFoundError
from fabric.store.kube.nodes import Bad
from fabric.store.kube.objects import KINDS, Kept, ObjectKind, ObjectTable
from fabric.store.kube.reflector import Reflector, Timing

log = logging.getLogger("fabric.policy")
FIRST_SECONDS = 3.0


class _Followed:
    """One kind: its table, its reflector, and what was last made of it."""

    def __init__(
        self,
        api: Api,
        kind: ObjectKind,
        changed: Callable[[], None],
        lost: Callable[[], None],
        timing: Timing | None,
    ) -> None:
        self.kind = kind
        self._lost = lost
        self.table = ObjectTable(kind.kind)
        self.reflector = Reflector(api, self.table, changed, self._heard, timing, kind, kind.optional)
        self.away = ""
        self._made: dict[str, tuple[Kept, str, Given]] = {}
        self._found: dict[str, Given] = {}
        self._number = -1

    def _heard(self, reason: str | None) -> None:
        self.away = reason or ""
        if reason:
            self._lost()

    def givens(self) -> dict[str, Given]:
        """By key; what has not changed is the same Given as before, so that nobody has to compare it."""
        if self._number == self.table.number:
            return self._found
        made, found = {}, {}
        for name, kept in self.table.objects().items():
            known = self._made.get(name)
            if known is None or known[0].value is not kept.value:
                key, value = objects.normal(kept.value)
                known = kept, key, Given(value)
            made[name] = known
            found[known[1]] = known[2]
        self._made, self._found, self._number = made, found, self.table.number
        return found

    def refused(self, refusals: Mapping[str, Refusal]) -> Iterator[Refused]:
        """What is wrong with policies of this kind: those among `refusals`, by key, that are about what we have now,
        and those that cannot be read."""
        if self.kind.kind in objects.AROUND:
            return
        for name, (made, key, given) in self._made.items() if refusals else ():
            refusal, kept = refusals.get(key), self.table.objects().get(name)
            if refusal is not None and refusal.given is given and kept is not None and kept.value is made.value:
                yield self._refused(kept, refusal.reason, refusal.outcome, refusal.whole)
        for name, bad in self.table.bad().items():
            if not name.endswith("/") and name:  # without a name there is nothing to point at
                yield self._refused(bad, bad.problem, KEPT if name in self.table.objects() else NOTHING)

    def _refused(self, item: Kept | Bad, reason: str, outcome: str, whole: bool = True) -> Refused:
        namespace, _, name = item.name.partition("/")
        return Refused(
            self.kind.version, self.kind.kind, namespace, name, item.uid, item.generation, item.version, reason,
            outcome, whole,
        )  # fmt: skip


class KubePolicySource:
    """A `PolicySource` on the node named `node`. `timing` is the reflectors', `pace` that of Events about what is
    refused."""

    def __init__(self, api: Api, node: str, timing: Timing | None = None, pace: Pace | None = None) -> None:
        self.title = source_title(api)
        self.changed: Callable[[], None] = lambda: None
        self._decided = asyncio.Event()  # whether the API answers
        self._followed = [_Followed(api, kind, self._news, self._decided.set, timing) for kind in KINDS]
        self._events = EventReporter(api, node, self._nodes, pace)
        self._remembered: Content | None = None
        self._content: Content | None = None
        self._stale = True
        self._tasks: list[asyncio.Task[None]] = []
        self._complete = asyncio.Event()

    @property
    def content(self) -> Content | None:
        """Made when it is asked for: many events may lie between two questions."""
        if not self._complete.is_set():
            return self._remembered
        if self._stale:
            self._stale = False
            found: dict[str, Given] = {}
            problems: dict[str, str] = {}
            for item in self._followed:
                found.update(item.givens())
                problems.update({f"{item.kind.kind} {n}": text for n, text in item.table.problems().items()})
            self._content = Content(found, problems)
        return self._content

    def problem(self) -> str:
        return next((item.away for item in self._followed if item.away), "")

    async def first(self, remembered: Mapping[str, Given] | None) -> None:
        self._start()
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                await (self._decided if remembered else self._complete).wait()
        except TimeoutError:
            pass
        if remembered and not self._complete.is_set():
            log.warning("%s: going on with the policies of the last run", self.problem() or f"{self.title} is slow")
            self._remembered = Content(remembered)

    async def run(self) -> None:
        self._start()
        try:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task  # none of them ever ends by itself: whatever it raises is the supervisor's to say
        finally:
            await self.close()

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self) -> None:
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(item.reflector.run(), name=f"policy {item.kind.kind}") for item in self._followed
            ]
            self._tasks.append(loop.create_task(self._events.run(), name="policy events"))

    def _news(self) -> None:
        self._stale = True
        if all(item.reflector.lists for item in self._followed):
            self._complete.set()
            self._decided.set()
            self._remembered = None
            self.changed()

    def refused(self, refusals: Sequence[Refusal]) -> None:
        by_key = {item.key: item for item in refusals}
        self._events.tell(found for item in self._followed for found in item.refused(by_key))

    def _nodes(self) -> int:
        return sum(len(item.table.objects()) for item in self._followed if item.kind.kind == "Node")

    async def put(self, key: str, value: Mapping[str, Any]) -> str:
        self._no_writes()

    async def remove(self, key: str) -> str:
        self._no_writes()

    def _no_writes(self) -> NoReturn:
        raise PolicySourceError("policies are the cluster's: use kubectl apply and kubectl delete")


def source_title(api: Api) -> str:
    """What the source is called, for people and in the memory of what was in force."""
    return f"Kubernetes API {api.access.endpoint}"


async def allowed(api: Api) -> bool | None:
    """Whether this API lets us read policies and all that they are about; None when it does not say."""
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            for kind in KINDS:
                try:
                    async with api.session(kind) as session:
                        await session.page("", 1)
                except NotFoundError:
                    if not kind.optional:
                        return False
    except ForbiddenError:
        return False
    except (StoreError, TimeoutError):
        return None
    return True
