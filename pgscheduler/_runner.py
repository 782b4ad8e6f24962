"""One claim becomes one outcome: prepare, run the hooks, decide. No SQL; threads only for async jobs' plain hooks."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from . import states
from ._context import RunContext, Services
from ._decide import UNKNOWN_SCHEDULE_DELAY, Plan, Verdict, decide, error_text, prepare, unfit
from ._json import clean_text, load_json, printable
from ._marks import marked, mask, masked, texts_of
from ._registry import Registered, Registry, validate_parameters
from .clock import monotonic
from .job import Job, policy_of, schedule_of
from .signals import Signal
from .states import Claim, Ended, Outcome

__all__ = ["Runner", "call_hooks", "call_hooks_async"]

_FAILURES = frozenset({Outcome.FAILED, Outcome.TIMED_OUT, Outcome.STALLED})


class Runner:
    """Runs claims on the thread that calls it; async and process runs are driven by the executors."""

    def __init__(
        self,
        registry: Registry,
        services: Services,
        log: Any,
        report: Callable[[Claim, Any], None],
        outlived: Callable[[Claim], bool],
        catch_up: Callable[[Claim, datetime, list[dict[str, Any]]], bool],
    ) -> None:
        self._registry = registry
        self._services = services
        self.log = log
        self._outlived = outlived  # may somebody else have this claim's job by now?
        #: Writes that the claim's run is for this occurrence, and which were skipped. False: the claim was lost.
        self._note_catch_up = catch_up
        #: `report(claim, Ended)`, or `report(claim, (claim, started, ended))` for the common case: a one-time
        #: job that completed, returned nothing and said nothing.
        self.report = report

    def plan(self, claim: Claim) -> Plan | None:
        """What to do with a claim. None: it is settled without running, and was reported."""
        entry = self._registry.find(claim.name, claim.key)
        if entry is None or self.called_off(claim):
            # Unregistered, told to stop before it started, or too old to be begun: back, untouched.
            self.report(claim, states.released(claim))
            return None
        try:
            policy = entry.policy if claim.options is None else policy_of(claim.options)
            schedule = None if claim.schedule is None else schedule_of(claim.schedule) or entry.schedule
            plan = Plan(claim, entry, policy, schedule)
            settled = prepare(plan)
            if settled is None and policy.parameters_schema is not None:
                settled = unfit(plan, policy.parameters_schema)
        except Exception as error:  # noqa: BLE001 - a malformed row must not stop the others
            settled = states.ended(
                claim, Outcome.FAILED, None, 0.0, reason="the job's row is malformed", error=clean_text(error)
            )
            if claim.schedule is not None:
                settled = states.failed_again(
                    claim, Outcome.FAILED, None, 0.0, UNKNOWN_SCHEDULE_DELAY, error=clean_text(error)
                )
        if settled is None and plan.occurrence is not None and not self._catch_up(plan):
            settled = states.released(claim)
        if settled is not None:
            self.report(claim, settled)
            return None
        return plan

    def called_off(self, claim: Claim) -> bool:
        """Whether a run must not begin: it was told to stop, or its claim is so old that others may have the job."""
        return claim.stop_reason is not None or self._outlived(claim)

    def _catch_up(self, plan: Plan) -> bool:
        """Make the occurrence that was chosen the row's own; False if the run is not to begin."""
        claim, occurrence = plan.claim, plan.occurrence
        assert occurrence is not None
        try:
            if not self._note_catch_up(claim, occurrence, plan.skipped):
                return False  # lost: the refusal of its release says so
        except Exception as error:  # noqa: BLE001 - whatever it is, the job goes back and nothing was begun
            self.log.warning(
                "run not begun: its occurrence could not be written",
                job=claim.name,
                key=claim.key,
                attempt=claim.attempt,
                error=clean_text(error),
            )
            return False
        claim.scheduled_at, plan.occurrence, plan.skipped = occurrence, None, []
        return not self.called_off(claim)  # asked again: the answer may have taken longer than a claim lasts

    def isolation(self, plan: Plan) -> str:
        """thread, async or process."""
        wanted = plan.policy.isolation if plan.policy.isolation != "thread" else plan.entry.policy.isolation
        if wanted == "process":
            return wanted
        return "async" if plan.entry.is_async or wanted == "async" else "thread"

    def begin(self, plan: Plan) -> RunContext:
        """The context of a run, visible to whoever wants to stop it."""
        context = RunContext(plan.claim, self._services, monotonic(), plan.policy.timeout)
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
        self.log.error(
            "run broke outside its hooks",
            job=claim.name,
            key=claim.key,
            attempt=claim.attempt,
            error=error_text(error),
        )
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
            and not context._completed
            and context._lines is None
            and not context._dropped
            and context._progress is None
        ):
            self.report(claim, (claim, started, now))
            return
        outcome = decide(plan, context.cancel_reason, context._completed, verdict, started, now, self.log)
        progress, lines = context._take_notes(final=True)
        outcome.progress, outcome.logs = progress, lines
        if marked(claim.parameters):
            _hide(outcome, texts_of(load_json(claim.parameters)))
        if outcome.outcome in _FAILURES:
            self._tell(outcome)
        self.report(claim, outcome)

    def _tell(self, outcome: Ended) -> None:
        """A failed attempt, for whoever reads only the log; the whole error is in history."""
        if self.log is None:
            return
        claim, retried = outcome.claim, outcome.delay is not None
        (self.log.warning if retried else self.log.error)(
            "run failed",
            job=claim.name,
            key=claim.key,
            job_id=claim.id,
            attempt=claim.attempt,
            outcome=str(outcome.outcome),
            retry_in=outcome.delay,
            error=printable((outcome.error or outcome.reason or "").strip().rpartition("\n")[2][:500]),
        )


def _hide(outcome: Ended, secrets: frozenset[str]) -> None:
    """Nothing that was marked as secret is in what the run leaves behind. Its log lines were masked as they came."""
    for name in ("reason", "error"):
        text = getattr(outcome, name)
        if text is not None:
            setattr(outcome, name, mask(text, secrets))
    outcome.result = masked(outcome.result, secrets)


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
        return await _beside_the_loop(hook, context)

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
        if isinstance(early, Signal):
            verdict.value = early
        else:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError  # init went on to its end all the same, so the cancel is for run
            verdict.value = await call(job.run)
        _refuse_unstarted(verdict.value)
    except BaseException as error:  # noqa: BLE001
        verdict.error = error
    if entry.has_shutdown:
        try:
            await call(job.shutdown)
        except BaseException as error:  # noqa: BLE001
            context.log.error("shutdown hook failed", error=error_text(error))
    return verdict


async def _beside_the_loop(hook: Callable[[RunContext], Any], context: RunContext) -> Any:
    """Call a plain hook on a thread, and return when its code has ended, not before: its job is given to others then.

    A cancel cannot end it. It learns from its context that it should stop, as a thread job does.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    variables = contextvars.copy_context()

    def work() -> None:
        # The error comes back as a value: a StopIteration cannot be set on a future, which would then hang.
        outcome = variables.run(_attempt, hook, context)
        loop.call_soon_threadsafe(ended.set_result, outcome)

    # Not one of asyncio's own threads: there are few of them, and a process that is to end waits for each.
    threading.Thread(target=work, name=f"pgscheduler-hook-{context.name}", daemon=True).start()
    while not ended.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([ended])
    value, error = ended.result()
    if error is not None:
        raise error
    return value


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
