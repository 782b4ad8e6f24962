"""Which instants a recurring job ran for: those of its schedule, each once, none before its time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any

from pgscheduler import Cron, Every
from tests.chaos.history import Call, Run, epoch
from tests.chaos.view import CLOCK_ERROR, View, occurrences_of, shown

__all__ = ["each_occurrence_once", "every_occurrence_is_accounted_for", "nothing_runs_early"]

#: Lines that settle their occurrence; a failed one may be followed by a retry.
_SETTLED = ("completed", "cancelled", "skipped")
_RANGE_LIMIT = 100_000


def each_occurrence_once(view: View) -> Iterator[str]:
    """An occurrence is settled once: after that nothing more is recorded of it, and none of its code begins. P6."""
    for job, runs in sorted(view.runs.items()):
        if not view.recurring(job):
            continue
        for occurrence, lines in occurrences_of(runs):
            places = [place for place, line in enumerate(lines) if line.outcome in _SETTLED]
            if not places:
                continue
            settled, after = lines[places[0]], lines[places[0] + 1 :]
            if after:
                yield f"{shown(settled)}: the occurrence {_time(occurrence)} was {settled.outcome}, and then {after[-1].outcome}"
            for began in view.begans_for(job, occurrence):
                late = began.at - view.boot(settled.finished_at)
                if late > CLOCK_ERROR and began.token != settled.token:
                    when = f"{_time(occurrence)} {late:.2f} s after that was {settled.outcome}"
                    yield f"{shown(began)}: {began.run_id} began for {when}"


def every_occurrence_is_accounted_for(view: View) -> Iterator[str]:
    """What was recorded are the schedule's instants, one after the other: run, or skipped with a reason. P6, P8, P15.

    A trigger adds an occurrence (from which an interval goes on); a resume, and another schedule, go on from their
    own time. Nothing else may.
    """
    for job in sorted(view.seen):
        if not view.recurring(job):
            continue
        chain = _Chain(view, job)
        for before, after in chain.pairs():
            fault = chain.fault(before, after)
            if fault is not None:
                yield f"{chain.name}: {fault}"


class _Chain:
    """The occurrences of one job, in order, the one that its row waits for included."""

    def __init__(self, view: View, job: int) -> None:
        self._view = view
        fact = view.facts(job)
        self.name = f"job {job}" if fact is None else shown(fact)
        self._calls = view.asked(job)
        self._recorded = {
            r.scheduled_at for r in view.runs.get(job, ()) if r.outcome not in ("stalled", "interrupted")
        }
        self._schedules = [s for s in _distinct(c.schedule for c in self._calls) if s is not None]
        for run in view.runs.get(job, ()):
            self._recorded |= self._stood_for(run)
        row = view.row.get(job)
        if row is not None:
            self._recorded.add(row.scheduled_at)
        self._gone = row is None
        self._first = self._first_answer(view.stored.get(job, []))

    def pairs(self) -> Iterator[tuple[float | None, float | None]]:
        """(None, what came first), unless that is as answered; then each with its next. None: there is no line."""
        known = sorted(self._recorded)
        if self._first is not None and known[:1] != [self._first]:
            yield None, min(known, default=None)
        yield from pairwise(known)

    def fault(self, before: float | None, after: float | None) -> str | None:
        """What is wrong with `after` as the occurrence that follows `before`."""
        if before is None:
            assert self._first is not None
            awaited, since = {self._first}, float("-inf")
        else:
            awaited, since = (
                {_next(schedule, before) for schedule in self._schedules},
                self._view.boot(before),
            )
        if after is None:
            return None if self._gone else f"its first occurrence {_time(min(awaited))} is not accounted for"
        if after in awaited or self._led_to(after, awaited, since):
            return None
        came = "its first was to be" if before is None else f"{_time(before)} was followed by"
        came = f"{came} {_time(min(awaited) if before is None else after)}"
        missing = min(awaited, default=after)
        if missing < after:
            return f"{_time(missing)} is not accounted for: {came}"
        return f"{_time(after)} is not of its schedule: {came}"

    def _led_to(self, after: float, awaited: set[float], since: float) -> bool:
        """Whether calls since then can have made this the occurrence that the job waits for.

        A trigger makes an awaited one of the future now; a resume, a reschedule and another schedule answer from
        when on it goes. What a call did whose answer is not known can be seen only by its time.
        """
        awaited = set(awaited)
        anything_since = float("inf")
        for call in self._calls:
            moves = call.verb in ("resume", "reschedule") or (call.schedule and len(self._schedules) > 1)
            if call.answer == "ok" and (call.scheduled_at is None or call.ended < since - CLOCK_ERROR):
                continue
            if call.verb == "trigger":
                at = call.scheduled_at if call.answer == "ok" else after
                in_time = call.answer == "ok" or self._view.boot(after) >= call.began - CLOCK_ERROR
                if at is not None and in_time and (call.began >= anything_since or max(awaited) >= at):
                    awaited.add(at)
            elif moves and call.answer == "ok":
                assert call.scheduled_at is not None
                awaited.add(call.scheduled_at)
            elif moves:
                anything_since = min(anything_since, call.began)
        return after in awaited or self._view.boot(after) >= anything_since - CLOCK_ERROR

    def _first_answer(self, stored: list[Call]) -> float | None:
        """The first occurrence, if the call that made the job is known beyond doubt."""
        if not stored:
            return None
        first = min(stored, key=lambda c: c.ended)
        doubts = [c for c in self._calls if c is not first and c.answer != "ok" and c.began < first.ended]
        return None if doubts else first.scheduled_at

    def _stood_for(self, run: Run) -> set[float]:
        """The occurrences that share one line, because they were too many."""
        if run.outcome != "skipped" or not isinstance(run.result, Mapping):
            return set()
        at, before = (epoch(datetime.fromisoformat(run.result[x])) for x in ("from", "before"))
        found: set[float] = set()
        schedule = run.schedule or (self._schedules[0] if self._schedules else None)
        while schedule is not None and at < before and len(found) < _RANGE_LIMIT:
            found.add(at)
            at = _next(schedule, at)
        return found


def nothing_runs_early(view: View) -> Iterator[str]:
    """No run starts before its occurrence, by the database's clock and by ours. P6, P12.

    That of a one-time job stays where it was put.
    """
    for run in view.history.runs:
        if (
            run.started_at is not None
            and run.started_at < run.scheduled_at
            and not view.asked(run.job_id, "trigger")
        ):
            yield f"{shown(run)} started {run.scheduled_at - run.started_at:.2f} s before {_time(run.scheduled_at)}"
    for began in view.history.begans:
        early = view.boot(began.scheduled_at) - began.at
        if early > CLOCK_ERROR and not any(c.began < began.at for c in view.asked(began.job_id, "trigger")):
            yield f"{shown(began)}: {began.run_id} began {early:.2f} s before {_time(began.scheduled_at)}"
        if view.recurring(began.job_id):
            continue
        calls = view.asked(began.job_id)
        if any(c.answer != "ok" for c in calls):
            continue
        put = {
            c.scheduled_at
            for c in calls
            if c.verb in ("schedule", "enqueue", "reschedule") and c.scheduled_at is not None
        }
        if put and began.scheduled_at not in put:
            times = ", ".join(map(_time, sorted(put)))
            yield f"{shown(began)}: {began.run_id} ran for {_time(began.scheduled_at)}, it was put at {times}"


def _distinct(schedules: Iterator[Mapping[str, Any] | None]) -> list[Mapping[str, Any] | None]:
    found: list[Mapping[str, Any] | None] = []
    for schedule in schedules:
        if schedule not in found:
            found.append(schedule)
    return found


def _next(schedule: Mapping[str, Any], after: float) -> float:
    """The schedule's next instant, exact to the microsecond: the way there goes over whole numbers."""
    text = schedule.get("cron")
    if text is not None:
        return _next_of_cron(text, schedule.get("timezone", "UTC"), schedule.get("day_or", True), after)
    found = Every(timedelta(seconds=schedule["every"])).next_after(_instant(after))
    assert found is not None
    return epoch(found)


@lru_cache(maxsize=10_000)
def _next_of_cron(text: str, timezone: str, day_or: bool, after: float) -> float:
    found = Cron(text, timezone, day_or).next_after(_instant(after))
    assert found is not None
    return epoch(found)


def _instant(at: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=round(at * 1e6))


def _time(at: float) -> str:
    return _instant(at).isoformat(timespec="milliseconds")[11:23]
