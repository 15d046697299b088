"""`tests.soak` for as long as a test may take: nothing grows fast, no loss without a reason, logs stay small."""

from __future__ import annotations

import pytest

from tests.soak import soak

pytestmark = [pytest.mark.root, pytest.mark.alone, pytest.mark.slow]
MINUTES = 0.5
GROWN_BYTES = 4 << 20
LOG_BYTES = 1_000_000
DESCRIPTORS = 8
"""Of connections to the control socket and a pod that is being made."""


def test_churn_and_attacks() -> None:
    outcome = soak(MINUTES, 1.0)
    for found in outcome.found:
        print(found.report())
        assert found.grown <= GROWN_BYTES
        assert found.fds[1] - found.fds[0] <= DESCRIPTORS
        assert found.threads[1] - found.threads[0] <= 1
        assert found.log <= LOG_BYTES
        assert found.unexplained == {}
    assert outcome.lost <= outcome.sent / 1000
