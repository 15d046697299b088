"""Reading decoded YAML or JSON with the field's path at hand, so that every refusal names the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from fabric.policy.errors import PolicyError

Network = IPv4Network | IPv6Network
ABSENT: Mapping[str, Any] = {}


class Fields:
    """One mapping of an object and where it stands in it. A null value counts as absent, as in the API."""

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            raise PolicyError(path or "object", f"is {_kind(value)}, not an object")
        self.value = value
        self.path = path

    def at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def __contains__(self, name: str) -> bool:
        return self.value.get(name) is not None

    def only(self, *names: str) -> None:
        """Refuse a field that is none of `names`: what we do not know could narrow the rule."""
        for name in self.value:
            if name not in names and self.value[name] is not None:
                raise PolicyError(self.at(str(name)), "is not a known field; what is half understood is refused")

    def child(self, name: str) -> Fields:
        """The mapping below `name`; empty where absent."""
        return Fields(self.value.get(name) if name in self else ABSENT, self.at(name))

    def text(self, name: str, default: str | None = None) -> str:
        value = self.value.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (not value and default is None):
            raise PolicyError(self.at(name), "is missing" if value is None else f"is {_kind(value)}, not a text")
        return value

    def choice(self, name: str, *allowed: str, default: str | None = None) -> str:
        value = self.text(name, default)
        if value not in allowed:
            raise PolicyError(self.at(name), f"is {value!r}, not one of {', '.join(allowed)}")
        return value

    def number(self, name: str, low: int, high: int) -> int:
        return whole_number(self.value.get(name), self.at(name), low, high)

    def items(self, name: str, limit: int = 1_024) -> list[Any]:
        value = self.value.get(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            raise PolicyError(self.at(name), f"is {_kind(value)}, not a list")
        if len(value) > limit:
            raise PolicyError(self.at(name), f"has {len(value)} entries, more than the limit of {limit}")
        return list(value)

    def children(self, name: str, limit: int = 1_024) -> Iterator[Fields]:
        for i, item in enumerate(self.items(name, limit)):
            yield Fields(item, f"{self.at(name)}[{i}]")

    def networks(self, name: str, limit: int = 1_024, *, strict: bool = False) -> tuple[Network, ...]:
        return tuple(
            network(item, f"{self.at(name)}[{i}]", strict=strict) for i, item in enumerate(self.items(name, limit))
        )

    def labels(self, name: str) -> dict[str, str]:
        found = self.child(name)
        for key, value in found.value.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise PolicyError(found.at(str(key)), f"is {_kind(value)}, not a text")
        return dict(found.value)


def whole_number(value: Any, path: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PolicyError(path, "is missing" if value is None else f"is {_kind(value)}, not a whole number")
    if not low <= value <= high:
        raise PolicyError(path, f"is {value}, not in {low}..{high}")
    return value


def network(value: Any, path: str, *, strict: bool = False) -> Network:
    """A CIDR; host bits are cut off, as Kubernetes does. `strict` asks for the length."""
    if not isinstance(value, str) or (strict and "/" not in value):
        raise PolicyError(path, f"is {value!r}, not a CIDR such as 192.0.2.0/24")
    try:
        return ip_network(value, strict=False)
    except ValueError as error:
        raise PolicyError(path, str(error)) from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    names |= {int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def directions(spec: Fields, field: str) -> set[str]:
    """The list `field` of Ingress and Egress, empty when not given. Raises PolicyError for anything else in it."""
    given = spec.items(field)
    for i, value in enumerate(given):
        if value not in ("Ingress", "Egress"):
            raise PolicyError(f"{spec.at(field)}[{i}]", f"is {value!r}, not one of Ingress, Egress")
    return set(given)
