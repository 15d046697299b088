"""`flood` for as long as a test may take: several times a pod's quota, of each kind (R20)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenarios.flood import KINDS, Ground, Kind, flood, prepared

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.alone]
PLACES = 32_768
FLOWS = PLACES // 2
"""Four times the quota."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with prepared(tmp_path_factory.mktemp("policies"), PLACES) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_of_one_pod_does_not_hurt_the_others(ground: Ground, kind: Kind) -> None:
    outcome = flood(ground, kind, FLOWS)
    print(outcome.report())
    assert outcome.wrong() == []
