"""`holes` for as long as a test may take: everything is listed anew once, the first try half-way (R14)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.holes import Wanted, prepared, run

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_nothing_forbidden_arrives_while_everything_is_listed_anew(tmp_path: Path) -> None:
    with prepared(tmp_path, 3) as (cluster, policies):
        outcome = run(cluster, policies, Wanted(probes=1_000, restarts=0, starts=1, relists=1))
        print(outcome.report())
        assert (outcome.forbidden, outcome.lost) == (0, 0)
        assert outcome.lists >= 2 * 2, "each node at its start and again"
        assert cluster.policed.lab.dead_daemons() == []
