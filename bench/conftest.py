"""`pytest bench --benchmark-enable`: one benchmark call is N iterations of a compiled loop; reports say ns per one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

N = 20_000
Measure = Callable[..., None]


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Measure:
    """`measure(loop, n)` benchmarks loop(n) and adds the time of one iteration to the report."""

    def run(loop: Callable[[int], object], n: int = N) -> None:
        benchmark.pedantic(loop, args=(n,), rounds=20, warmup_rounds=2)  # type: ignore[no-untyped-call]
        if benchmark.stats is not None:
            benchmark.extra_info["ns"] = round(benchmark.stats["median"] / n * 1e9, 1)

    return run
