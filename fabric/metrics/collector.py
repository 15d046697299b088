"""Readings as Prometheus' text format, by prometheus_client (44 ms and 4.9 MB of import: see ADR 7)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fabric.metrics.bounded import bound
from fabric.metrics.families import FAMILIES, PREFIX, Family, Reading
from fabric.metrics.latency import Distribution

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class NodeCollector(Collector):
    """Shows `readings`."""

    def __init__(self) -> None:
        self.readings: Iterable[Reading] = ()

    def collect(self) -> Iterator[Metric]:
        """All families that have a series now, in the table's order."""
        found: Mapping[str, Sequence[Reading]] = bound(self.readings)
        for family in FAMILIES:
            if found.get(family.name):
                yield _metric(family, found[family.name])


class Renderer:
    """Makes pages, one at a time, in any thread: our families, and prometheus_client's own about the process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._collector = NodeCollector()
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)

    def __call__(self, readings: Iterable[Reading]) -> bytes:
        """The page that says this."""
        self._collector.readings = readings
        return generate_latest(self._registry)


def _metric(family: Family, readings: Sequence[Reading]) -> Metric:
    name = PREFIX + family.name
    if family.kind == "histogram":
        return _histogram(name, family, readings)
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric: CounterMetricFamily | GaugeMetricFamily = kind(name, family.help, labels=family.labels)
    for reading in readings:
        assert not isinstance(reading.value, Distribution)
        metric.add_metric(reading.labels, reading.value)
    return metric


def _histogram(name: str, family: Family, readings: Sequence[Reading]) -> Metric:
    metric = HistogramMetricFamily(name, family.help, labels=family.labels)
    for reading in readings:
        assert isinstance(reading.value, Distribution)
        bounds = [*map(str, reading.value.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(reading.value.counts), strict=True))
        metric.add_metric(reading.labels, buckets, reading.value.total)
    return metric
