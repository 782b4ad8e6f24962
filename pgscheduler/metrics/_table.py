"""Every figure there is: name, type, labels, meaning. The README's table is this one; a test compares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BUCKETS", "METRICS", "OTHER", "Metric"]

#: Seconds. A no-op takes microseconds, a nightly report hours; in between about four steps to a factor of ten.
BUCKETS = (
    0.001,
    0.005,
    0.025,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    900.0,
    3600.0,
    14400.0,
)

OTHER = "other"  # the label of all names beyond the limit


@dataclass(frozen=True, slots=True)
class Metric:
    """One family, under the name that is exposed."""

    name: str
    type: Literal["counter", "gauge", "histogram", "untyped"]
    labels: tuple[str, ...]
    help: str


METRICS = (
    # --- Kronii's: those that its code has, then those that its README names ---
    Metric(
        "job_executions_total", "counter", ("job_name",),
        "Attempts that this node started and recorded, whatever their outcome.",
    ),
    Metric(
        "job_failures_total", "counter", ("job_name",),
        "Those of them that failed, timed out, or whose process died; each counts once, also when it is retried.",
    ),
    Metric("jobs_running", "gauge", (), "Attempts in progress on this node."),
    Metric(
        "job_duration_seconds", "histogram", ("job_name",),
        "How long each attempt took, failed ones too.",
    ),
    Metric("scheduler_jobs_total", "counter", (), "The sum of job_executions_total."),
    Metric("scheduler_jobs_running", "gauge", (), "The same as jobs_running."),
    Metric("scheduler_jobs_failed", "untyped", (), "The sum of job_failures_total; it only grows, as a counter does."),
    Metric("scheduler_jobs_success", "untyped", (), "Attempts of this node that completed; it only grows, as a counter does."),
    # --- what this node did ---
    Metric(
        "pgscheduler_runs_total", "counter", ("job_name", "outcome"),
        "Lines of history that this node's runs wrote: also skipped occurrences, and jobs that ended unstarted (expired, say).",
    ),
    Metric(
        "pgscheduler_run_duration_seconds", "histogram", ("outcome",),
        "How long attempts took, by how they ended.",
    ),
    Metric(
        "pgscheduler_schedule_lateness_seconds", "histogram", ("job_name",),
        "From the moment that a job was due (jitter and retry delay included) until this node claimed it.",
    ),
    Metric("pgscheduler_claims_total", "counter", (), "Jobs that this node claimed."),
    Metric(
        "pgscheduler_claims_lost_total", "counter", (),
        "Runs whose job went to another node, because this one was silent or cut off for too long.",
    ),
    Metric(
        "pgscheduler_stalled_resets_total", "counter", ("job_name",),
        "Jobs of silent nodes that this node made due again.",
    ),
    Metric(
        "pgscheduler_orphaned_jobs_total", "counter", (),
        "Jobs that this node retired because no node had known their name for orphaned_job_timeout.",
    ),
    Metric(
        "pgscheduler_heartbeat_lateness_seconds", "histogram", (),
        "How much later than heartbeat_interval each heartbeat of this node came after the one before.",
    ),
    # --- how this node is ---
    Metric("pgscheduler_node_info", "gauge", ("node", "version"), "Always 1; which node and version this is."),
    Metric("pgscheduler_slots", "gauge", (), "Attempts that may be in progress at the same time on this node."),
    Metric("pgscheduler_claims_held", "gauge", (), "Jobs that this node holds: waiting for a slot, running, or not recorded yet."),
    Metric("pgscheduler_outcomes_unwritten", "gauge", (), "Outcomes that wait to be written; many mean a slow or absent database."),
    Metric("pgscheduler_fenced", "gauge", (), "1 while this node claims nothing, because it could not prove itself alive."),
    Metric("pgscheduler_heartbeat_age_seconds", "gauge", (), "Since this node's last heartbeat; no sample before start."),
    Metric("pgscheduler_loop_up", "gauge", ("loop",), "1 while the thread of a loop lives; no samples before start."),
    Metric("pgscheduler_loop_failures", "gauge", ("loop",), "Failures in a row; 0 after a success."),
    Metric("pgscheduler_loop_success_age_seconds", "gauge", ("loop",), "Since the loop's last step that did not fail."),
    Metric("pgscheduler_pool_connections", "gauge", ("state",), "Connections of the pool for short statements: in_use or idle."),
    Metric("pgscheduler_pool_size_limit", "gauge", (), "The most that the pool may open."),
    Metric("pgscheduler_pool_requests_waiting", "gauge", (), "Callers that wait for a connection."),
    Metric("pgscheduler_pool_requests_total", "counter", (), "Times that a connection was asked for."),
    Metric("pgscheduler_pool_errors_total", "counter", (), "Times that none came in time, or the pool was closed."),
    Metric("pgscheduler_pool_wait_seconds_total", "counter", (), "Time that callers waited for connections."),
    # --- the table of jobs, the same for all nodes: take max(), not sum() ---
    Metric("pgscheduler_jobs", "gauge", ("job_name", "state"), "Live jobs: pending, running or paused."),
    Metric(
        "pgscheduler_jobs_estimated", "gauge", (),
        "1 if pgscheduler_jobs is extrapolated from a sample of the table, because there are more than 50,000 jobs.",
    ),
    Metric("pgscheduler_queue_depth", "gauge", (), "Jobs that are due and wait; exact up to 10,000."),
    Metric("pgscheduler_oldest_due_seconds", "gauge", (), "For how long the oldest of them has been due; 0 if there is none."),
    Metric("pgscheduler_database_up", "gauge", (), "1 if the last reading of the table of jobs went well."),
    Metric("pgscheduler_reading_seconds", "gauge", (), "How long that reading took."),
)  # fmt: skip
