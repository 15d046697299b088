"""The one error of the policy package."""

from __future__ import annotations


class PolicyError(ValueError):
    """An object that cannot be enforced as written: `path` is the field (`spec.ingress[0].ports[1].endPort`)."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
