"""Who may do what: bearer tokens and a ClusterRole's rules, read from files for each request; and faults on demand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.apiserver.objects import ApiError


@dataclass
class Fault:
    """The next `count` requests of one sort (`list`, `continue`, `watch`, `get`, `patch`, or any) get this answer."""

    on: str
    status: int
    count: int = 1
    retry_after: float = 0.0
    reason: str = "Fault"
    message: str = "as asked for"


@dataclass
class Policy:
    """`tokens`: a file with one accepted token a line. `rbac`: a manifest whose ClusterRole limits what they may do."""

    tokens: Path | None = None
    rbac: Path | None = None
    faults: list[Fault] = field(default_factory=list)

    def check(self, authorization: str, certificate: bool, verb: str, resource: str) -> None:
        """Raise ApiError 401 or 403."""
        if self.tokens is not None and not certificate:
            accepted = {f"Bearer {token}" for token in self.tokens.read_text().split()}
            if authorization not in accepted:
                raise ApiError(401, "Unauthorized", "Unauthorized")
        if self.rbac is not None and (resource, verb) not in _allowed(self.rbac):
            raise ApiError(403, "Forbidden", f'{resource} is forbidden: cannot {verb} resource "{resource}"')

    def fault(self, sort: str) -> None:
        """Raise ApiError when a fault is due."""
        for fault in self.faults:
            if fault.count > 0 and fault.on in (sort, "any"):
                fault.count -= 1
                raise ApiError(fault.status, fault.reason, fault.message, fault.retry_after)


def _allowed(path: Path) -> set[tuple[str, str]]:
    roles = [item for item in yaml.safe_load_all(path.read_text()) if item and item["kind"] == "ClusterRole"]
    rules = [rule for role in roles for rule in role["rules"]]
    return {(name, verb) for rule in rules for name in rule["resources"] for verb in rule["verbs"]}
