"""The policy objects as last accepted: an invalid one is refused, and the one before it stays in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fabric.policy.errors import PolicyError
from fabric.policy.parse import Parsed, parse_object
from fabric.policy.rules import DEFAULT, NetSet, Policy, Tier

MAX_OBJECTS = 20_000


@dataclass(frozen=True, slots=True)
class Result:
    """`error`: why the object was refused; `kept`: an earlier one is still in force then. `warnings`: what is not
    enforced.
    """

    error: PolicyError | None = None
    kept: bool = False
    warnings: tuple[str, ...] = ()


class PolicyStore:
    def __init__(self) -> None:
        self.objects: dict[str, Parsed] = {}

    def apply(self, key: str, value: Mapping[str, Any] | None) -> Result:
        if value is None:
            self.objects.pop(key, None)
            return Result()
        try:
            if key not in self.objects and len(self.objects) >= MAX_OBJECTS:
                raise PolicyError("policies", f"are more than the limit of {MAX_OBJECTS}")
            parsed = parse_object(value)
        except PolicyError as error:
            return Result(error, key in self.objects)
        self.objects[key] = parsed
        return Result(warnings=parsed.warnings if isinstance(parsed, Policy) else ())

    def put(self, key: str, parsed: Parsed | None) -> None:
        """Take one that was accepted before as it is."""
        if parsed is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = parsed

    def tiers(self) -> dict[str, Tier]:
        """Calico's tiers by name, with the one that always exists and cannot be changed."""
        return {**{t.name: t for t in self.objects.values() if isinstance(t, Tier)}, "default": DEFAULT}

    def net_sets(self) -> list[NetSet]:
        return [item for item in self.objects.values() if isinstance(item, NetSet)]
