"""What the verbs answer: plain frozen values, read once, never live."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ._json import load_json, read_json
from ._marks import hidden, marked
from .errors import show
from .states import JobState, Outcome

__all__ = ["JobRecord", "LogLine", "NodeRecord", "RunRecord", "Template", "run_id", "run_of"]


#: Under this key a job's metadata says from which template it was made.
TEMPLATE = "job_template"


#: What a token, 63 bits, never has.
_NOTHING_RAN = 1 << 63
_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def run_id(job: int, token: int | None, scheduled_at: datetime) -> str:
    """What a line of history is called: by its claim's token or, when nothing ran, by its occurrence."""
    if token is None:
        token = _NOTHING_RAN | (scheduled_at - _FIRST) // _MICROSECOND
    return f"{job}-{token:016x}"


def run_of(id_: str) -> tuple[int, int | None, datetime | None]:
    """A line's job and its token or occurrence. Raises ValueError for what is no id, OverflowError for what was never one."""
    job, dash, number = id_.partition("-")
    found = int(job), int(number, 16)
    if not dash or not (0 < found[0] < 1 << 63 and 0 <= found[1] < 1 << 64):
        raise OverflowError
    if found[1] & _NOTHING_RAN:
        return found[0], None, _FIRST + (found[1] ^ _NOTHING_RAN) * _MICROSECOND
    return found[0], found[1], None


def _at(value: datetime) -> datetime:
    """In UTC. The last hours of another zone's year 9999 are in its year 10000: of that, the last moment before."""
    try:
        return value.astimezone(UTC)
    except OverflowError:
        return _FIRST if value.year == 1 else datetime.max.replace(tzinfo=UTC)


def _utc(value: datetime | None) -> datetime | None:
    return None if value is None else _at(value)


def _outcome(row: Mapping[str, Any]) -> tuple[Outcome, str | None]:
    """A run's outcome and reason. One word that is no outcome must not hide the other runs.

    Whatever else it means, it does not mean completed: it is shown as a failure, and the reason says the word.
    """
    try:
        return Outcome(row["outcome"]), row["reason"]
    except ValueError:
        said = f"unknown outcome {show(row['outcome'])}"
        return Outcome.FAILED, said if row["reason"] is None else f"{said}: {row['reason']}"


