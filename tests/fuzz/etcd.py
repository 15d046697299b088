"""Mutated answers of etcd, from the bytes on: decoded, taken over by the content of a prefix, and checked there."""

from __future__ import annotations

import random
from collections import Counter

from fabric.store.etcd import messages
from fabric.store.etcd.content import MAX_VALUE, Content

Counts = dict[str, int]
P = "/coreos.com/network/subnets/"
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}'
KEYS = [f"{P}10.244.{number}.0-24".encode() for number in range(4)] + [b"/coreos.com/network/config"]


def _kv(key: bytes, revision: int) -> dict[str, object]:
    return {"key": key, "value": VALUE, "mod_revision": revision, "create_revision": 2, "lease": revision % 3}


def watch_answers() -> list[bytes]:
    """Well-formed answers of a watch: confirmation, puts, deletions, progress, compaction."""
    header = {"cluster_id": 7, "revision": 20}
    events = [{"type": number % 2, "kv": _kv(key, 10 + number)} for number, key in enumerate(KEYS)]
    found = [
        messages.WATCH.response(header=header, created=True),
        messages.WATCH.response(header=header, events=events[:1]),
        messages.WATCH.response(header=header, events=events),
        messages.WATCH.response(header=header),
        messages.WATCH.response(header=header, canceled=True, compact_revision=9, cancel_reason="compacted"),
    ]
    return [answer.SerializeToString() for answer in found]


def list_answers() -> list[bytes]:
    """Well-formed pages of a list."""
    header = {"cluster_id": 7, "revision": 20}
    kvs = [_kv(key, 5 + number) for number, key in enumerate(KEYS)]
    found = [messages.RANGE.response(header=header, kvs=kvs[:size], count=size, more=size == 2) for size in range(5)]
    return [answer.SerializeToString() for answer in found]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds with a few bytes changed, cut out, doubled or put in."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 5))
    return bytes(data)


def etcd_watch(seed: int, count: int) -> Counts:
    """A watch: what it says is taken over or refused, and the revision never falls back."""
    rng, seeds, counts = random.Random(seed), watch_answers(), Counter[str]()
    content = Content(P, "7.0", 1)
    for _ in range(count):
        try:
            answer = messages.WATCH.response.FromString(mutated(rng, seeds))
        except messages.DecodeError:
            counts["malformed"] += 1
            continue
        before = content.revision
        changed = content.apply(answer.events, messages.DELETE, float)
        content.reached(min(max((event.kv.mod_revision for event in answer.events), default=0), 1 << 40))
        assert content.revision >= before
        counts["pass" if changed else "nothing_new"] += 1
        _check(content)
        if rng.randrange(4) == 0:
            content = Content(P, "7.0", rng.randrange(16))
    return counts


def etcd_list(seed: int, count: int) -> Counts:
    """Pages of a list, each for a content of its own."""
    rng, seeds, counts = random.Random(seed), list_answers(), Counter[str]()
    for _ in range(count):
        try:
            answer = messages.RANGE.response.FromString(mutated(rng, seeds))
        except messages.DecodeError:
            counts["malformed"] += 1
            continue
        content = Content(P, "7.0", answer.header.revision)
        content.put(answer.kvs, float)
        content.matches(answer.count, answer.kvs[0] if answer.kvs else None)
        counts["pass"] += 1
        _check(content)
    return counts


def _check(content: Content) -> None:
    for key, entry in content.snapshot().entries.items():
        assert entry.key == key
        assert key.startswith(P)
        assert len(entry.value) <= MAX_VALUE
        assert entry.expires is None or entry.expires != 0
    assert 0 not in content.leases()
