"""From figures to the families of prometheus_client. The only module that needs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family

from pgscheduler._version import __version__
from pgscheduler.states import JobState, Outcome

from ._counts import FAILURES, Histogram, JobCounts
from ._figures import Reading
from ._table import BUCKETS, METRICS, Metric

if TYPE_CHECKING:
    from ._metrics import Metrics

__all__ = ["Exposition"]

#: How runs of a node can end; orphans have none.
RECORDED = tuple(outcome for outcome in Outcome if outcome is not Outcome.ORPHANED)
LIVE = (JobState.PENDING, JobState.RUNNING, JobState.PAUSED)
_BOUNDS = [*map(str, BUCKETS), "+Inf"]

_KINDS: dict[str, type[CounterMetricFamily | GaugeMetricFamily | UnknownMetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "untyped": UnknownMetricFamily,
}

#: (values of the labels, figure)
Sample = tuple[tuple[str, ...], float | Histogram]


class Exposition:
    """A collector of prometheus_client: asked at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Family]:
        return [_family(metric, []) for metric in METRICS]

    def collect(self) -> Iterator[Family]:
        samples: dict[str, list[Sample]] = {}
        for part in (self._counted(), self._node(), self._pool(), self._table()):
            for name, *labels, figure in part:
                samples.setdefault(name, []).append((tuple(labels), figure))
        for metric in METRICS:
            yield _family(metric, samples.get(metric.name, []))

    def _counted(self) -> Iterator[Any]:
        counts = self._metrics.counts
        counts.know(self._metrics.names())
        jobs = counts.jobs()
        by_outcome = {outcome: Histogram() for outcome in Outcome}
        attempts = failures = claims = 0
        for label, job in jobs.items():
            every, failed = Histogram(), 0
            for outcome, histogram in job.ran.items():
                every.add(histogram)
                by_outcome[outcome].add(histogram)
                if outcome in FAILURES:
                    failed += histogram.count
            yield "job_executions_total", label, every.count
            yield "job_failures_total", label, failed
            yield "job_duration_seconds", label, every
            yield "pgscheduler_schedule_lateness_seconds", label, job.lateness
            for outcome in RECORDED:
                yield "pgscheduler_runs_total", label, outcome, _lines(job, outcome)
            attempts += every.count
            failures += failed
            claims += job.lateness.count
        yield "pgscheduler_claims_total", claims
        yield "scheduler_jobs_total", attempts
        yield "scheduler_jobs_failed", failures
        yield "scheduler_jobs_success", by_outcome[Outcome.COMPLETED].count
        for outcome, histogram in by_outcome.items():
            if outcome in RECORDED and outcome is not Outcome.SKIPPED:
                yield "pgscheduler_run_duration_seconds", outcome, histogram
        resets, orphans, heartbeats = counts.rest()
        for label in {*jobs, *resets}:
            yield "pgscheduler_stalled_resets_total", label, resets.get(label, 0)
        yield "pgscheduler_orphaned_jobs_total", orphans
        yield "pgscheduler_heartbeat_lateness_seconds", heartbeats

    def _node(self) -> Iterator[Any]:
        scheduler, stats = self._metrics.scheduler, self._metrics.scheduler.node_stats()
        running = self._metrics.running()
        yield "jobs_running", running
        yield "scheduler_jobs_running", running
        yield "pgscheduler_node_info", scheduler.id, __version__, 1
        yield "pgscheduler_slots", scheduler.config.max_concurrent_jobs
        yield "pgscheduler_claims_held", stats["held"]
        yield "pgscheduler_claims_lost_total", stats["lost"]
        yield "pgscheduler_outcomes_unwritten", stats["unwritten"]
        yield "pgscheduler_fenced", stats["fenced"]
        for name, loop in stats["loops"].items():
            age = loop["last_success_seconds"]
            yield "pgscheduler_loop_up", name, loop["alive"]
            yield "pgscheduler_loop_failures", name, loop["failures"]
            if age is not None:
                yield "pgscheduler_loop_success_age_seconds", name, age
                if name == "heartbeat":
                    yield "pgscheduler_heartbeat_age_seconds", age

    def _pool(self) -> Iterator[Any]:
        stats = self._metrics.pool()
        if stats is None:
            return
        idle = stats.get("pool_available", 0)
        # A connection that is just being made or dropped is counted in one of the two and not yet in the other.
        yield "pgscheduler_pool_connections", "in_use", max(stats.get("pool_size", 0) - idle, 0)
        yield "pgscheduler_pool_connections", "idle", idle
        yield "pgscheduler_pool_size_limit", stats.get("pool_max", 0)
        yield "pgscheduler_pool_requests_waiting", stats.get("requests_waiting", 0)
        yield "pgscheduler_pool_requests_total", stats.get("requests_num", 0)
        yield "pgscheduler_pool_errors_total", stats.get("requests_errors", 0)
        yield "pgscheduler_pool_wait_seconds_total", stats.get("requests_wait_ms", 0) / 1000

    def _table(self) -> Iterator[Any]:
        reading = self._metrics.figures.get()
        yield "pgscheduler_database_up", reading is not None
        if reading is None:
            return
        for (label, state), jobs in self._by_label(reading).items():
            yield "pgscheduler_jobs", label, state, jobs
        yield "pgscheduler_jobs_estimated", reading.estimated
        yield "pgscheduler_queue_depth", reading.due
        yield "pgscheduler_oldest_due_seconds", reading.oldest_due
        yield "pgscheduler_reading_seconds", reading.seconds

    def _by_label(self, reading: Reading) -> dict[tuple[str, str], int]:
        labels = self._metrics.counts.labels
        # Zeros too: a state that nobody is in any more shall fall to 0, not vanish.
        names = [*self._metrics.names(), *sorted(name for name, _ in reading.jobs)]
        found = {(labels.seen(name), str(state)): 0 for name in names for state in LIVE}
        for (name, state), jobs in reading.jobs.items():
            found[labels.seen(name), state] += jobs
        return found


def _lines(job: JobCounts, outcome: Outcome) -> int:
    ran = job.ran.get(outcome)
    return job.unstarted[outcome] + (0 if ran is None else ran.count)


def _family(metric: Metric, samples: list[Sample]) -> Family:
    if metric.type == "histogram":
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, histogram in samples:
            assert isinstance(histogram, Histogram)
            buckets = list(zip(_BOUNDS, accumulate(histogram.counts), strict=True))
            family.add_metric(labels, buckets=buckets, sum_value=histogram.sum)
        return family
    plain = _KINDS[metric.type](metric.name, metric.help, labels=metric.labels)
    for labels, figure in samples:
        assert not isinstance(figure, Histogram)
        plain.add_metric(labels, float(figure))
    return plain
