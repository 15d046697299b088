"""The bench of policy compiles a small cluster and finds a figure for every kind of change."""

from __future__ import annotations

import pytest

from bench import policy


@pytest.mark.slow
def test_a_small_cluster() -> None:
    row = policy.measure(200, 20, everywhere=False)
    assert (row.pods, row.policies, row.own) == (200, 20, 100)
    assert set(row.changes) == set(policy.KINDS)
    assert len(policy.HEAD) == len(policy.line(row))
