"""What becomes of a claim, decided without SQL, threads or the user's code.

`prepare` looks at a claim before anything runs: completed already, cancelled, expired, stalled too often, or a missed
occurrence. `decide` makes the outcome of what the hooks did, and of the policies.
"""

from __future__ import annotations

import asyncio
import hashlib
import traceback
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from . import states
from ._json import clean_text, dump_json, load_json
from ._marks import revealed
from ._registry import Registered
from ._schema import SchemaExtraError, check_parameters
from .errors import InvalidTypeError, InvalidValueError, JobCancelled, PgSchedulerError
from .job import Policy
from .schedule import Schedule, missed
from .signals import Cancel, Fail, Retry, Signal, Snooze
from .states import Claim, Ended, Outcome

__all__ = [
    "UNKNOWN_SCHEDULE_DELAY",
    "Plan",
    "ProcessDiedError",
    "RemoteError",
    "Verdict",
    "decide",
    "error_text",
    "jitter_of",
    "prepare",
    "unfit",
]

RESULT_LIMIT = 1 << 20  # bytes of JSON that a run may return
SKIPPED_KEPT = 100  # skipped occurrences with a line each; older ones share one
LONGEST_DELAY = 3650 * 86400.0  # seconds; the same limit as that of Retry and Snooze
UNKNOWN_SCHEDULE_DELAY = 60.0  # seconds until another node may try a schedule that this one cannot compute


class ProcessDiedError(Exception):
    """The process of an isolated run ended without an answer. Counted as a stall, not as a failure."""


class RemoteError(Exception):
    """What a run raised in its own process; the text is that process's traceback."""


@dataclass(slots=True)
class Plan:
    """A claim that is to run, and with which policies."""

    claim: Claim
    entry: Registered
    policy: Policy
    schedule: Schedule | None
    occurrence: datetime | None = None  # after a misfire: the one to catch up with, until the row says so too
    skipped: list[dict[str, Any]] = field(default_factory=list)  # those before it


@dataclass(slots=True)
class Verdict:
    """What the hooks did."""

    value: Any = None
    error: BaseException | None = None

    @property
    def signal(self) -> Signal | None:
        """The Retry, Snooze, Cancel or Fail that was raised or returned."""
        for said in (self.error, self.value):
            if isinstance(said, Signal):
                return said
        return None


# --- before user code runs --------------------------------------------------------------------------


def prepare(plan: Plan) -> Ended | None:
    """Settle what needs no run; None to go on. Rare cases all: the common claim falls through at once."""
    claim, policy = plan.claim, plan.policy
    if claim.done_already:
        # A ctx.transaction() committed, and its node vanished before the record: only the record is missing.
        return _final(plan, Outcome.COMPLETED, None, 0.0, reason="completed by its transaction", result=None)
    if claim.cancel_requested:
        return _final(plan, Outcome.CANCELLED, None, 0.0, reason="cancelled")
    if claim.stalls >= policy.max_stalls:
        return _final(
            plan,
            Outcome.FAILED,
            None,
            0.0,
            reason=f"stalled {claim.stalls} times: its node or process died during the run",
        )
    if plan.schedule is not None:
        return _misfire(plan)
    if claim.schedule is not None:
        text = "this node does not know the job's schedule class"
        return states.interrupted(claim, None, 0.0, UNKNOWN_SCHEDULE_DELAY, reason=text)
    if policy.expires_in is not None and claim.claimed_at > claim.scheduled_at + timedelta(
        seconds=policy.expires_in
    ):
        return states.ended(claim, Outcome.FAILED, None, 0.0, reason="expired", error="Expired")
    return None


def unfit(plan: Plan, schema: str) -> Ended | None:
    """Parameters that do not fit the schema stored with them never launch a job; another attempt would not help."""
    text = plan.claim.parameters
    try:
        check_parameters(schema, {} if text is None else revealed(load_json(text)))
    except SchemaExtraError as error:  # another node may be able to tell
        return states.interrupted(plan.claim, None, 0.0, UNKNOWN_SCHEDULE_DELAY, reason=str(error))
    except InvalidValueError as error:
        return _final(plan, Outcome.FAILED, None, 0.0, reason=str(error), error=str(error))
    return None


