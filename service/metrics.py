"""What is measured (`/metrics`): every metric with its labels and meaning, in Prometheus' format.

`METRICS` is the one table: what is counted elsewhere is counted under these names, shown with these
texts, and listed in the README from here. The answer is the sum over all processes of this server,
see `counters`, and does not need the store. Labels are bounded: a route is a template of the route
table, never a path.
"""

from __future__ import annotations

import asyncio
import itertools
import platform
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, choose_encoder
from prometheus_client.registry import Collector

import service
from service import counters
from service.counters import COUNT_SECONDS
from service.endpoint import Resource, Wire, endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric as Family

    from service.admission import Call
    from service.counters import Snapshot


class Metric(NamedTuple):
    """One metric: its name, type, labels and meaning; of a histogram the bounds of its buckets."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()


METRICS = (
    Metric(
        "belong_http_requests_total",
        "counter",
        ("method", "route", "status"),
        "Requests answered. The route is a template, `(none)` where there is none",
    ),
    Metric(
        "belong_http_request_duration_seconds",
        "histogram",
        ("method", "route"),
        "Time from the head of a request to the end of its answer",
        counters.SECONDS,
    ),
    Metric(
        "belong_http_requests_in_flight", "gauge", (), "Requests being answered, for metrics too"
    ),
    Metric(
        "belong_http_unreadable_total",
        "counter",
        ("status",),
        "Requests that were no HTTP, or whose head was too long or did not come to its end",
    ),
    Metric(
        "belong_request_log_dropped_total",
        "counter",
        (),
        "Lines of the request log that stderr did not take",
    ),
    Metric(
        "belong_bulk_lines_total",
        "counter",
        ("result",),
        "Lines of bulk requests: `added`, `already_added`, `removed`, `not_member` or `failed`",
    ),
    Metric(
        "belong_profile_dropped_attributes_total",
        "counter",
        (),
        "Attributes of profiles that were given under names of group definitions: not written",
    ),
    Metric(
        "belong_ingest_batches_total",
        "counter",
        ("result",),
        "Batches of users that were uploaded: `accepted`, `duplicate` (done before, and not again) "
        "or `invalid` (refused, or passed over in a bulk)",
    ),
    Metric(
        "belong_ingest_dropped_attributes_total",
        "counter",
        (),
        "Attributes that were uploaded under names of group definitions: not written",
    ),
    Metric("belong_store_commands_total", "counter", (), "Commands sent to the store"),
    Metric(
        "belong_store_pipeline_commands",
        "histogram",
        (),
        "Commands that left for the store as one write",
        tuple(map(float, counters.SIZES)),
    ),
    Metric("belong_store_connects_total", "counter", (), "Connections to the store made"),
    Metric("belong_store_connects_failed_total", "counter", (), "Connections that failed"),
    Metric("belong_store_connections_lost_total", "counter", (), "Connections that were lost"),
    Metric(
        "belong_store_refusals_total",
        "counter",
        ("code",),
        "Error replies of the store and of its scripts, by first word. `CONFLICT`, `NOTFOUND` and "
        "`STALE` are everyday life; `OOM` is a full store",
    ),
    Metric(
        "belong_nearcache_lookups_total",
        "counter",
        ("result",),
        "Groups looked for in the near-cache: `hit` or `miss`",
    ),
    Metric(
        "belong_nearcache_drops_total",
        "counter",
        (),
        "Times that all that was remembered of a directory was dropped",
    ),
    Metric("belong_nearcache_entries", "gauge", (), "Entries of the near-caches of all processes"),
    Metric(
        "belong_worker_finished_total",
        "counter",
        ("work",),
        "What the background worker finished: `intent`, `reservation`, `erasure` or `sweep`; "
        "`profile` (what follows from its attributes), `instance` (its members were told), "
        "`membership` (the dynamic groups of a profile followed, also where time alone turned a "
        "rule) or `job`",
    ),
    Metric("belong_worker_failures_total", "counter", (), "Environments it could not finish"),
    Metric(
        "belong_worker_last_pass_timestamp_seconds",
        "gauge",
        (),
        "When the worker last looked at everything without a failure, in Unix time",
    ),
    Metric(
        "belong_worker_backlog",
        "gauge",
        ("work",),
        "What waits to be finished, by the worker or by whoever began it, counted every "
        f"{COUNT_SECONDS} s",
    ),
    Metric(
        "belong_derivation_lag_seconds",
        "gauge",
        ("work",),
        "How long the `profile` or `instance` that waits the longest has waited for what follows "
        "from attributes, and the profile whose `membership` of dynamic groups has; 0 where none "
        f"waits; looked at every {COUNT_SECONDS} s",
    ),
    Metric(
        "belong_rules_evaluated_total",
        "counter",
        (),
        "Rules of dynamic groups evaluated, so that memberships follow: one for one profile is one",
    ),
    Metric(
        "belong_groups",
        "gauge",
        ("application", "environment"),
        f"Groups, inactive ones too; counted every {COUNT_SECONDS} s",
    ),
    Metric(
        "belong_memberships",
        "gauge",
        ("application", "environment"),
        f"Memberships, group by group, those of inactive groups too; counted every {COUNT_SECONDS} "
        "s, so a change shows that late, and the time that the count takes",
    ),
    Metric(
        "belong_profiles",
        "gauge",
        ("application", "environment"),
        f"Profiles of which anything is known; counted every {COUNT_SECONDS} s",
    ),
    Metric(
        "belong_counted_timestamp_seconds",
        "gauge",
        (),
        "When the worker last had counted all of these, in Unix time",
    ),
    Metric(
        "belong_processes", "gauge", ("program",), "Processes that live: `api`, `worker` or alone"
    ),
    Metric("belong_build_info", "gauge", ("version", "python"), "What runs; always 1"),
)
"""All there are, in the order in which they are shown."""

SLICE = 8
"""Rows of a metric that are written before others get a turn: 1 to 2 ms where it is a histogram."""
_END = b"# EOF\n"

Value = float | list[float]
Rows = list[tuple[list[str], Value]]


class Metrics(Resource):
    """`/metrics`."""

    @endpoint(None, reply=str, wire=Wire(gives=CONTENT_TYPE_LATEST))
    async def on_get(self, call: Call) -> bytes:
        """Give the metrics of all processes of this server, in the text format of Prometheus.

        What other processes counted is up to a second old. The store is not asked.
        """
        encode, content_type = _encoder(call.request.get_header("Accept") or "")
        call.response.content_type = content_type
        held = _rows(call.backend.counters.total())
        written: list[bytes] = []
        for metric in METRICS:
            rows = held.get(metric.name, [])
            for start in range(0, max(len(rows), 1), SLICE):
                registry = CollectorRegistry(auto_describe=False)
                registry.register(_Slice(metric, rows[start : start + SLICE]))
                written.append(_continued(encode(registry), first=start == 0))
                await asyncio.sleep(0)
        if content_type.startswith("application/openmetrics-text"):
            written.append(_END)
        return b"".join(written)


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """Give the encoder for what a client accepts, and the name of that."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # NOTE: prometheus_client 0.26 compares a version that is no number.
        return choose_encoder("")


