"""The words for what a job is and how a run ended, and one constructor per legal move of a job.

::

                    ┌──────────── retry, snooze, release, stalled ───────────┐
                    ▼                                                        │
    schedule ──► pending ──── claim ────► running ── one-time: ended ──► completed, failed, cancelled
                  ▲   │                      │
           resume │   │ pause                └── recurring: next occurrence ──► pending
                  │   ▼
                  paused
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

__all__ = [
    "Claim",
    "Ended",
    "JobState",
    "Outcome",
    "advanced",
    "died",
    "ended",
    "failed_again",
    "interrupted",
    "micros",
    "released",
]


class JobState(StrEnum):
    """What a job is. The first three are live, the last three final."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


class Outcome(StrEnum):
    """How a run ended; one line in ``runs`` has one of these."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    STALLED = "stalled"  # its node vanished, or its process died
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"  # shutdown or snooze; burns no attempt
    SKIPPED = "skipped"  # an occurrence that was not started: misfire or overlap
    ORPHANED = "orphaned"  # no node knew its name

    @property
    def job_state(self) -> JobState:
        """The final state of a one-time job whose last run ended so."""
        if self is Outcome.COMPLETED:
            return JobState.COMPLETED
        return JobState.CANCELLED if self is Outcome.CANCELLED else JobState.FAILED


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # where PostgreSQL's binary times begin
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """A time as a claim's row has it."""
    return (moment - _EPOCH) // _MICROSECOND


class _Moment:
    """A claim's time: kept as the row has it, in microseconds, and a datetime (UTC) for those who ask.

    Most claims run without anybody asking, and making three datetimes of a row costs ten times what the rest of it
    does. The table's constraints keep them within what a datetime can hold.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"{name}_micros"

    def __get__(self, claim: Claim, owner: type | None = None) -> datetime:
        return _EPOCH + timedelta(microseconds=getattr(claim, self._name))

    def __set__(self, claim: Claim, moment: datetime) -> None:
        setattr(claim, self._name, micros(moment))


class Claim:
    """A job as one claim found it: a row, and what the node knows about its own hold on it.

    ``context`` and ``stop_reason`` are how a stop finds its run: the worker sets ``context`` and then looks
    at ``stop_reason``; who stops sets ``stop_reason`` and then looks at ``context``. One of the two sees the
    other, without a lock.
    """

    __slots__ = (
        "beaten_at",
        "cancel_requested",
        "claimed_at_micros",
        "context",
        "done_already",
        "failures",
        "id",
        "key",
        "lost",
        "name",
        "options",
        "parameters",
        "priority",
        "received",
        "run_at_micros",
        "schedule",
        "scheduled_at_micros",
        "settled",
        "stalls",
        "stop_reason",
        "token",
    )

    id: int
    name: str
    key: str | None
    priority: int
    run_at_micros: int  # this and the other two: microseconds since 2000, UTC
    scheduled_at_micros: int
    failures: int
    stalls: int
    schedule: str | None
    options: str | None
    parameters: str | None
    cancel_requested: bool
    done_already: bool
    claimed_at_micros: int

    run_at = _Moment()
    scheduled_at = _Moment()
    claimed_at = _Moment()

    def __init__(self, row: tuple[Any, ...], token: int, sent: float, received: float) -> None:
        (
            self.id,
            self.name,
            self.key,
            self.priority,
            self.run_at_micros,
            self.scheduled_at_micros,
            self.failures,
            self.stalls,
            self.schedule,  # JSON text, None for a one-time job
            self.options,  # JSON text, None: the registered class's policies
            self.parameters,  # JSON text; decoded when the job asks
            self.cancel_requested,
            self.done_already,
            self.claimed_at_micros,
        ) = row
        self.token = token
        self.received = received  # monotonic; offsets of the run are counted from here
        self.beaten_at = sent  # elapsed(), taken before the claim was sent: never later than the database's
        self.context: Any = None
        self.stop_reason: str | None = None
        self.lost = False
        self.settled = False  # its run has ended (or never began); only the write is left

    def stop(self, reason: str) -> None:
        """Ask this claim's run to stop. `lost` overrides every other reason, else the first one counts."""
        if self.stop_reason is None or reason == "lost":
            self.stop_reason = reason
        if reason == "lost":
            self.lost = True
        context = self.context
        if context is not None:
            context._stop(reason)

    @property
    def attempt(self) -> int:
        """1 for the first; interrupted and snoozed runs do not count."""
        return self.failures + self.stalls + 1

    @property
    def lateness(self) -> float:
        """Seconds from when the job was due to its claim."""
        return (self.claimed_at_micros - self.run_at_micros) / 1e6

    def now(self, monotonic_now: float) -> datetime:
        """The database's time, as far as this node can tell: the claim's plus what has passed since."""
        return self.claimed_at + timedelta(seconds=monotonic_now - self.received)


