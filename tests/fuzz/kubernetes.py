"""Nodes of a hostile cluster: annotations and podCIDRs of some mutated, another one among them that stays good.

The reasons: `value` the lease keeps its last good value, `node` the node is left out, `item` its JSON does not fit,
`page` the answer is no list at all (bytes of the whole answer mutated), `ignored` it is not a lease.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fabric import leases
from fabric.leases import LeaseFormatError
from fabric.store.kube import annotate, nodes
from fabric.store.kube.nodes import DecodeError, Node, NodeError

N = annotate.names()
P = "/p/"
PAGE = 10
"""Hostile nodes in one answer."""
MAC = '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}'
TEXTS = ("", "null", "true", "vxlan", "host-gw", MAC, MAC[:-1], "[" * 40, "[" * 5000, '{"a":1,"a":2}', "9" * 400, "NaN",
         "192.0.2.1", "2001:db8::1", "0.0.0.0", "fe80::1%eth0", '"\\ud800"', "\x00", "\u202e")  # fmt: skip
CIDRS = ("10.244.1.0/24", "10.244.1.9/24", "2001:db8:1::/64", "0.0.0.0/0", "10.0.0.0/33", "x", "", "::/0", "fe80::%1/9")
VERSIONS = ("8", "x", "", "9" * 30)
NAMES = N.all()
JUNK: tuple[Any, ...] = (None, 1, 1.5, True, [], {}, "x", [1], {"a": None})
GOOD = {
    "metadata": {
        "name": "good",
        "resourceVersion": "7",
        "annotations": {N.managed: "true", N.backend_type: "vxlan", N.backend_data: MAC, N.public_ip: "192.0.2.2"},
    },
    "spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24"]},
}


def fuzz(seed: int, count: int) -> dict[str, int]:
    """`count` hostile nodes, ten in an answer, or answers with bytes changed; an AssertionError is a finding."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    while (left := count - counts.total()) > 0:
        counts.update([_bytes(rng)] if rng.random() < 0.7 else _some(rng, min(left, PAGE)))
    return dict(counts)


def _some(rng: random.Random, size: int) -> list[str]:
    page = nodes.decode_list(_answer([*(_hostile(rng) for _ in range(size)), GOOD]), N)
    assert page.nodes[-1].name == "good", "the other node is not affected"
    assert _judge(page.nodes[-1]) == "pass"
    assert len(page.nodes) + len(page.bad) == size + 1
    return ["item" for _ in page.bad] + [_judge(node) for node in page.nodes[:-1]]


def _bytes(rng: random.Random) -> str:
    text = bytearray(TWO_GOOD)
    for _ in range(1 + below(rng, 4)):
        text[below(rng, len(text))] = below(rng, 256)
    try:
        page = nodes.decode_list(text, N)
    except DecodeError as error:
        return _refused("page", error)
    for node in page.nodes:
        _judge(node)
    return "item" if page.bad else "pass"


def _judge(node: Node) -> str:
    if not nodes.is_managed(node, N):
        return "ignored"
    try:
        entry = nodes.entry_of(node, N, P)
        if entry is None:
            return "ignored"
        lease = leases.parse(entry.key.removeprefix(P), entry.value, None, entry.created)
    except NodeError as error:
        return _refused("node", error)
    except LeaseFormatError as error:
        return _refused("value", error)
    assert leases.key_of(lease.subnet, lease.ipv6_subnet, lease.node) == lease.key
    annotate.stored_macs(N, node.annotations)
    return "pass"


def _refused(reason: str, error: Exception) -> str:
    if "\n" in str(error) or not str(error).isprintable():
        raise AssertionError(f"not one line: {error!r}")
    return reason


def _hostile(rng: random.Random) -> dict[str, Any]:
    annotations: dict[str, Any] = dict(GOOD["metadata"]["annotations"])  # type: ignore[call-overload]
    for _ in range(below(rng, 4)):
        annotations[pick(rng, NAMES)] = pick(rng, TEXTS if rng.random() < 0.9 else JUNK)
    cidrs = [pick(rng, CIDRS) for _ in range(below(rng, 4))] if rng.random() < 0.4 else ["10.244.1.0/24"]
    version = pick(rng, VERSIONS)
    found: dict[str, Any] = {
        "metadata": {"name": "evil", "resourceVersion": version, "annotations": annotations},
        "spec": {"podCIDRs": cidrs},
    }
    if rng.random() < 0.1:
        part = pick(rng, (found, found["metadata"], found["spec"]))
        part[pick(rng, list(part))] = pick(rng, JUNK)
    return found


def _answer(items: list[Any]) -> bytes:
    return json.dumps({"kind": "NodeList", "metadata": {"resourceVersion": "9"}, "items": items}).encode()


def pick(rng: random.Random, items: Sequence[Any]) -> Any:
    """One of them; cheaper than `choice`."""
    return items[int(rng.random() * len(items))]


def below(rng: random.Random, limit: int) -> int:
    """A number from 0 to `limit` - 1; cheaper than `randrange`."""
    return int(rng.random() * limit)


TWO_GOOD = _answer([GOOD, GOOD])
