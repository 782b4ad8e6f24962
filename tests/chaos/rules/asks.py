"""Whether the answers of cancel, pause and delete were kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from tests.chaos.history import Began, Call
from tests.chaos.spans import merged, passed
from tests.chaos.view import CLOCK_ERROR, STORING, View, shown

__all__ = ["cancels_are_kept", "pauses_and_deletes_are_kept", "requests_reach_the_run"]

_RECENT = 5  # runs of a job, of which one may have been its present one


def _answered(view: View, verb: str) -> Iterator[Call]:
    for call in view.history.calls:
        if call.verb == verb and call.answer == "ok" and call.committed and call.job_id is not None:
            yield call


def _begun(view: View, call: Call) -> tuple[list[Began], list[Began]]:
    """The job's runs that had begun before the call answered, and those that had not."""
    begans = view.begans.get(call.job_id or 0, [])
    place = bisect_right(begans, call.ended, key=lambda began: began.at)
    return begans[:place], begans[place:]


def _begun_after(view: View, call: Call) -> Iterator[Began]:
    """Runs that began later than one that was claimed before the call could."""
    for began in _begun(view, call)[1]:
        # Claimed and not begun yet, it was running: such a run is told, and may come to its first line all the same.
        if view.started(began) > passed(call.ended, view.settings.allowance, view.frozen(began.process)):
            yield began


def cancels_are_kept(view: View) -> Iterator[str]:
    """`cancelled` means that it never starts, `requested` that its present run is the last, with no retry. P7, P8."""
    for call in _answered(view, "cancel"):
        job = call.job_id or 0
        if call.value == "cancelled":
            runs = view.runs.get(job, [])
            if job in view.row or not runs or runs[-1].outcome not in ("cancelled", "completed"):
                yield f"{shown(call)} was cancelled by {call.client}, and is {runs[-1].outcome if runs else 'not recorded'}"
            for began in _begun(view, call)[1]:
                yield f"{shown(call)} was cancelled, and {began.run_id} began {began.at - call.ended:.2f} s later"
        elif call.value == "requested":
            recurring = view.recurring(job)
            present = max((b.scheduled_at for b in _begun(view, call)[0][-_RECENT:]), default=None)
            # A deploy that stores a recurring job again, unchanged, wants nothing new.
            again = view.asked(job, "reschedule") if recurring else view.asked(job, "reschedule", *STORING)
            lifted = min((c.began for c in again if c.ended >= call.began), default=float("inf"))
            for began in _begun_after(view, call):
                if began.at >= lifted or (recurring and began.scheduled_at != present):
                    break
                yield f"{shown(call)}: its run was to be the last, and {began.run_id} began {began.at - call.ended:.2f} s later"


def requests_reach_the_run(view: View) -> Iterator[str]:
    """A run that is asked to stop hears of it with its node's next heartbeat. P3."""
    bound = view.settings.heartbeat_interval + view.settings.allowance
    for call in [*_answered(view, "cancel"), *_answered(view, "delete")]:
        if call.value != "requested":
            continue
        for began in _begun(view, call)[0][-_RECENT:]:
            run = view.run_of.get((began.job_id, began.token))
            if began.at > call.began or (
                run is not None and view.boot(run.finished_at) < call.ended + CLOCK_ERROR
            ):
                continue
            deadline = passed(call.ended, bound, merged(view.speechless(began.process)))
            told = any(t.at <= deadline for t in view.tolds.get(began.run_id, ()))
            done = began.run_id in view.committed
            if began.looks and not told and not done and view.ran_until(began) > deadline:
                waited = f"{deadline - call.ended:.2f} s"
                yield f"{shown(call)}: {began.run_id} on {began.process} was not told within {waited} that it should stop"


def pauses_and_deletes_are_kept(view: View) -> Iterator[str]:
    """A paused job does not begin until it is resumed or triggered, a deleted one until it is stored again. P8, P15."""
    for call in [*_answered(view, "pause"), *_answered(view, "delete")]:
        verbs = ("resume", "trigger") if call.verb == "pause" else STORING  # stored again, it is wanted again
        lifting = view.asked(call.job_id or 0, *verbs)
        lifted = min((c.began for c in lifting if c.ended >= call.began), default=None)
        for began in _begun_after(view, call):
            if lifted is not None and began.at >= lifted:
                break
            yield f"{shown(call)}: {began.run_id} began {began.at - call.ended:.2f} s after the {call.verb}"
        if call.verb == "delete" and call.value == "deleted" and call.job_id in view.row:
            yield f"{shown(call)} was deleted, and is still there"
