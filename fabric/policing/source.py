"""Where policy objects come from, as an interface: a directory, the store, or the Kubernetes API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fabric.errors import FabricError
from fabric.policing.documents import Given


class PolicySourceError(FabricError):
    """A source cannot take or remove an object; the message says why."""


@dataclass(frozen=True, slots=True)
class Content:
    """One complete reading. `objects` by key (`objects.normal`); `problems` by place: what was left out, and why."""

    objects: Mapping[str, Given] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


KEPT = "the last good one stays in force"
NOTHING = "it is not in force"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is wrong with one object of a source. `given` is the object as the source gave it, `reason` the field and
    why, the same on every node; `outcome` what is in force instead. `whole`: not only parts of it are not enforced."""

    key: str
    given: Given
    reason: str
    outcome: str = ""
    whole: bool = True


class PolicySource(Protocol):
    """`content` is None until there was a complete reading; a partial one is never shown.

    `title` is for people and names what was remembered of it. `changed` is called after each change of `content`;
    `problem` says in one line why what is shown is old or missing.
    """

    title: str
    changed: Callable[[], None]

    @property
    def content(self) -> Content | None:
        """The last complete reading."""

    def problem(self) -> str:
        """Why `content` is missing or old, empty when it is neither."""

    async def first(self, remembered: Mapping[str, Given] | None) -> None:
        """Read once, before anything is forwarded, a few seconds at most; `remembered` is what an earlier run knew."""

    async def run(self) -> None:
        """Follow the changes for ever."""

    async def close(self) -> None:
        """Release everything. Idempotent."""

    def refused(self, refusals: Sequence[Refusal]) -> None:
        """All that is wrong with its objects now, for a source that can tell those who wrote them. Returns at once."""

    async def put(self, key: str, value: Mapping[str, Any]) -> str:
        """Write one object; where it went. Raises PolicySourceError."""

    async def remove(self, key: str) -> str:
        """Remove one object; from where. Raises PolicySourceError."""
