"""Events in the Kubernetes API about policies that are refused: `kubectl events --for networkpolicy/NAME` shows why.

Every node reads the same objects and refuses them for the same reasons, so every node offers the same Event, under a
name that is made of the object's uid, its generation and the reason: the first one creates it, and all others hear that
it exists (409), which is as good. Another mistake, or the same one again after the spec was right, has another name.

The API forgets Events after an hour; one whose object is still refused then is offered again between one and two hours
after the last offer, at a moment that is not everybody's.

Limits: the first MOST_OBJECTS refused objects by name; of the whole cluster about `Pace.rate` requests a second,
whatever happens, since a node waits the longer between two of its own the more nodes there are. An offer that fails
waits, longer each time, and for that long nothing else is offered; only what is still refused then is offered at all.
A mistake in an annotation that is made again within the hour has its old Event.
Source: Kubernetes API, `Event` of v1; `pkg/apis/core/validation/events.go` (lengths, namespaces).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from urllib.parse import quote

from fabric.errors import ConflictError, StoreError, StoreUnavailableError
from fabric.store.kube.api import Api, ApiUnavailableError, ForbiddenError
from fabric.store.kube.reflector import Backoff

log = logging.getLogger("fabric.policy")
COMPONENT = "podfabric"
CLUSTER_NAMESPACE = "default"
MOST_OBJECTS = 100
MAX_MESSAGE = 1024
MAX_INSTANCE = 128
NAME_PART = 80


@dataclass(frozen=True, slots=True)
class Refused:
    """An object of the API and what is wrong with it. `reason` is the same on every node; `outcome` is what this node
    does now. `whole`: not only a part of it is not enforced. `version` is its resourceVersion as a number."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    generation: int
    version: int
    reason: str
    outcome: str
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds, but `rate`: requests a second of all nodes together. `repeat` is the API's memory; `forbidden` the wait
    after a 403, `pause` the first and the longest one after another failure."""

    rate: float = 10.0
    repeat: float = 3600.0
    forbidden: float = 600.0
    pause: tuple[float, float] = (1.0, 300.0)


def name_of(refused: Refused) -> str:
    """The Event's name, the same on every node."""
    which = refused.uid, str(refused.generation), refused.kind, refused.namespace, refused.name
    digest = hashlib.sha256("\0".join((*which, refused.reason)).encode("utf-8", "replace")).hexdigest()[:16]
    return f"{refused.name[:NAME_PART].rstrip('.-')}.{digest}"


def event_of(refused: Refused, node: str, now: datetime) -> dict[str, Any]:
    """The Event as `node` writes it at `now` (UTC)."""
    involved = {
        "apiVersion": refused.api_version, "kind": refused.kind, "namespace": refused.namespace, "name": refused.name,
        "uid": refused.uid, "resourceVersion": str(refused.version) if refused.version else "",
    }  # fmt: skip
    second = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name_of(refused), "namespace": refused.namespace or CLUSTER_NAMESPACE},
        "involvedObject": {key: value for key, value in involved.items() if value},
        "type": "Warning",
        "reason": "PolicyRefused" if refused.whole else "PolicyPartlyEnforced",
        "message": _message(refused),
        "action": "Enforcing",
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "firstTimestamp": second,
        "lastTimestamp": second,
        "count": 1,
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node[:MAX_INSTANCE],
    }


def _message(refused: Refused) -> str:
    """Within the API's limit, which counts bytes; the end says what is in force and stays."""
    end = f": {refused.outcome}" if refused.outcome else ""
    room = MAX_MESSAGE - len(end.encode())
    text = refused.reason.encode("utf-8", "replace")
    if len(text) > room:
        text = text[: room - 3].decode("utf-8", "ignore").encode() + b"..."
    return text.decode() + end


class EventReporter:
    """Of the node named `node`. `nodes` tells how many nodes there are, all of which offer the same."""

    def __init__(self, api: Api, node: str, nodes: Callable[[], int], pace: Pace | None = None) -> None:
        self._api = api
        self._node = node
        self._nodes = nodes
        self._pace = pace or Pace()
        self._rng = random.Random()
        self._backoff = Backoff(*self._pace.pause, self._rng)
        self._wanted: dict[str, Refused] = {}
        self._due: dict[str, float] = {}  # when to offer each of them
        self._wake = asyncio.Event()
        self._failing = False

    def tell(self, refused: Iterable[Refused]) -> None:
        """These are refused now, and nothing else is. Returns at once."""
        first = sorted(refused, key=lambda item: (item.namespace, item.name, item.kind))[:MOST_OBJECTS]
        self._wanted = {name_of(item): item for item in first}
        self._due = {name: self._due.get(name, 0.0) for name in self._wanted}
        self._wake.set()

    async def run(self) -> None:
        """Offer what is due, for ever."""
        while True:
            await self._something_due()
            await asyncio.sleep(self._rng.uniform(0.0, 2.0) * max(self._nodes(), 1) / self._pace.rate)
            due = self._ready()
            if due:
                await asyncio.sleep(await self._offer(self._rng.choice(due)))

    async def _something_due(self) -> None:
        while not self._ready():
            self._wake.clear()
            seconds = min(self._due.values()) - monotonic() if self._due else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()

    def _ready(self) -> list[str]:
        now = monotonic()
        return [name for name, due in self._due.items() if due <= now]

    async def _offer(self, name: str) -> float:
        """Write one Event; how many seconds to wait then. What fails is said once, until one succeeds."""
        event = event_of(self._wanted[name], self._node, datetime.now(UTC))
        path = f"/api/v1/namespaces/{quote(event['metadata']['namespace'], safe='')}/events"
        try:
            with contextlib.suppress(ConflictError):
                await self._api.create(path, event)
            self._failing = False
        except ForbiddenError as error:
            self._say(error)
            return self._pace.forbidden
        except StoreUnavailableError as error:
            self._say(error)
            return self._backoff.pause(error.retry_after if isinstance(error, ApiUnavailableError) else 0.0)
        except StoreError as error:  # trying again does not change it: no namespace, not valid
            self._say(error)
        except Exception:  # whatever it is, it is not to end the policies' source
            log.exception("policy: the Event %s cannot be written", name)
        self._backoff.reset()
        if name in self._due:
            self._due[name] = monotonic() + self._pace.repeat * self._rng.uniform(1.0, 2.0)
        return 0.0

    def _say(self, error: StoreError) -> None:
        if not self._failing:
            log.warning("policy: Events about refused policies are not written: %s", error)
        self._failing = True
