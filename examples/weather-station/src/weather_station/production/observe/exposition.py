"""The text of /metrics: made in slices between which the event loop handles requests, and for changed series only."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any

import prometheus_client as prometheus
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

Encode = Callable[[Collector], bytes]
"""Returns the metrics of a collector as text in one format."""

VERSION = "1.0.0"
"""That of the formats that a request can choose, besides the text format of version 0.0.4."""

_VERSIONS = re.compile(r"version=([^;]*)")

SLICE_SECONDS = 0.001
"""How long the event loop is held at a time."""

END = b"# EOF\n"
"""The last line of the OpenMetrics format."""

PLACEHOLDER = "\x00"
"""Stands for the name of a tool; no tool has this character in its name."""


def format_of(accept: str) -> tuple[Encode, str]:
    """Return the encoder of the format that an Accept header chooses, and its content type.

    Not what the client library chooses of any text: it fails where a version is not a number, and returns any later
    version as it came, so that clients would choose the keys under which texts are kept.
    """
    known = [each for each in accept.split(",") if {*map(str.strip, _VERSIONS.findall(each))} <= {VERSION}]
    return choose_encoder(",".join(known))


class ZeroSeries:
    """The series of tools that have not been called, all of them 0, without objects, which would take 20 kB a tool.

    Args:
        families: For each metric, a family with one child, in which `PLACEHOLDER` stands for the tool.
    """

    def __init__(self, *families: Collector) -> None:
        self.tools: dict[str, None] = {}
        metrics = [without_creation_times(metric) for family in families for metric in family.collect()]
        self._metrics = {metric.name: metric for metric in metrics}
        self._templates: dict[tuple[str, str], bytes] = {}

    def add_to(self, metric: prometheus.Metric) -> None:
        """Add the series of tools that have not been called to `metric`."""
        pattern = self._metrics.get(metric.name)
        tools = [*self.tools]  # this is a thread, and a call can end meanwhile
        for sample in pattern.samples if pattern else ():
            for tool in tools:
                labels = {name: tool if value == PLACEHOLDER else value for name, value in sample.labels.items()}
                metric.add_sample(sample.name, labels, sample.value)

    def text(self, name: str, content_type: str, encode: Encode, tools: Iterable[str]) -> Iterator[bytes]:
        """Yield the lines of the metric `name` for each of `tools`."""
        pattern = self._metrics.get(name)
        if pattern is None:
            return
        template = self._templates.get((name, content_type))
        if template is None:
            template = self._templates[name, content_type] = _lines(pattern, encode)
        for tool in tools:
            escaped = tool.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
            yield template.replace(PLACEHOLDER.encode(), escaped.encode())


class Exposition:
    """Makes the text of families of metrics, and remembers that of each series until its values change.

    Args:
        others: Metrics of the process.
        families: By name. Their private attributes are read, since `collect` makes an object for each sample.
        zeros: Series of tools that have not been called.
    """

    def __init__(self, others: Collector, families: Mapping[str, Any], zeros: ZeroSeries) -> None:
        self._others = others
        self._families = families
        self._zeros = zeros
        self._known: dict[tuple[str, str, tuple[str, ...]], tuple[tuple[float, ...], bytes]] = {}

    async def text(self, encode: Encode, content_type: str) -> bytes:
        """Return all metrics in the format of `encode`."""
        parts: list[bytes] = []
        until = perf_counter() + SLICE_SECONDS
        for part in self._parts(encode, content_type):
            parts.append(part)
            if perf_counter() > until:
                await asyncio.sleep(0)
                until = perf_counter() + SLICE_SECONDS
        return b"".join(parts)

    def _parts(self, encode: Encode, content_type: str) -> Iterator[bytes]:
        for metric in self._others.collect():
            yield encode(_Metrics(metric)).removesuffix(END)
        for family in [*self._families.values()]:
            if isinstance(family, prometheus.Gauge) or not family._labelnames:
                for metric in family.collect():
                    yield encode(_Metrics(without_creation_times(metric))).removesuffix(END)
                continue
            head = encode(_Metrics(family._get_metric())).removesuffix(END)
            children, tools = [*family._metrics.items()], [*self._zeros.tools]  # calls end between two parts
            yield head
            for labels, child in children:
                yield self._series(family, labels, child, encode, content_type, len(head))
            yield from self._zeros.text(family._name, content_type, encode, tools)
        yield encode(_Metrics())

    def _series(
        self, family: Any, labels: tuple[str, ...], child: Any, encode: Encode, content_type: str, head_bytes: int
    ) -> bytes:
        """Return the lines of one child of a family, whose HELP and TYPE have `head_bytes` bytes."""
        is_counter = isinstance(family, prometheus.Counter)
        child.add_up()
        values = (child._value.get(),) if is_counter else (child._sum.get(), *(part.get() for part in child._buckets))
        key = (content_type, family._name, labels)
        known = self._known.get(key)
        if known is not None and known[0] == values:
            return known[1]
        metric = family._get_metric()
        names = dict(zip(family._labelnames, labels, strict=True))
        for sample in child._samples():
            metric.add_sample(family._name + sample.name, names | sample.labels, sample.value)
        text = encode(_Metrics(without_creation_times(metric))).removesuffix(END)[head_bytes:]
        self._known[key] = (values, text)
        return text


def without_creation_times(metric: prometheus.Metric) -> prometheus.Metric:
    """Return `metric` without the creation times that the client library adds to counters and histograms."""
    metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
    return metric


class _Metrics(Collector):
    """Collector of the given metrics."""

    def __init__(self, *metrics: prometheus.Metric) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[prometheus.Metric]:
        return self._metrics


def _lines(metric: prometheus.Metric, encode: Encode) -> bytes:
    """Return the samples of a metric without its HELP and TYPE."""
    text = encode(_Metrics(metric)).removesuffix(END)
    empty = prometheus.Metric(metric.name, metric.documentation, metric.type, metric.unit)
    return text[len(encode(_Metrics(empty)).removesuffix(END)) :]
