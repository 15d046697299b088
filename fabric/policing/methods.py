"""What the control socket's methods about policy do, for a daemon that enforces one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from fabric.errors import FabricError
from fabric.metrics.latency import Distribution
from fabric.policing import answers, objects
from fabric.policing import diff as difference
from fabric.policing.keeper import PolicyKeeper
from fabric.policing.source import PolicySource
from fabric.policy import PolicyError
from fabric.policy.parse import parse_object

APPLY_SECONDS = 3.0
FLOWS_PAGE = 1000
MOST_FLOWS = 200_000
"""Connections that `policy.diff` looks at."""


def status(keeper: PolicyKeeper) -> dict[str, Any]:
    """For `fabricctl status`."""
    accepted = sum(not objects.is_around(key) for key in keeper.outcome.accepted)
    return {
        "sources": [source.title for source in keeper.sources],
        "snapshot": keeper.number,
        "objects": accepted,
        "refused": len(keeper.outcome.refused),
        "staged": len(keeper.outcome.staged),
        "compilations": keeper.compilations,
        "compile_seconds": round(keeper.compile_seconds, 6),
        "latency": latency(keeper.latency.distribution()),
        "problems": keeper.problems(),
    }


def latency(found: Distribution) -> dict[str, Any]:
    """A histogram as Prometheus has it: how many were at most each bound (seconds), their number and sum."""
    sums = list(accumulate(found.counts))
    buckets = {f"{bound:g}": count for bound, count in zip(found.bounds, sums, strict=False)}
    return {"buckets": buckets, "count": sums[-1], "sum": round(found.total, 6)}


def listing(keeper: PolicyKeeper, params: Mapping[str, Any]) -> dict[str, Any]:
    """All policy objects, and what is wrong with the sources."""
    return {
        "snapshot": keeper.number,
        "sources": [source.title for source in keeper.sources],
        "objects": answers.listing(keeper.outcome, keeper.seen()),
        "problems": keeper.problems(),
    }


async def explain(keeper: PolicyKeeper, params: Mapping[str, Any]) -> dict[str, Any]:
    """`source`, `target`: addresses or pods; `port`: `80`, `53/udp`, `icmp`."""
    source, target, port = (_text(params, name, "policy.explain") for name in ("source", "target", "port"))
    if not keeper.number:
        raise FabricError("no policy is in force yet, pods are closed: see fabricctl policy list")
    return await keeper.ask(lambda known: answers.explanation(known, source, target, port, keeper.services))


async def diff(keeper: PolicyKeeper, params: Mapping[str, Any]) -> dict[str, Any]:
    """`objects`: a list; without it the staged policies: which live flows of this node they would cut."""
    values = params.get("objects")
    if values is None:
        values = [given.value for given in keeper.outcome.staged.values()]
    if not isinstance(values, list) or not values:
        raise FabricError("policy.diff: there is nothing to compare: give objects, or have staged policies")
    flows: list[dict[str, object]] = []
    cursor: int | None = 0
    while cursor is not None and len(flows) < MOST_FLOWS:
        page, cursor = keeper.dataplane().flows(cursor, FLOWS_PAGE)
        flows += page
        await asyncio.sleep(0)
    try:
        changes = difference.changes_of(values)
        return await keeper.ask(lambda known: difference.difference(known, changes, flows, keeper.services))
    except PolicyError as error:
        raise FabricError(f"refused: {error}") from None


def hits(keeper: PolicyKeeper, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How many flows each rule has decided, and each rule of the staged policies would have decided."""
    dataplane = keeper.dataplane()
    staged = answers.staged_hits(dataplane.staged_hits(), keeper.staged_rules(), keeper.rules())
    return answers.hits(dataplane.rule_hits(), keeper.rules()) + staged


def denied(keeper: PolicyKeeper, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The last flows that policy has refused, a sample."""
    return answers.denied(keeper.dataplane().denied(), keeper.rules())


async def apply(keeper: PolicyKeeper, params: Mapping[str, Any]) -> dict[str, Any]:
    """`object`: written into the source, then waited for."""
    value = params.get("object")
    try:
        key, value = objects.normal(value if isinstance(value, dict) else {})
        if objects.is_around(key):
            objects.read_around(value)
        else:
            parse_object(value)
    except PolicyError as error:
        raise FabricError(f"refused: {error}") from None
    existed = key in keeper.seen()
    place = await _writable(keeper, key).put(key, value)
    done = await _taken(keeper, key, value)
    return {"object": objects.title(key), "place": place, "existed": existed, "in_force": done}


async def _taken(keeper: PolicyKeeper, key: str, value: Mapping[str, Any] | None) -> bool:
    """Wait until the source shows the object as it was written (None: no more), and that is in force."""
    try:
        async with asyncio.timeout(APPLY_SECONDS):
            while True:
                known = keeper.seen().get(key)
                if (known.value if known else None) == value:
                    return await keeper.settled(APPLY_SECONDS)
                await keeper.news()
    except TimeoutError:
        return False


async def delete(keeper: PolicyKeeper, params: Mapping[str, Any]) -> dict[str, Any]:
    """`kind`, `name`, and `namespace` where the kind has one; `apiVersion` where two kinds have the name."""
    kind, name = (_text(params, word, "policy.delete") for word in ("kind", "name"))
    namespaced = kind.lower() in (word.lower() for word in objects.IN_NAMESPACE)
    namespace = params.get("namespace") or (objects.DEFAULT_NAMESPACE if namespaced else "")
    found = [
        key
        for key in keeper.seen()
        if [part.lower() for part in key.rsplit("/", 3)[1:]] == [kind.lower(), str(namespace), name]
        and params.get("apiVersion", key.rsplit("/", 3)[0]) == key.rsplit("/", 3)[0]
    ]
    what = f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
    if not found:
        raise FabricError(f"there is no {what}: see fabricctl policy list")
    if len(found) > 1:
        versions = ", ".join(key.rsplit("/", 3)[0] for key in found)
        raise FabricError(f"{what} exists in {versions}: say which by --api-version")
    place = await _writable(keeper, found[0]).remove(found[0])
    return {"object": objects.title(found[0]), "place": place, "in_force": await _taken(keeper, found[0], None)}


def _writable(keeper: PolicyKeeper, key: str) -> PolicySource:
    """The source whose object of this key counts; for a new one the source that would."""
    for source in reversed(keeper.sources):
        if source.content is not None and key in source.content.objects:
            return source
    return keeper.sources[-1]


def _text(params: Mapping[str, Any], name: str, method: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise FabricError(f"{method}: {name} must be a non-empty string of printable characters")
    return value


METHODS = {
    "policy.list": listing,
    "policy.explain": explain,
    "policy.diff": diff,
    "policy.hits": hits,
    "policy.denied": denied,
    "policy.apply": apply,
    "policy.delete": delete,
}