@dataclass(frozen=True)
class JobRecord:
    """A job as it was when it was read. Times are aware UTC."""

    id: int
    name: str
    key: str | None
    state: JobState
    #: None once a one-time job has ended: history keeps neither it nor `created_at`.
    priority: int | None
    run_at: datetime
    scheduled_at: datetime
    created_at: datetime | None
    #: What was marked as secret is hidden: `{"$secret": "***"}`.
    parameters: Any
    #: The schedule as stored (`{"cron": …}`, `{"every": seconds}`, `{"custom": …}`); None for a one-time job.
    schedule: Mapping[str, Any] | None
    #: The stored policies that differ from the defaults; None: the registered class's.
    options: Mapping[str, Any] | None
    failures: int = 0
    stalls: int = 0
    node_id: str | None = None
    claimed_at: datetime | None = None
    heartbeat_at: datetime | None = None
    cancel_requested: bool = False
    progress: Any = None
    last_run: datetime | None = None
    last_success: datetime | None = None
    last_failure: datetime | None = None
    consecutive_failures: int = 0
    #: Milliseconds that the last run took, whether it was good or not.
    execution_time_ms: int | None = None
    last_error: str | None = None
    #: Of a finished one-time job.
    result: Any = None
    finished_at: datetime | None = None

    @property
    def recurring(self) -> bool:
        return self.schedule is not None

    @property
    def template(self) -> str | None:
        """The code of the template that it was made from."""
        metadata = (self.options or {}).get("metadata")
        found = metadata.get(TEMPLATE) if isinstance(metadata, dict) else None
        return found if isinstance(found, str) else None

    @property
    def attempt(self) -> int:
        """The attempt that runs, or would run next."""
        return self.failures + self.stalls + 1

    @property
    def retries_left(self) -> int:
        """Retries that are still left for this occurrence, by the stored policies."""
        retries = (self.options or {}).get("retries", 0)
        return max(retries - self.failures, 0) if isinstance(retries, int) else 0

    def _called(self) -> str:
        """What error texts call it."""
        return f"{self.id} {self.name}" if self.key is None else f"{self.id} {self.name}/{self.key}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def fresh(cls, row: Mapping[str, Any], given: Mapping[str, Any]) -> JobRecord:
        """A one-time job as it was just stored: what the server decided, and what was given."""
        made = object.__new__(cls)
        # As __init__ would, which in a frozen class sets each of all the fields by a call: a fifth of storing a job. What
        # is not here has the class's default.
        made.__dict__.update(
            id=row["id"],
            name=given["name"],
            key=None,
            state=JobState.PENDING,
            priority=given["priority"],
            run_at=_at(row["run_at"]),
            scheduled_at=_at(row["scheduled_at"]),
            created_at=_at(row["created_at"]),
            parameters=_given(given["parameters"]),
            schedule=None,
            options=_loads(given["options"]),
        )
        return made

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> JobRecord:
        """From a line of `jobs`."""
        return cls(
            id=row["id"],
            name=row["name"],
            key=row["key"],
            state=JobState(row["state"]),
            priority=row["priority"],
            run_at=_at(row["run_at"]),
            scheduled_at=_at(row["scheduled_at"]),
            created_at=_utc(row["created_at"]),
            parameters={} if row["parameters"] is None else hidden(row["parameters"]),
            schedule=_schedule(row["schedule"]),
            options=_loads(row["options"]),
            failures=row["failures"],
            stalls=row["stalls"],
            node_id=None if row["node_id"] is None else str(row["node_id"]),
            claimed_at=_utc(row["claimed_at"]),
            heartbeat_at=_utc(row["heartbeat_at"] or row["claimed_at"]),
            cancel_requested=row["cancel_requested"],
            progress=row["progress"],
            last_run=_utc(row["last_run"]),
            last_success=_utc(row["last_success"]),
            last_failure=_utc(row["last_failure"]),
            consecutive_failures=row["consecutive_failures"],
            execution_time_ms=row["execution_time_ms"],
            last_error=row["last_error"],
            result=row["result"],
        )

    @classmethod
    def from_last_run(cls, row: Mapping[str, Any]) -> JobRecord:
        """A finished one-time job, from its last line of `runs`: its live row is gone."""
        run = RunRecord.from_row(row)
        good = run.outcome is Outcome.COMPLETED
        bad = run.outcome.job_state is JobState.FAILED
        took = None
        if run.started_at is not None:
            took = int((run.finished_at - run.started_at) / timedelta(milliseconds=1))
        return cls(
            id=run.job_id,
            name=run.name,
            key=run.key,
            state=run.outcome.job_state,
            priority=None,
            run_at=run.scheduled_at,
            scheduled_at=run.scheduled_at,
            created_at=None,
            parameters=run.parameters,
            schedule=_schedule(row["schedule"]),
            options=_loads(row["options"]),
            failures=run.attempt if bad else max(run.attempt - 1, 0),
            node_id=run.node_id,
            progress=run.progress,
            last_run=run.started_at,
            last_success=run.finished_at if good else None,
            last_failure=run.finished_at if bad else None,
            consecutive_failures=run.attempt if bad else 0,
            execution_time_ms=took,
            last_error=run.error or run.reason if bad else None,
            result=run.result,
            finished_at=run.finished_at,
        )


