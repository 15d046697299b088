"""The Nodes that exist now, by name, kept current by lists and watch events. Pure: no clock, no I/O.

Events are taken by each object's own resourceVersion: one that is older than what is known of its node is left out, so
duplicates and reordered events end in the same table. Names of deleted nodes are kept with the version of their
deletion for that purpose; the next list forgets them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fabric.store.base import Entry
from fabric.store.kube import nodes
from fabric.store.kube.annotate import Names
from fabric.store.kube.nodes import Bad, Event, Node, NodeError

MAX_NODES = 65_536
MAX_DELETED = 4096


@dataclass(slots=True)
class _Row:
    """What is known under one name; `node` is its last good value. `entry` is made when it is first asked for."""

    version: int
    node: Node | None = None
    deleted: bool = False
    problem: str = ""
    entry: Entry | None = None
    made: bool = False


class NodeTable:
    """Current nodes. `own` is the name of the node we run on: of that one, any change of an annotation counts."""

    def __init__(self, names: Names, own: str, limit: int = MAX_NODES) -> None:
        self._names = names
        self._own = own
        self._limit = limit
        self._rows: dict[str, _Row] = {}
        self._deleted = 0
        self._prefix = ""
        self._said: set[str] = set()
        self._news: list[str] = []
        self.refused = 0

    def replace(self, found: Sequence[Node], bad: Sequence[Bad]) -> bool:
        """Take a complete list over; whether anything that matters is different now."""
        before = self._rows
        self._rows = {}
        self._deleted = 0
        for node in found:
            self._put(node, before.get(node.name))
        for item in bad:
            self._keep(item.name, item.problem, before.get(item.name))
        self._said &= self._rows.keys() | {""}
        new = (row for name, row in self._rows.items() if row is not before.get(name))
        return any(map(self._matters, new)) or self._lost_role(before)

    def apply(self, event: Event[Node]) -> bool:
        """Take one event over; whether anything that matters is different now."""
        version = nodes.number(event.version)
        old = self._rows.get(event.name)
        if old is not None and version and version <= old.version:
            return False
        if event.kind == "DELETED":
            return self._delete(event.name, version, old)
        if event.node is None:
            self._keep(event.name, event.problem, old, version)
            return False
        row = self._put(event.node, old)
        return row is not old and (self._matters(row) or (old is not None and self._matters(old)))

    def entries(self, prefix: str) -> Mapping[str, Entry]:
        """The managed nodes' leases under `prefix`, by key."""
        if prefix != self._prefix:
            self._prefix = prefix
            for row in self._rows.values():
                row.made = False
        made = (self._entry(name, row) for name, row in self._rows.items())
        return {entry.key: entry for entry in made if entry is not None}

    def node(self, name: str) -> Node | None:
        """What is known of one node."""
        row = self._rows.get(name)
        return row.node if row else None

    def complaints(self) -> list[str]:
        """What is newly wrong, one line per node and only once for each; a second call has none of these."""
        news, self._news = self._news, []
        return news

    def problems(self) -> Mapping[str, str]:
        """Nodes that cannot be understood, with the reason."""
        return {name: row.problem for name, row in sorted(self._rows.items()) if row.problem}

    def _put(self, node: Node, old: _Row | None) -> _Row | None:
        """Store the node: the old row, brought to its version, when nothing of interest has changed."""
        if old is not None and old.node is not None and self._same(node, old.node):
            old.version = node.version
            old.problem = old.problem if old.made and old.entry is None else ""
            self._rows[node.name] = old
            return old
        if node.name not in self._rows and not self._room(node.name):
            return None
        if self._rows.get(node.name) is old and old is not None and old.deleted:
            self._deleted -= 1
        row = self._rows[node.name] = _Row(node.version, node)
        return row

    def _keep(self, name: str, problem: str, old: _Row | None, version: int = 0) -> None:
        """An object of which nothing can be used: its last good value stays."""
        if old is None and not self._room(name):
            return
        row = old if old is not None and not old.deleted else _Row(version)
        row.version, row.problem = max(version, row.version), problem
        self._rows[name] = row
        self._say(name, problem)

    def _delete(self, name: str, version: int, old: _Row | None) -> bool:
        if old is None or not old.deleted:
            self._deleted += 1
        self._rows[name] = _Row(version, deleted=True)
        if self._deleted > MAX_DELETED:
            self._rows = {name: row for name, row in self._rows.items() if not row.deleted}
            self._deleted = 0
        return old is not None and self._matters(old)

    def _room(self, name: str) -> bool:
        room = len(self._rows) - self._deleted < self._limit
        if not room:
            self._say("", f"more than {self._limit} nodes: {name[:80]!r} and others are not used")
        return room

    def _same(self, node: Node, old: Node) -> bool:
        if (node.uid, node.pod_cidrs, node.annotations) == (old.uid, old.pod_cidrs, old.annotations):
            return True
        return not self._counts(node) and not self._counts(old)

    def _counts(self, node: Node) -> bool:
        return node.name == self._own or nodes.is_managed(node, self._names)

    def _matters(self, row: _Row | None) -> bool:
        return row is not None and row.node is not None and self._counts(row.node)

    def _lost_role(self, before: Mapping[str, _Row]) -> bool:
        """Whether a node that counted is gone, or counts no more."""
        return any(self._matters(row) and not self._matters(self._rows.get(name)) for name, row in before.items())

    def _entry(self, name: str, row: _Row) -> Entry | None:
        if not row.made:
            row.made, row.entry = True, None
            if row.node is not None and nodes.is_managed(row.node, self._names):
                try:
                    row.entry = nodes.entry_of(row.node, self._names, self._prefix)
                except NodeError as error:
                    row.problem = str(error)
                    self._say(name, row.problem)
        return row.entry

    def _say(self, name: str, problem: str) -> None:
        self.refused += 1
        if name not in self._said:
            self._said.add(name)
            self._news.append(f"node {name[:80]!r} is not used: {problem}" if name else problem)