@dataclass(slots=True)
class Ended:
    """One move of a job: how its run ended, and what the job does next.

    Made by the constructors below; each fills exactly the fields that belong to its move.
    Seconds in ``started`` and ``ended`` count from the claim. ``to_json`` is what ``finish.sql`` reads.
    """

    claim: Claim
    outcome: Outcome | None  # None: the run never started, nothing to record
    ends: bool
    started: float | None
    ended: float
    failures: int
    stalls: int
    reason: str | None = None
    error: str | None = None
    result: Any = None  # JSON value
    delay: float | None = None  # seconds until the next attempt
    next_at: datetime | None = None  # the next occurrence
    next_run_at: datetime | None = None  # the same with jitter
    skipped: list[dict[str, Any]] = field(default_factory=list)
    progress: Any = None
    logs: list[dict[str, Any]] = field(default_factory=list)
    marked: bool = False  # ctx.transaction() completed it, so the row must say so too

    def bare(self) -> Ended:
        """The same move without anything that the user's code made, for when the server refuses the rest."""
        return replace(
            self,
            reason="the run's record could not be stored whole",
            error=None,
            result=None,
            progress=None,
            logs=[],
        )

    def to_json(self) -> dict[str, Any]:
        claim = self.claim
        return {
            "id": claim.id,
            "token": claim.token,
            "outcome": self.outcome,
            "ends": self.ends,
            "started": self.started,
            "ended": self.ended,
            "attempt": claim.attempt,
            "reason": self.reason,
            "error": self.error,
            "result": self.result,
            "progress": self.progress,
            "failures": self.failures,
            "stalls": self.stalls,
            "delay": self.delay,
            "next_at": self.next_at and self.next_at.isoformat(),
            "next_run_at": self.next_run_at and self.next_run_at.isoformat(),
            "skipped": self.skipped or None,
            "logs": self.logs or None,
            "marked": self.marked or None,
        }


def ended(claim: Claim, outcome: Outcome, started: float | None, at: float, **facts: Any) -> Ended:
    """A one-time job is over: its row leaves the live table."""
    return Ended(claim, outcome, True, started, at, claim.failures, claim.stalls, **facts)


def failed_again(
    claim: Claim, outcome: Outcome, started: float | None, at: float, delay: float, **facts: Any
) -> Ended:
    """This attempt failed and another follows after `delay` seconds; the occurrence stays the same."""
    return Ended(claim, outcome, False, started, at, claim.failures + 1, claim.stalls, delay=delay, **facts)


def died(claim: Claim, started: float | None, at: float, **facts: Any) -> Ended:
    """The run's process died under it: counted as a stall, due again at once."""
    return Ended(
        claim, Outcome.STALLED, False, started, at, claim.failures, claim.stalls + 1, delay=0.0, **facts
    )


def advanced(
    claim: Claim,
    outcome: Outcome,
    started: float | None,
    at: float,
    next_at: datetime,
    next_run_at: datetime,
    **facts: Any,
) -> Ended:
    """This occurrence of a recurring job is over; `next_at` is the next one, its counts start at zero."""
    return Ended(claim, outcome, False, started, at, 0, 0, next_at=next_at, next_run_at=next_run_at, **facts)


def interrupted(claim: Claim, started: float | None, at: float, delay: float, **facts: Any) -> Ended:
    """Stopped before its end (shutdown, snooze): due again after `delay`, no attempt burned."""
    return Ended(
        claim, Outcome.INTERRUPTED, False, started, at, claim.failures, claim.stalls, delay=delay, **facts
    )


def forgotten(move: Ended) -> Ended:
    """Completed by a transaction that the database does not know any more (a failover lost it): due again at once."""
    claim, text = move.claim, "its transaction is gone: lost in a failover"
    return interrupted(
        claim, move.started, move.ended, 0.0, reason=text, progress=move.progress, logs=move.logs
    )


def released(claim: Claim) -> Ended:
    """Claimed but never started: back as it was, and nothing to record."""
    return Ended(claim, None, False, None, 0.0, claim.failures, claim.stalls)
