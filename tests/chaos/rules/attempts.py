"""How often a job is tried, and what is written down about each try."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import Began, Call, Run
from tests.chaos.view import FOUND_SILENT, View, occurrences_of, shown

__all__ = ["attempts_are_bounded", "attempts_are_counted", "each_run_has_its_line", "lines_say_what_happened"]

_FAILED = ("failed", "timed_out")
_BURNS = (*_FAILED, "stalled")


def _groups(view: View) -> Iterator[tuple[int, float | None, list[Run]]]:
    """(job, occurrence, lines): counts start anew with each occurrence of a recurring job."""
    for job, runs in sorted(view.runs.items()):
        if view.recurring(job):
            for occurrence, lines in occurrences_of(runs):
                yield job, occurrence, lines
        else:
            yield job, None, runs


def _recounts(view: View, job: int) -> int:
    """How often a one-time job may have been given a fresh start: each time that it was put again."""
    return max(len(view.asked(job, "schedule", "enqueue", "reschedule")) - 1, 0)


def attempts_are_bounded(view: View) -> Iterator[str]:
    """At most retries + 1 counted failures and max_stalls stalls; what gives up has used them all. P7."""
    for job, occurrence, lines in _groups(view):
        calls = view.storing(job)
        if not calls:
            continue
        # Where several stored it, the most generous counts.
        retries, max_stalls = max(c.retries for c in calls), max(c.max_stalls for c in calls)
        again = 1 if occurrence is not None else 1 + _recounts(view, job)
        failures = sum(r.outcome in _FAILED and r.started_at is not None for r in lines)
        stalls = sum(r.outcome == "stalled" for r in lines)
        if failures > (retries + 1) * again:
            yield f"{shown(lines[0])} failed {failures} times, {retries} retries were allowed"
        # The claim that was to end it may stall as well, before it has said so; but its code must not begin.
        for began in view.begans_for(job, occurrence or 0.0):
            before = sum(r.outcome == "stalled" and r.attempt < began.attempt for r in lines)
            if before >= max_stalls * again:
                yield f"{shown(lines[0])} stalled {before} times, {max_stalls} end it, and {began.run_id} began"
        if again == 1 and _gave_up(view, job, occurrence, lines):
            yield from _too_soon(view, calls[0], lines[-1], failures, stalls)


def _gave_up(view: View, job: int, occurrence: float | None, lines: list[Run]) -> bool:
    """Whether the last line, a failure, is the end of it: not asked for by anybody, and nothing follows."""
    row = view.row.get(job)
    follows = row is not None and (occurrence is None or row.scheduled_at == occurrence)
    return (
        lines[-1].outcome in _FAILED
        and not follows
        and not view.asked(job, "delete", "cancel")
        and not (occurrence is not None and view.asked(job, "resume", "reschedule"))
    )


def _too_soon(view: View, call: Call, last: Run, failures: int, stalls: int) -> Iterator[str]:
    if last.started_at is not None:
        ended = view.ended.get(_run_id(last))
        if failures < call.retries + 1 and (ended is None or ended.how != "fail"):
            yield f"{shown(last)} was given up after {failures} failures, {call.retries} retries were to follow"
    elif (last.reason or "").startswith("stalled"):
        if stalls < call.max_stalls:
            yield f"{shown(last)} was given up after {stalls} stalls, {call.max_stalls} end it"
    elif last.reason != "expired" or call.expires_in is None:
        yield f"{shown(last)} failed without a run: {last.reason}"


def attempts_are_counted(view: View) -> Iterator[str]:
    """Failures and stalls count one each, shutdowns and snoozes nothing; a run's own number is that of its line. P7, P10."""
    for job, occurrence, lines in _groups(view):
        if occurrence is None and _recounts(view, job):
            continue
        burned = 0
        for run in lines:
            if run.token is None:
                continue
            if run.attempt != burned + 1:
                yield f"{shown(run)}: its run {_run_id(run)} was attempt {run.attempt}, {burned} had counted before it"
                break
            burned += run.outcome in _BURNS
    for began in view.history.begans:
        written = view.run_of.get((began.job_id, began.token))
        if written is not None and written.attempt != began.attempt:
            yield f"{shown(began)}: {began.run_id} ran as attempt {began.attempt}, and was recorded as {written.attempt}"


