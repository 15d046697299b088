"""GSO split: one superframe of 46 segments to its headers, payload left in place."""

from collections.abc import Callable

import pytest

from bench import data, hot


@pytest.mark.benchmark(group="split")
@pytest.mark.parametrize("segments", [2, 12, 46])
def test_split(measure: Callable[..., None], segments: int) -> None:
    frame, vnet = data.superframe(segments)
    assert hot.loop_split(frame, vnet, 1) == segments
    measure(lambda n: hot.loop_split(frame, vnet, n), 500)