@dataclass(frozen=True)
class RunRecord:
    """One line of history: an attempt, or an occurrence that was skipped."""

    #: Job and token; of a line for which nothing ran, job and occurrence. Every verb that takes a run takes it.
    id: str
    job_id: int
    name: str
    key: str | None
    outcome: Outcome
    attempt: int
    scheduled_at: datetime
    started_at: datetime | None
    finished_at: datetime
    node_id: str | None
    parameters: Any
    result: Any
    progress: Any
    #: Why, in words: `shutdown`, `misfire`, `no heartbeat since …`.
    reason: str | None
    #: What the run raised, with its traceback, at most 8 kB.
    error: str | None
    token: int | None = dataclasses.field(default=None, repr=False)
    #: Whether it was an occurrence of a recurring job.
    recurring: bool = False

    @property
    def duration(self) -> timedelta | None:
        return None if self.started_at is None else self.finished_at - self.started_at

    def _called(self) -> str:
        """What error texts call it."""
        return f"{self.id} {self.name}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = dataclasses.asdict(self)
        found.pop("token")
        return _plain(found)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> RunRecord:
        token = row["token"]
        outcome, reason = _outcome(row)
        return cls(
            id=run_id(row["job_id"], token, row["scheduled_at"]),
            job_id=row["job_id"],
            name=row["name"],
            key=row["key"],
            outcome=outcome,
            attempt=row["attempt"],
            scheduled_at=_at(row["scheduled_at"]),
            started_at=_utc(row["started_at"]),
            finished_at=_at(row["finished_at"]),
            node_id=None if row["node_id"] is None else str(row["node_id"]),
            parameters={} if row["parameters"] is None else hidden(row["parameters"]),
            result=row["result"],
            progress=row["progress"],
            reason=reason,
            error=row["error"],
            token=token,
            recurring=row["schedule"] is not None,
        )


@dataclass(frozen=True)
class LogLine:
    """One line that a run logged with `ctx.log`."""

    at: datetime
    level: str
    event: str
    fields: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return _plain(dataclasses.asdict(self))


@dataclass(frozen=True)
class NodeRecord:
    """One Scheduler, living or gone."""

    id: str
    host: str
    pid: int
    version: str
    slots: int
    names: tuple[str, ...]
    started_at: datetime
    heartbeat_at: datetime
    stopped_at: datetime | None
    alive: bool
    running: int

    def to_dict(self) -> dict[str, Any]:
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> NodeRecord:
        return cls(
            id=str(row["id"]),
            host=row["host"],
            pid=row["pid"],
            version=row["version"],
            slots=row["slots"],
            names=tuple(name for name in row["names"] if isinstance(name, str)),
            started_at=_at(row["started_at"]),
            heartbeat_at=_at(row["heartbeat_at"]),
            stopped_at=_utc(row["stopped_at"]),
            alive=row["alive"],
            running=row["running"],
        )


@dataclass(frozen=True)
class Template:
    """What jobs of one kind have in common: who runs them, how, and what their parameters must look like."""

    code: str
    name: str
    #: The registered name that runs its jobs.
    handler: str
    active: bool
    display_order: int
    retries: int
    #: None: no limit.
    timeout: timedelta | None
    #: A JSON Schema; None: any parameters fit.
    parameters_schema: Mapping[str, Any] | None
    created_at: datetime
    updated_at: datetime

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the timeout in seconds, as `create` and `update` take it."""
        seconds = None if self.timeout is None else self.timeout.total_seconds()
        return {**_plain(dataclasses.asdict(self)), "timeout": seconds}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Template:
        # Only what this version knows: the next one's migration may have added columns while this one runs.
        found = {field.name: row[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**found, "created_at": _utc(row["created_at"]), "updated_at": _utc(row["updated_at"])})


def _given(text: str | None) -> Any:
    """Parameters as they were just stored."""
    found = {} if text is None else load_json(text)
    return hidden(found) if marked(text) else found


def _loads(text: str | None) -> Any:
    """An object that is stored as text; what is none comes as `{"unreadable": …}`, so that the others can be seen."""
    found = None if text is None else read_json(text)
    return found if found is None or isinstance(found, dict) else {"unreadable": text}


def _schedule(text: str | None) -> Any:
    """The same of a schedule, whose cron line is text wherever it is shown."""
    found = _loads(text)
    return found if found is None or isinstance(found.get("cron", ""), str) else {"unreadable": text}


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in found.items()}
