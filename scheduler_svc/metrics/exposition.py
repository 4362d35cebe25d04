"""Exposition: a snapshot's families as text, in Prometheus' format or OpenMetrics, whichever a scraper asks for.

The formats are prometheus-client's. Nothing is counted in its objects: they are made for one answer. It knows neither
sockets nor where the counts come from.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pagewire.scheduler_svc.metrics.families import Family, Value
from pagewire.scheduler_svc.metrics.totals import Snapshot
from pagewire.wire.measures import Histogram

_OPENMETRICS = "application/openmetrics-text"
_KINDS: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
_UNITS = ("seconds", "bytes", "tokens", "ratio", "blocks")
"""Said where they end a name."""


def wants_open_metrics(accept: str) -> bool:
    """Whether a scraper that accepts this reads OpenMetrics."""
    return any(each.partition(";")[0].strip().lower() == _OPENMETRICS for each in accept.split(","))


def exposed(snapshot: Snapshot, families: Sequence[Family], *, open_metrics: bool) -> tuple[bytes, str]:
    """The text, and its content type."""
    collector = _Families(snapshot, families)
    if open_metrics:
        # With any other escaping the library writes an underscore for a colon in a sample's name, though not in its
        # family's (prometheus-client 0.26). No name of ours needs one.
        body: bytes = openmetrics.generate_latest(collector, openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return body, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(collector), CONTENT_TYPE_PLAIN_0_0_4


class _Families(Collector):
    def __init__(self, snapshot: Snapshot, families: Sequence[Family]) -> None:
        self._snapshot = snapshot
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Called by the encoder."""
        for family in self._families:
            if (value := family.read(self._snapshot)) is not None:
                yield _metric(family, value)


def _metric(family: Family, value: Value | Mapping[str, Value] | Mapping[str, str]) -> Metric:
    if family.kind == "info":
        assert isinstance(value, Mapping), f"{family.name} is its labels"
        info = InfoMetricFamily(family.name, family.help, labels=[*family.constant])
        info.add_metric([*family.constant.values()], {name: str(text) for name, text in value.items()})
        return info
    labels = [*family.constant, *([family.label] if family.label else [])]
    word = family.name.rpartition("_")[2]
    unit = word if word in _UNITS and not family.constant else ""  # vLLM's names stay as they are
    metric: Metric = _KINDS[family.kind](family.name, family.help, labels=labels, unit=unit)
    values = value if isinstance(value, Mapping) else {"": value}
    for label, each in values.items():
        texts = [*family.constant.values(), *([label] if family.label else [])]
        _add(metric, texts, each)
    return metric


def _add(metric: Any, texts: Sequence[str], value: object) -> None:
    """One sample, or a histogram's."""
    if isinstance(value, Histogram):
        metric.add_metric(texts, buckets=_buckets(value), sum_value=value.total)
    else:
        metric.add_metric(texts, value)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus counts each range with all below it."""
    count, buckets = 0, []
    for bound, its_count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        count += its_count
        buckets.append((floatToGoString(bound), float(count)))  # type: ignore[no-untyped-call]
    return buckets
