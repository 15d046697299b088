"""GRO merge: segments of one or many flows into superframes, written to /dev/null."""

import os
from collections.abc import Callable

import pytest

from bench import cases, data, hot_path


@pytest.mark.benchmark(group="merge")
def test_merge_46_segments(measure: Callable[..., None]) -> None:
    measure(cases.merge_segments(), 200)


@pytest.mark.benchmark(group="merge")
@pytest.mark.parametrize("flows", [1, 8, 32, 64])
def test_merge_interleaved_flows(measure: Callable[..., None], flows: int) -> None:
    """64-byte UDP of many peers in one drain: with more flows than slots nothing is joined any more."""
    null = os.open(os.devnull, os.O_WRONLY)
    loop = hot_path.IngressLoop(data.snapshot(flows, null), data.datagrams_from(flows))
    measure(lambda n: loop.run(n // data.FRAMES))
    os.close(null)