class _Slice(Collector):
    """Some rows of a metric, as Prometheus' client wants them."""

    def __init__(self, metric: Metric, rows: Rows) -> None:
        self._family = _family(metric, rows)

    def collect(self) -> Iterator[Family]:
        """Give the one metric."""
        yield self._family


def _rows(snapshot: Snapshot) -> dict[str, Rows]:
    """Give the rows of every metric by its name: the values of its labels, and its own."""
    rows: dict[str, Rows] = {}
    for values in (snapshot.counters, snapshot.gauges, snapshot.histograms):
        for joined, value in values.items():
            name, labels = counters.split(joined)
            rows.setdefault(name, []).append((labels, value))
    rows["belong_build_info"] = [([service.__version__, platform.python_version()], 1)]
    for each in rows.values():
        each.sort()
    return rows


def _continued(text: bytes, *, first: bool) -> bytes:
    """Take the end away, and from what continues a metric the lines that say what it is."""
    if first:
        return text.removesuffix(_END)
    return b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"# "))


def _family(metric: Metric, rows: Rows) -> Family:
    labels = list(metric.labels)
    if not rows and not labels and metric.kind != "gauge":
        # What has no labels is there from the beginning, so that its first rise is seen as one.
        rows = [([], [0.0] * (len(metric.bounds) + 2) if metric.bounds else 0.0)]
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.meaning, labels=labels)
        for values, counted in rows:
            assert isinstance(counted, list)  # noqa: S101 - a snapshot keeps them so
            *buckets, total = counted
            bounds = [*map(str, metric.bounds), "+Inf"]
            below = itertools.accumulate(buckets)
            histogram.add_metric(values, list(zip(bounds, below, strict=True)), total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(
        metric.name, metric.meaning, labels=labels
    )
    for values, counted in rows:
        assert not isinstance(counted, list)  # noqa: S101 - only of histograms
        family.add_metric(values, counted)
    return family


def metrics_table() -> str:
    """Render the README's table of metrics; a test compares the two."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {each.meaning} |")
    return "\n".join(rows) + "\n"
