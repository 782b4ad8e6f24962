"""One claim becomes one outcome: prepare, run the hooks, decide. No SQL, no threads.

`prepare` looks at a claim before any user code runs: completed already, cancelled, expired, stalled too often,
or a missed occurrence. `decide` is pure: what the hooks did, and the policies, make the outcome.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from . import states
from ._context import RunContext, Services
from ._json import clean_text, dump_json, load_json
from ._registry import Registered, Registry, validate_parameters
from .clock import monotonic
from .errors import InvalidTypeError, InvalidValueError, JobCancelled
from .job import Job, Policy, policy_of, schedule_of
from .schedule import Schedule, missed
from .signals import Cancel, Fail, Retry, Signal, Snooze
from .states import Claim, Ended, Outcome

__all__ = ["Plan", "ProcessDiedError", "RemoteError", "Runner", "Verdict", "decide"]

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
    """A claim that is to run: with which policies, for which occurrence, and what was skipped before it."""

    claim: Claim
    entry: Registered
    policy: Policy
    schedule: Schedule | None
    occurrence: datetime | None = None  # None: the row's own
    skipped: list[dict[str, Any]] = field(default_factory=list)


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


class Runner:
    """Runs claims on the thread that calls it; async and process runs are driven by the executors."""

    def __init__(
        self, registry: Registry, services: Services, log: Any, report: Callable[[Claim, Any], None]
    ) -> None:
        self._registry = registry
        self._services = services
        self._log = log
        #: `report(claim, Ended)`, or `report(claim, (claim, started, ended))` for the common case: a one-time
        #: job that completed, returned nothing and said nothing.
        self.report = report

    def plan(self, claim: Claim) -> Plan | None:
        """What to do with a claim. None: it is settled without running, and was reported."""
        entry = self._registry.find(claim.name, claim.key)
        if entry is None or claim.stop_reason is not None:
            # Unregistered or told to stop before it started: back, untouched.
            self.report(claim, states.released(claim))
            return None
        try:
            policy = entry.policy if claim.options is None else policy_of(claim.options)
            schedule = None if claim.schedule is None else schedule_of(claim.schedule) or entry.schedule
            plan = Plan(claim, entry, policy, schedule)
            settled = _prepare(plan)
        except Exception as error:  # noqa: BLE001 - a malformed row must not stop the others
            settled = states.ended(
                claim, Outcome.FAILED, None, 0.0, reason="the job's row is malformed", error=clean_text(error)
            )
            if claim.schedule is not None:
                settled = states.failed_again(
                    claim, Outcome.FAILED, None, 0.0, UNKNOWN_SCHEDULE_DELAY, error=clean_text(error)
                )
        if settled is not None:
            self.report(claim, settled)
            return None
        return plan

    def isolation(self, plan: Plan) -> str:
        """thread, async or process."""
        wanted = plan.policy.isolation if plan.policy.isolation != "thread" else plan.entry.policy.isolation
        if wanted == "process":
            return wanted
        return "async" if plan.entry.is_async or wanted == "async" else "thread"

    def begin(self, plan: Plan) -> RunContext:
        """The context of a run, visible to whoever wants to stop it."""
        context = RunContext(plan.claim, self._services, monotonic(), plan.policy.timeout, plan.occurrence)
        plan.claim.context = context
        if plan.claim.stop_reason is not None:
            context._stop(plan.claim.stop_reason)
        return context

    def run(self, plan: Plan, context: RunContext) -> None:
        """Run the hooks here and now, and report."""
        # A fresh context for each run: what one job binds there, the next one on this thread must not see.
        verdict = contextvars.Context().run(call_hooks, plan.entry, context)
        self.finish(plan, context, verdict)

    def fail(self, claim: Claim, error: BaseException) -> None:
        """Something outside the hooks broke: the attempt is released to be tried elsewhere, after a while."""
        claim.context = None
        self._log.error("run broke outside its hooks", job=claim.name, key=claim.key, error=error_text(error))
        at = monotonic() - claim.received
        outcome = states.failed_again(
            claim, Outcome.FAILED, None, at, UNKNOWN_SCHEDULE_DELAY, error=error_text(error)
        )
        self.report(claim, outcome)

    def finish(self, plan: Plan, context: RunContext, verdict: Verdict) -> None:
        """Make the outcome and hand it over."""
        claim = plan.claim
        started = context._started - claim.received
        now = monotonic() - claim.received
        claim.context = None
        if (
            claim.schedule is None
            and verdict.error is None
            and verdict.value is None
            and context.cancel_reason is None
            and context._lines is None
            and not context._dropped
            and context._progress is None
        ):
            self.report(claim, (claim, started, now))
            return
        outcome = decide(plan, context.cancel_reason, context._completed, verdict, started, now, self._log)
        progress, lines = context._take_notes(final=True)
        outcome.progress, outcome.logs = progress, lines
        self.report(claim, outcome)


def call_hooks(entry: Registered, context: RunContext) -> Verdict:
    """init → run → shutdown, whatever they raise."""
    early: Any = None
    try:
        job = entry.make()
        if entry.typed is not None:
            context._parameters = validate_parameters(entry.typed, context.parameters)
        if entry.has_init:
            early = job.init(context)
    except BaseException as error:  # noqa: BLE001 - SystemExit in a job ends the attempt, not the node
        return Verdict(error=error)
    verdict = Verdict()
    try:
        # An init that has decided has opened things too: run is left out, shutdown is not.
        verdict.value = early if isinstance(early, Signal) else job.run(context)
        if verdict.value is not None:
            _refuse_unstarted(verdict.value)
    except BaseException as error:  # noqa: BLE001
        verdict.error = error
    if entry.has_shutdown:
        try:
            job.shutdown(context)
        except BaseException as error:  # noqa: BLE001
            # The work is done or its own error matters more; either way doing it again would be wrong.
            context.log.error("shutdown hook failed", error=error_text(error))
    return verdict


async def call_hooks_async(entry: Registered, context: RunContext) -> Verdict:
    """The same for async jobs; plain hooks among them run on a thread, so that none blocks the loop."""

    async def call(hook: Callable[[RunContext], Any]) -> Any:
        if inspect.iscoroutinefunction(hook):
            return await hook(context)
        # The error comes back as a value: a StopIteration cannot be set on a future, which would then hang.
        value, error = await asyncio.to_thread(_attempt, hook, context)
        if error is not None:
            raise error
        return value

    early: Any = None
    try:
        job: Job = entry.make()
        if entry.typed is not None:
            context._parameters = validate_parameters(entry.typed, context.parameters)
        if entry.has_init:
            early = await call(job.init)
    except BaseException as error:  # noqa: BLE001
        return Verdict(error=error)
    verdict = Verdict()
    try:
        verdict.value = early if isinstance(early, Signal) else await call(job.run)
        _refuse_unstarted(verdict.value)
    except BaseException as error:  # noqa: BLE001
        verdict.error = error
    if entry.has_shutdown:
        try:
            await call(job.shutdown)
        except BaseException as error:  # noqa: BLE001
            context.log.error("shutdown hook failed", error=error_text(error))
    return verdict


def _attempt(hook: Callable[[RunContext], Any], context: RunContext) -> tuple[Any, BaseException | None]:
    try:
        return hook(context), None
    except BaseException as error:  # noqa: BLE001 - the caller raises it
        return None, error


def _refuse_unstarted(value: Any) -> None:
    """Raise for what a forgotten `async` or a stray `yield` returns: the body has not run, so nothing is done."""
    if inspect.iscoroutine(value) or inspect.isgenerator(value):
        value.close()
    elif not inspect.isasyncgen(value):
        return
    raise TypeError(
        f"run returned a {type(value).__name__}, so its body never ran: `async def run` without `yield`"
    )


# --- before user code runs --------------------------------------------------------------------------


def _prepare(plan: Plan) -> Ended | None:
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
            return _skip_all(plan, _skipped([first], None, None, "misfire"))
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
        return _skip_all(plan, plan.skipped + _skipped([found.latest], None, None, "misfire"))
    plan.occurrence = found.latest
    return None


def _skip_all(plan: Plan, skipped: list[dict[str, Any]]) -> Ended:
    claim = plan.claim
    assert plan.schedule is not None
    next_at = plan.schedule.next_after(claim.claimed_at)
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
        return _final(plan, Outcome.COMPLETED, started, at, **facts)
    if isinstance(error, ProcessDiedError):
        if reason == "timeout":
            return _failure(plan, Outcome.TIMED_OUT, error, None, started, at, reason="timeout", **facts)
        if reason in ("shutdown", "lost"):
            return states.interrupted(claim, started, at, 0.0, reason=reason)
        if reason != "cancelled":
            return states.died(
                claim, started, at, reason=str(error), scheduled_at=plan.occurrence, skipped=plan.skipped
            )
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
            scheduled_at=plan.occurrence,
            skipped=plan.skipped,
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
            return states.failed_again(
                plan.claim,
                outcome,
                started,
                at,
                seconds,
                scheduled_at=plan.occurrence,
                skipped=plan.skipped,
                **facts,
            )
    return _final(plan, outcome, started, at, **facts)


def _final(plan: Plan, outcome: Outcome, started: float | None, at: float, **facts: Any) -> Ended:
    """The end of a one-time job, or of this occurrence of a recurring one."""
    claim, schedule = plan.claim, plan.schedule
    if schedule is None:
        return states.ended(claim, outcome, started, at, **facts)
    occurrence = plan.occurrence or claim.scheduled_at
    now = claim.claimed_at + timedelta(seconds=at)
    next_at, skipped = following(schedule, plan.policy, occurrence, now)
    skipped = plan.skipped + skipped
    if next_at is None:
        return states.ended(claim, outcome, started, at, scheduled_at=occurrence, skipped=skipped, **facts)
    run_at = next_at + jitter_of(claim.id, next_at, plan.policy.jitter)
    return states.advanced(
        claim, outcome, started, at, next_at, run_at, scheduled_at=occurrence, skipped=skipped, **facts
    )


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
    return schedule.next_after(now), lines


def _result(value: Any, claim: Claim, log: Any) -> Any:
    if value is None:
        return None
    try:
        return load_json(dump_json("result", value, RESULT_LIMIT))
    except (InvalidTypeError, InvalidValueError) as error:
        # The work is done; doing it again because of what it returned would be wrong.
        if log is not None:
            log.warning("result was not stored", job=claim.name, key=claim.key, error=str(error)[:300])
        return None


def error_text(error: BaseException) -> str:
    """Type, text and traceback, bounded. Frames' local variables are left out: they hold secrets."""
    if isinstance(error, RemoteError):
        return clean_text(error)
    try:
        text = "".join(traceback.format_exception(error, limit=-20))
    except BaseException:  # noqa: BLE001 - an exception whose __str__ raises
        text = f"{type(error).__name__}: {clean_text(error)}"
    return clean_text(text)