def _misfire(plan: Plan) -> Ended | None:
    """Occurrences that could not start in time: run one, all, or none of them, and record the others."""
    claim, policy, schedule = plan.claim, plan.policy, plan.schedule
    assert schedule is not None
    if claim.failures or claim.stalls:
        return None  # the retry of an occurrence that was started: it is this one's turn
    now, first = claim.claimed_at, claim.scheduled_at
    following = schedule.next_after(first)
    if following is None or following > now:
        if policy.misfire == "skip" and now - claim.run_at > policy.misfire_grace:
            return _skip_all(plan, _skipped([first], None, None, "misfire"), following)
        return None
    keep = policy.catchup - 1 if policy.misfire == "run_all" else SKIPPED_KEPT
    found = missed(schedule, first, now, keep)
    if policy.misfire == "run_all":
        if found.earlier is not None:
            plan.occurrence = found.recent[0] if found.recent else found.latest
            plan.skipped = _skipped([], found.earlier, plan.occurrence, "misfire: more than catchup")
        return None
    plan.skipped = _skipped(
        list(found.recent), found.earlier, found.recent[0] if found.recent else found.latest, "misfire"
    )
    if policy.misfire == "skip" and now - found.latest > policy.misfire_grace:
        skipped = plan.skipped + _skipped([found.latest], None, None, "misfire")
        return _skip_all(plan, skipped, schedule.next_after(found.latest))
    plan.occurrence = found.latest
    return None


def _skip_all(plan: Plan, skipped: list[dict[str, Any]], next_at: datetime | None) -> Ended:
    claim = plan.claim
    if next_at is None:
        return states.ended(claim, Outcome.SKIPPED, None, 0.0, reason="misfire", skipped=skipped)
    run_at = next_at + jitter_of(claim.id, next_at, plan.policy.jitter)
    move = states.advanced(claim, Outcome.SKIPPED, None, 0.0, next_at, run_at, skipped=skipped)
    move.outcome = None  # nothing ran: the skipped lines are the record
    return move


