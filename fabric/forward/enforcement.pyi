from collections.abc import Sequence

from fabric.model import Network
from fabric.policy import PolicySnapshot

MOST_SERVICE_NETWORKS: int

class RuleHits:
    def __init__(self) -> None: ...
    def reserve(self, numbers: int) -> None: ...
    def counts(self) -> dict[int, int]: ...

class Staged:
    policy: PolicySnapshot
    hits: RuleHits
    changes: RuleHits
    def __init__(self, policy: PolicySnapshot, before: Staged | None) -> None: ...

class Enforcement:
    number: int
    active: bool
    def __init__(
        self,
        number: int,
        policy: PolicySnapshot | None,
        required: bool,
        services: Sequence[Network],
        hits: RuleHits,
        staged: Staged | None = None,
    ) -> None: ...
