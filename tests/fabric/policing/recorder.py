"""A data path that notes which policy it was given, and a source that a test feeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fabric.errors import DataplaneError
from fabric.forward.policies import Denied
from fabric.policing import objects
from fabric.policing.documents import Given
from fabric.policing.source import Content, Refusal
from fabric.policy import PolicySnapshot
from tests.fabric.fakes import FakeDataplane


class Recorder:
    """`fabric.policing.keeper.PolicyDataplane`."""

    def __init__(self) -> None:
        self.snapshots: list[PolicySnapshot | None] = []
        self.staged: PolicySnapshot | None = None
        self.fail: str = ""
        self.hits: dict[str, int] = {}
        self.would: dict[str, tuple[int, int]] = {}
        self.refused: list[Denied] = []
        self.live: list[dict[str, object]] = []

    @property
    def last(self) -> PolicySnapshot:
        found = self.snapshots[-1]
        assert found is not None
        return found

    def set_policy(self, snapshot: PolicySnapshot | None, staged: PolicySnapshot | None = None) -> None:
        if self.fail:
            raise DataplaneError(self.fail)
        self.snapshots.append(snapshot)
        self.staged = staged

    def flows(self, cursor: int, limit: int) -> tuple[list[dict[str, object]], int | None]:
        after = cursor + limit
        return self.live[cursor:after], after if after < len(self.live) else None

    def rule_hits(self) -> Mapping[str, int]:
        return self.hits

    def staged_hits(self) -> Mapping[str, tuple[int, int]]:
        return self.would

    def denied(self) -> list[Denied]:
        return self.refused


class RecordingDataplane(Recorder, FakeDataplane):
    """Both."""

    def __init__(self, *words: Any) -> None:
        Recorder.__init__(self)
        FakeDataplane.__init__(self, *words)

    def set_policy(self, snapshot: PolicySnapshot | None, staged: PolicySnapshot | None = None) -> None:
        super().set_policy(snapshot, staged)
        self.journal.step("set_policy")


class FedSource:
    """`fabric.policing.source.PolicySource`."""

    def __init__(self, title: str = "test") -> None:
        self.title = title
        self.told: Sequence[Refusal] = ()
        self.content: Content | None = None
        self.changed: Callable[[], None] = lambda: None

    def problem(self) -> str:
        return ""

    async def first(self, remembered: Mapping[str, Given] | None) -> None:
        return None

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        return None

    def feed(self, *values: Mapping[str, Any]) -> None:
        self.content = Content({key: Given(value) for key, value in map(objects.normal, values)})
        self.changed()

    def refused(self, refusals: Sequence[Refusal]) -> None:
        self.told = refusals

    async def put(self, key: str, value: Mapping[str, Any]) -> str:
        self.content = Content({**(self.content.objects if self.content else {}), key: Given(value)})
        self.changed()
        return "here"

    async def remove(self, key: str) -> str:
        assert self.content is not None
        self.content = Content({k: v for k, v in self.content.objects.items() if k != key})
        self.changed()
        return "here"


def network_policy(name: str, namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    """Without more: nothing comes in to any pod of the namespace."""
    spec = {"podSelector": {}, **spec}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def pod(name: str, address: str, node: str = "n1", namespace: str = "shop", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node},
        "status": {"podIPs": [{"ip": address}]},
    }