def _skipped(
    each: list[datetime], earlier: datetime | None, before: datetime | None, reason: str
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    if earlier is not None and before is not None:
        lines.append(
            {
                "scheduled_at": earlier.isoformat(),
                "reason": reason,
                "result": {"from": earlier.isoformat(), "before": before.isoformat()},
            }
        )
    lines += [{"scheduled_at": at.isoformat(), "reason": reason} for at in each]
    return lines


def jitter_of(job_id: int, occurrence: datetime, jitter: float) -> timedelta:
    """This occurrence's own fixed offset: the same on every node, and after a restart."""
    if not jitter:
        return timedelta(0)
    digest = hashlib.blake2b(f"{job_id}|{occurrence.isoformat()}".encode(), digest_size=8).digest()
    return timedelta(seconds=int.from_bytes(digest, "big") / 2**64 * jitter)


# --- after it -----------------------------------------------------------------------------------------


def decide(
    plan: Plan,
    reason: str | None,
    completed: bool,
    verdict: Verdict,
    started: float | None,
    at: float,
    log: Any = None,
) -> Ended:
    """The outcome of a run. Pure but for the backoff's random part.

    `reason` is why the run was asked to stop, if it was; `completed` that its transaction has committed.
    """
    claim = plan.claim
    said = verdict.signal
    error = None if verdict.error is None or isinstance(verdict.error, Signal) else verdict.error
    facts: dict[str, Any] = {} if error is None else {"error": error_text(error)}
    stopped = isinstance(error, JobCancelled | asyncio.CancelledError)
    if completed:
        return _final(plan, Outcome.COMPLETED, started, at, marked=True, **facts)
    if isinstance(error, ProcessDiedError):
        if reason == "timeout":
            return _failure(plan, Outcome.TIMED_OUT, error, None, started, at, reason="timeout", **facts)
        if reason in ("shutdown", "lost"):
            return states.interrupted(claim, started, at, 0.0, reason=reason)
        if reason != "cancelled":
            return states.died(claim, started, at, reason=str(error))
    if reason == "cancelled":
        return _final(plan, Outcome.CANCELLED, started, at, reason="cancelled", **facts)
    if reason == "timeout":
        return _failure(
            plan,
            Outcome.TIMED_OUT,
            error or TimeoutError("timeout"),
            None,
            started,
            at,
            reason="timeout",
            **facts,
        )
    if reason in ("shutdown", "lost") and stopped:
        return states.interrupted(claim, started, at, 0.0, reason=reason)
    if isinstance(said, Snooze):
        return states.interrupted(
            claim,
            started,
            at,
            said.after.total_seconds(),
            reason=clean_text(said.reason),
        )
    if isinstance(said, Cancel) or stopped:
        text = clean_text(said.reason) if said is not None and said.reason else "cancelled"
        return _final(plan, Outcome.CANCELLED, started, at, reason=text)
    if isinstance(said, Fail):
        return _final(
            plan, Outcome.FAILED, started, at, reason=clean_text(said.reason), error=clean_text(said.reason)
        )
    if isinstance(said, Retry):
        return _failure(
            plan,
            Outcome.FAILED,
            said,
            said.after,
            started,
            at,
            reason=clean_text(said.reason),
            error=clean_text(said.reason),
        )
    if error is not None:
        return _failure(plan, Outcome.FAILED, error, None, started, at, **facts)
    return _final(plan, Outcome.COMPLETED, started, at, result=_result(verdict.value, claim, log))


def _failure(
    plan: Plan,
    outcome: Outcome,
    cause: BaseException,
    delay: timedelta | None,
    started: float | None,
    at: float,
    **facts: Any,
) -> Ended:
    """A counted failure: another attempt if one is left, else the end of this occurrence."""
    failures = plan.claim.failures + 1
    if failures <= plan.policy.retries:
        if delay is None:
            backoff = plan.policy.backoff or plan.entry.backoff
            try:
                delay = backoff(failures, cause)
            except Exception as broken:  # noqa: BLE001 - the user's own code
                facts["reason"] = f"backoff failed: {clean_text(broken, 200)}"
                delay = timedelta(seconds=60)
        if delay is not None:
            # A callable may answer any timedelta; PostgreSQL's time ends long before Python's.
            seconds = min(max(delay.total_seconds(), 0.0), LONGEST_DELAY)
            return states.failed_again(plan.claim, outcome, started, at, seconds, **facts)
    return _final(plan, outcome, started, at, **facts)


def _final(plan: Plan, outcome: Outcome, started: float | None, at: float, **facts: Any) -> Ended:
    """The end of a one-time job, or of this occurrence of a recurring one."""
    claim, schedule = plan.claim, plan.schedule
    if schedule is None:
        return states.ended(claim, outcome, started, at, **facts)
    now = claim.claimed_at + timedelta(seconds=at)
    next_at, skipped = following(schedule, plan.policy, claim.scheduled_at, now)
    if next_at is None:
        return states.ended(claim, outcome, started, at, skipped=skipped, **facts)
    run_at = next_at + jitter_of(claim.id, next_at, plan.policy.jitter)
    return states.advanced(claim, outcome, started, at, next_at, run_at, skipped=skipped, **facts)


def following(
    schedule: Schedule, policy: Policy, occurrence: datetime, now: datetime
) -> tuple[datetime | None, list[dict[str, Any]]]:
    """The next occurrence after a run that ended `now`, and those that fell into it.

    A job never overlaps itself: what its schedule asked for while it ran is recorded as skipped, unless the
    job wants every occurrence (`run_all`).
    """
    first = schedule.next_after(occurrence)
    if first is None or first > now or policy.misfire == "run_all":
        return first, []
    found = missed(schedule, first, now, SKIPPED_KEPT)
    lines = _skipped(
        [*found.recent, found.latest],
        found.earlier,
        found.recent[0] if found.recent else found.latest,
        "overlap",
    )
    # From the latest occurrence, not from now: an interval would else begin anew with each run that takes too long.
    return schedule.next_after(found.latest), lines


def _result(value: Any, claim: Claim, log: Any) -> Any:
    if value is None:
        return None
    try:
        return load_json(dump_json("result", value, RESULT_LIMIT))
    except (InvalidTypeError, InvalidValueError) as error:
        # The work is done; doing it again because of what it returned would be wrong.
        if log is not None:
            log.warning(
                "result was not stored",
                job=claim.name,
                key=claim.key,
                attempt=claim.attempt,
                error=str(error)[:300],
            )
        return None


def error_text(error: BaseException) -> str:
    """Type, text and traceback, bounded. Frames' local variables are left out: they hold secrets."""
    if isinstance(error, RemoteError) or (isinstance(error, PgSchedulerError) and error.plain):
        return clean_text(error)
    try:
        text = "".join(traceback.format_exception(error, limit=-20))
    except BaseException:  # noqa: BLE001 - an exception whose __str__ raises
        text = f"{type(error).__name__}: {clean_text(error)}"
    return clean_text(text)
