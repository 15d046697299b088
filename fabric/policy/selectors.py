"""Selectors as values: what Kubernetes' label selectors and Calico's expressions both become.

All are immutable and hashable, so that equal selectors are one selector however often they are written.
`matches(labels)` is the whole interface. Sources: apimachinery `pkg/labels/selector.go`, Calico
`libcalico-go/lib/selector`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fabric.policy.errors import PolicyError
from fabric.policy.fields import Fields

Labels = Mapping[str, str]
MAX_REQUIREMENTS = 256


class Selector(Protocol):
    def matches(self, labels: Labels) -> bool: ...


@dataclass(frozen=True, slots=True)
class Everything:
    def matches(self, labels: Labels) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Has:
    key: str

    def matches(self, labels: Labels) -> bool:
        return self.key in labels


@dataclass(frozen=True, slots=True)
class In:
    """The label exists and is one of `values`."""

    key: str
    values: frozenset[str]

    def matches(self, labels: Labels) -> bool:
        return self.key in labels and labels[self.key] in self.values


@dataclass(frozen=True, slots=True)
class Part:
    """The label exists and contains, starts with or ends with `text`."""

    key: str
    how: str
    text: str

    def matches(self, labels: Labels) -> bool:
        value = labels.get(self.key)
        if value is None:
            return False
        if self.how == "contains":
            return self.text in value
        return value.startswith(self.text) if self.how == "starts" else value.endswith(self.text)


@dataclass(frozen=True, slots=True)
class Not:
    inner: Selector

    def matches(self, labels: Labels) -> bool:
        return not self.inner.matches(labels)


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Selector, ...]

    def matches(self, labels: Labels) -> bool:
        return all(part.matches(labels) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Any:
    parts: tuple[Selector, ...]

    def matches(self, labels: Labels) -> bool:
        return any(part.matches(labels) for part in self.parts)


EVERYTHING = Everything()


def read_selector(fields: Fields) -> Selector:
    """A Kubernetes label selector; an empty one selects everything. NotIn matches what lacks the key."""
    fields.only("matchLabels", "matchExpressions")
    parts: list[Selector] = [In(key, frozenset([value])) for key, value in fields.labels("matchLabels").items()]
    parts += [_read_expression(item) for item in fields.children("matchExpressions", MAX_REQUIREMENTS)]
    if not parts:
        return EVERYTHING
    return parts[0] if len(parts) == 1 else All(tuple(sorted(parts, key=repr)))


def _read_expression(fields: Fields) -> Selector:
    fields.only("key", "operator", "values")
    key = fields.text("key")
    operator = fields.choice("operator", "In", "NotIn", "Exists", "DoesNotExist")
    values = fields.items("values")
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise PolicyError(f"{fields.at('values')}[{i}]", "is not a text")
    if operator in ("In", "NotIn"):
        if not values:
            raise PolicyError(fields.at("values"), f"is empty, but {operator} needs a value")
        found: Selector = In(key, frozenset(values))
        return found if operator == "In" else Not(found)
    if values:
        raise PolicyError(fields.at("values"), f"is given, but {operator} takes none")
    return Has(key) if operator == "Exists" else Not(Has(key))
