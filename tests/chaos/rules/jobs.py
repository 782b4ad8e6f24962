"""What became of every job that was stored, and that nothing else came to be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from tests.chaos.history import Call
from tests.chaos.view import CLOCK_ERROR, STORING, TERMINAL, View, same_json, shown

__all__ = [
    "every_job_was_asked_for",
    "finished_is_final",
    "nothing_is_left_undone",
    "nothing_lost",
    "one_job_per_key",
    "parameters_arrive",
]


def nothing_lost(view: View) -> Iterator[str]:
    """What was acknowledged exists, and ends: one-time jobs in one of the final outcomes, recurring ones never. P1, P2, P8."""
    for job, calls in sorted(view.stored.items()):
        call = calls[-1]
        if job in view.row:
            continue
        runs = view.runs.get(job, [])
        if view.recurring(job):
            if not view.asked(job, "delete"):
                yield f"{shown(call)} is recurring and gone, and nobody deleted it"
        elif not runs:
            yield f"{shown(call)} was stored by {call.client} and left no trace in the database"
        elif runs[-1].outcome not in TERMINAL:
            yield f"{shown(call)} is gone, and its last line says {runs[-1].outcome}: that is no end"
    for signature, maybe in view.nameless.items():
        certain = sum(c.answer == "ok" for c in maybe)
        found = len(_found(view, maybe[0]))
        if found < certain:
            yield f"{certain} jobs like {signature} were stored, {found} were seen"
    for job, row in view.row.items():
        if row.state == "paused" and not view.asked(job, "pause"):
            yield f"{shown(row)} is paused, and nobody paused it"


def every_job_was_asked_for(view: View) -> Iterator[str]:
    """No job, and no run, that nobody asked for; nothing of what was rolled back, or refused. P13, P15."""
    for job in sorted(view.seen - view.stored.keys()):
        fact = view.facts(job)
        if fact is None:
            yield f"job {job} has effects, and nothing else was ever seen of it"
            continue
        maybe = view.nameless.get(view.signature(fact), [])
        if fact.key is not None and not maybe:
            # A keyed job may have been changed since: its last word need not be its first.
            maybe = [c for c in view.storing(job) if c.job_id is None]
        if any(c.job_id == job for c in view.storing(job)):
            continue  # stored perhaps: the answer of the caller's own commit was lost
        if not maybe:
            rolled_back = any(c.job_id == job and c.verb in STORING for c in view.history.calls)
            why = "its transaction was rolled back" if rolled_back else "nobody stored it"
            yield f"{shown(fact)} exists, but {why}"
        elif fact.key is None and len(_found(view, maybe[0])) > len(maybe):
            yield f"{shown(fact)} is one more than were asked for"
    for run in view.history.runs:
        if run.outcome == "orphaned":
            yield f"{shown(run)} was retired as an orphan, and its name is known to every node"


def _found(view: View, call: Call) -> list[int]:
    """The jobs that this call, or one like it, may have stored."""
    signature = view.signature(call)
    return [
        job
        for job in view.seen - view.stored.keys()
        if (fact := view.facts(job)) is not None and view.signature(fact) == signature
    ]


def finished_is_final(view: View) -> Iterator[str]:
    """A one-time job has one end, it is the last of its lines, and none of its code begins after it. P1."""
    for job, runs in sorted(view.runs.items()):
        if view.recurring(job):
            continue
        for earlier in runs[:-1]:
            if earlier.outcome in ("completed", "cancelled", "orphaned"):
                yield f"{shown(earlier)} was {earlier.outcome}, and went on: {runs[-1].outcome} later"
                break
        last = runs[-1]
        ended = last.outcome in ("completed", "cancelled", "orphaned")
        if ended and job in view.row:
            yield f"{shown(last)} was {last.outcome}, and is still there as {view.row[job].state}"
        if not ended and (job in view.row or last.outcome not in TERMINAL):
            continue
        for began in view.begans.get(job, ()):
            late = began.token != last.token and began.at > view.boot(last.finished_at) + CLOCK_ERROR
            if late and not view.asleep(began):
                yield f"{shown(last)} was {last.outcome}, and {began.run_id} began {_later(view, last.finished_at, began.at)}"


def _later(view: View, finished_at: float, at: float) -> str:
    return f"{at - view.boot(finished_at):.2f} s later"


def parameters_arrive(view: View) -> Iterator[str]:
    """A run gets the parameters that were scheduled last, equal as JSON, whatever an earlier attempt did to its own. P13."""
    for job, begans in sorted(view.begans.items()):
        calls = view.storing(job)
        for began in begans:
            given = view.in_effect(calls, began.at)
            if given and not any(same_json(_plain(c.parameters), _plain(began.parameters)) for c in given):
                yield f"{shown(began)} got {str(began.parameters)[:200]}, scheduled was {str(given[-1].parameters)[:200]}"


def _plain(parameters: object) -> object:
    return {} if parameters is None else parameters


def one_job_per_key(view: View) -> Iterator[str]:
    """Scheduling again under a key, as after an answer that never came, makes no second live job. P1."""
    keyed: dict[tuple[str, str], list[int]] = {}
    for job in sorted(view.seen):
        fact = view.facts(job)
        if fact is not None and fact.key is not None:
            keyed.setdefault((fact.name, fact.key), []).append(job)
    for (name, key), jobs in sorted(keyed.items()):
        for older, newer in pairwise(jobs):
            over = view.runs[older][-1].finished_at if older in view.runs else float("-inf")
            if older in view.row:
                over = float("inf")
            # Seen at the latest when its caller was told, or its code began.
            seen = [c.ended for c in view.stored.get(newer, ())[:1]]
            seen += [b.at for b in view.begans.get(newer, ())[:1]]
            if seen and (over == float("inf") or view.boot(over) > min(seen) + CLOCK_ERROR):
                yield f"jobs {older} and {newer} lived under {name}/{key} at the same time"


def nothing_is_left_undone(view: View) -> Iterator[str]:
    """What was due when the last fault ended is done within a minute. P2, P11."""
    for row in view.history.rows:
        if row.state == "pending" and view.boot(row.run_at) < view.end.faults_over:
            waited = view.end.rows_read - view.end.faults_over
            due = view.end.faults_over - view.boot(row.run_at)
            yield f"{shown(row)} was due {due:.1f} s before the last fault ended, and is pending {waited:.1f} s after"