def each_run_has_its_line(view: View) -> Iterator[str]:
    """Each run that began has one line of history, and each line of a run that ended by itself had one. P4, P15."""
    for began in view.history.begans:
        if (began.job_id, began.token) not in view.run_of and not _needs_no_line(view, began):
            yield f"{shown(began)}: {began.run_id} ran on {began.process} and has no line in history"
    for run in view.history.runs:
        if run.started_at is not None and run.started_at > run.finished_at:
            yield f"{shown(run)}: {_run_id(run)} finished before it started"
        by_itself = (
            run.outcome in ("completed", "failed") and run.started_at is not None and run.token is not None
        )
        if by_itself and _run_id(run) not in view.began:
            yield f"{shown(run)}: {_run_id(run)} is recorded as {run.outcome}, and its code never began"


def _needs_no_line(view: View, began: Began) -> bool:
    row = view.row.get(began.job_id)
    if row is not None and row.token == began.token:
        return True  # it runs
    if view.forgotten(began) is not None:
        return True
    # Its transaction completed the job: the line was written by whoever claimed it next, or is still to come.
    return began.run_id in view.committed


def lines_say_what_happened(view: View) -> Iterator[str]:
    """The outcome in history is the one that the code had. P1, P15."""
    for ended in view.history.endeds:
        run = view.run_of.get((ended.job_id, ended.token))
        began = view.began.get(ended.run_id)
        if run is None or began is None or run.outcome in _possible(view, began, run):
            continue
        yield f"{shown(began)}: {ended.run_id} {ended.how}, and was recorded as {run.outcome} ({run.reason})"


def _possible(view: View, began: Began, run: Run) -> set[str]:
    ended = view.ended[began.run_id]
    if ended.transaction == "committed":
        return {"completed"}
    told = {t.reason for t in view.tolds.get(began.run_id, ())}
    found = {
        "returned": {"completed"},
        "raised": {"failed"},
        "lost": {"failed"},
        "retry": {"failed"},
        "snooze": {"interrupted"},
        "cancel": {"cancelled"},
        "fail": {"failed"},
        "stopped": {"cancelled"},
    }[ended.how].copy()
    # Asked to stop between its last look and its end, it cannot have seen it; so who asked decides, not only what
    # the code saw.
    if "cancelled" in told or view.asked(began.job_id, "cancel", "delete"):
        found |= {"cancelled"}
    if "timeout" in told or any(c.timeout is not None for c in view.storing(began.job_id)):
        found |= {"timed_out"}
    if ended.how == "stopped" and told & {"shutdown", "lost"}:
        found |= {"interrupted"}
    if ended.transaction == "unknown":
        found |= {"completed"}
    lost = run.outcome == "stalled" and (run.reason or "").startswith(FOUND_SILENT)
    death = view.death(began.process)
    if lost or (run.outcome == "stalled" and began.isolation == "process"):
        found |= {"stalled"}
    if (
        run.outcome == "interrupted"
        and run.reason in ("shutdown", "lost")
        and death - ended.at <= view.settings.allowance
    ):
        found |= {"interrupted"}  # given back at the exit of its process
    killed = began.isolation == "process" and run.reason == "lost"
    if killed and view.boot(run.finished_at) - ended.at <= view.settings.allowance:
        found |= {"interrupted"}  # its node gave it up and killed it between its last word and its report
    return found


def _run_id(run: Run) -> str:
    return f"{run.job_id}-{run.token or 0:016x}"
