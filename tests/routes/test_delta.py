"""DeltaTracker against two plain dictionaries compared from scratch, over any sequence of operations."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from routes.delta import DeltaTracker

KEYS = st.integers(0, 5)
VALUES = st.sampled_from("ab")


class TrackerMachine(RuleBasedStateMachine):
    """The twin keeps two dictionaries and computes the whole difference each time."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker: DeltaTracker[int, str] = DeltaTracker()
        self.desired: dict[int, str] = {}
        self.observed: dict[int, str] = {}

    @rule(key=KEYS, value=VALUES)
    def desire(self, key: int, value: str) -> None:
        self.tracker.desire(key, value)
        self.desired[key] = value

    @rule(key=KEYS)
    def undesire(self, key: int) -> None:
        self.tracker.undesire(key)
        self.desired.pop(key, None)

    @rule(desired=st.dictionaries(KEYS, VALUES))
    def replace_desired(self, desired: dict[int, str]) -> None:
        self.tracker.replace_desired(desired)
        self.desired = dict(desired)

    @rule(key=KEYS, value=VALUES)
    def observe(self, key: int, value: str) -> None:
        self.tracker.observe(key, value)
        self.observed[key] = value

    @rule(key=KEYS)
    def forget(self, key: int) -> None:
        self.tracker.forget(key)
        self.observed.pop(key, None)

    @rule(observed=st.dictionaries(KEYS, VALUES))
    def replace_observed(self, observed: dict[int, str]) -> None:
        self.tracker.replace_observed(observed)
        self.observed = dict(observed)

    @rule()
    def do_all_the_work(self) -> None:
        for key, value, _ in self.tracker.pending_updates():
            self.tracker.observe(key, value)
        for key, _ in self.tracker.pending_deletions():
            self.tracker.forget(key)
        self.observed = dict(self.desired)

        assert self.tracker.in_sync

    @invariant()
    def difference_is_that_of_the_twin(self) -> None:
        updates = {
            (key, value, self.observed.get(key))
            for key, value in self.desired.items()
            if self.observed.get(key) != value
        }
        deletions = {(key, value) for key, value in self.observed.items() if key not in self.desired}

        assert set(self.tracker.pending_updates()) == updates
        assert set(self.tracker.pending_deletions()) == deletions
        assert self.tracker.in_sync == (not updates and not deletions)
        assert (self.tracker.desired, self.tracker.observed) == (self.desired, self.observed)


TestTracker = pytest.mark.slow(TrackerMachine.TestCase)


def test_caller_keeps_its_own_maps() -> None:
    desired = {1: "a"}
    tracker: DeltaTracker[int, str] = DeltaTracker()
    tracker.replace_desired(desired)

    desired[2] = "b"

    assert list(tracker.pending_updates()) == [(1, "a", None)]
