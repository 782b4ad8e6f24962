"""What is answered about jobs, runs and nodes. Secrets of stored requests are hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from pgscheduler.jobs._secrets import shown
from pgscheduler.records import JobRecord, LogLine, NodeRecord, RunRecord
from pgscheduler.states import JobState, Outcome

from ._fields import Answer, Json, Seen

__all__ = ["JobAnswer", "LogAnswer", "NodeAnswer", "RunAnswer"]

#: Cron Service's words for how a run ended.
_STATUS = {Outcome.COMPLETED: "SUCCESS", Outcome.SKIPPED: "MISSED"}


class JobAnswer(Answer):
    """A job as it was when it was read. The first five fields are Cron Service's."""

    id: int
    name: str = Field(description="The registered name; of a Cron Service job its own, which is its key.")
    cron_expression: str | None = Field(description="Null if it is not by cron.")
    is_active: bool = Field(description="False: paused, or ended.")
    created_at: Seen | None
    job: str = Field(description="Which registered class runs it.")
    key: str | None
    state: JobState
    recurring: bool
    schedule: dict[str, Any] | None = Field(
        description="`cron` and `timezone`, `every` (seconds), or `custom`."
    )
    priority: int | None = Field(description="Null of a one-time job that has ended.")
    run_at: Seen = Field(description="When it is due: the occurrence, with jitter and retries.")
    scheduled_at: Seen = Field(description="The occurrence.")
    parameters: Json = Field(description="Values that may be secret are hidden.")
    options: dict[str, Any] | None = Field(
        description="Stored policies that differ from the defaults, durations in seconds; null: the class's."
    )
    template: str | None = Field(description="The code of the template that it was made from.")
    failures: int
    stalls: int
    attempt: int = Field(description="The attempt that runs, or would run next.")
    retries_left: int
    node_id: str | None
    claimed_at: Seen | None
    heartbeat_at: Seen | None
    cancel_requested: bool
    progress: Json
    last_run: Seen | None
    last_success: Seen | None
    last_failure: Seen | None
    consecutive_failures: int
    execution_time_ms: int | None
    last_error: str | None
    result: Json = Field(description="Of a one-time job that has ended.")
    finished_at: Seen | None

    @classmethod
    def of(cls, job: JobRecord, http_job: str) -> JobAnswer:
        schedule = None
        if job.schedule is not None:
            schedule = {name: value for name, value in job.schedule.items() if name != "tzdata"}
        titled = job.name == http_job and job.recurring and job.key is not None
        return cls(
            **{name: getattr(job, name) for name in _JOB_FIELDS},
            name=job.key if titled and job.key is not None else job.name,
            job=job.name,
            cron_expression=(schedule or {}).get("cron"),
            is_active=job.state is not JobState.PAUSED and not job.state.final,
            schedule=schedule,
            parameters=shown(job.parameters),
            options=_plain_options(job.options),
        )


_DERIVED = {"name", "job", "cron_expression", "is_active", "schedule", "parameters", "options"}
_JOB_FIELDS = tuple(name for name in JobAnswer.model_fields if name not in _DERIVED)


def _plain_options(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if options is None else dict(options)


class RunAnswer(Answer):
    """One line of history: an attempt, or an occurrence that was skipped."""

    id: str
    job_id: int
    name: str = Field(description="The registered name.")
    key: str | None
    outcome: Outcome
    status: Literal["SUCCESS", "FAILED", "MISSED"] = Field(description="The outcome in Cron Service's words.")
    attempt: int
    scheduled_at: Seen
    started_at: Seen | None
    finished_at: Seen
    duration_seconds: float | None
    node_id: str | None
    parameters: Json = Field(description="Values that may be secret are hidden.")
    result: Json
    progress: Json
    reason: str | None
    error: str | None

    @classmethod
    def of(cls, run: RunRecord) -> RunAnswer:
        return cls(
            **{name: getattr(run, name) for name in _RUN_FIELDS},
            status=_STATUS.get(run.outcome, "FAILED"),  # type: ignore[arg-type]
            duration_seconds=None if run.duration is None else run.duration.total_seconds(),
            parameters=shown(run.parameters),
        )


_RUN_FIELDS = tuple(
    name for name in RunAnswer.model_fields if name not in ("status", "duration_seconds", "parameters")
)


class LogAnswer(Answer):
    """One line that a run logged."""

    at: Seen
    level: str
    event: str
    fields: dict[str, Any]

    @classmethod
    def of(cls, line: LogLine) -> LogAnswer:
        return cls(at=line.at, level=line.level, event=line.event, fields=dict(line.fields))


class NodeAnswer(Answer):
    """One scheduler that runs jobs, living or gone."""

    id: str
    host: str
    pid: int
    version: str
    slots: int
    names: list[str] = Field(description="The jobs that it knows.")
    started_at: Seen
    heartbeat_at: Seen
    stopped_at: Seen | None
    alive: bool
    running: int

    @classmethod
    def of(cls, node: NodeRecord) -> NodeAnswer:
        found = {name: getattr(node, name) for name in cls.model_fields}
        return cls(**{**found, "names": list(node.names)})
