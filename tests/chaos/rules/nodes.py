"""What a process does as a whole: it keeps its limit, begins nothing outside its life, and stops in time."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from tests.chaos.history import Life
from tests.chaos.spans import length, passed
from tests.chaos.view import View, shown

__all__ = ["code_runs_in_its_process", "shutdown_is_bounded", "slots_are_kept"]

#: What a call of `shutdown()` may take beyond its timeout, and then a process until it is gone.
SHUTDOWN_MARGIN = 1.0


def slots_are_kept(view: View) -> Iterator[str]:
    """Never more than max_concurrent_jobs codes run in one process, those that lost their claim included."""
    for process, begans in sorted(view.begans_of.items()):
        running: list[float] = []
        for began in begans:
            while running and running[0] <= began.at:
                heappop(running)
            heappush(running, view.ran_until(began))
            if len(running) > view.settings.max_concurrent_jobs:
                yield f"{process} ran {len(running)} codes when {began.run_id} began, {view.settings.max_concurrent_jobs} may"
                break


def code_runs_in_its_process(view: View) -> Iterator[str]:
    """Every run begins once, and ends at most once, in a process that lives and on its node. P3."""
    starts: set[str] = set()
    for began in view.history.begans:
        if began.run_id in starts:
            yield f"{shown(began)}: {began.run_id} began twice"
        starts.add(began.run_id)
        life = view.lives.get(began.process)
        if life is None:
            yield f"{shown(began)}: {began.run_id} ran in {began.process}, which nobody started"
            continue
        after = view.settings.allowance if began.isolation == "process" else 0.0
        if not life.started <= began.at <= view.death(life.process) + after and life.ended is not None:
            yield f"{shown(began)}: {began.run_id} began outside the life of {began.process}"
        if life.node is not None and began.node != life.node:
            yield f"{shown(began)}: {began.run_id} ran for node {began.node}, {began.process} is {life.node}"
    ends: set[str] = set()
    for ended in view.history.endeds:
        if ended.run_id not in starts:
            yield f"{ended.run_id} ended and never began"
        if ended.run_id in ends:
            yield f"{ended.run_id} ended twice"
        ends.add(ended.run_id)


def shutdown_is_bounded(view: View) -> Iterator[str]:
    """Asked to stop, a node begins nothing, is gone within its timeout and a second, and leaves no row running. P10."""
    settings = view.settings
    for life in view.history.lives:
        if life.asked_to_stop is None:
            continue
        frozen = view.frozen(life.process)
        bound = settings.shutdown_timeout + SHUTDOWN_MARGIN + settings.allowance
        deadline = passed(life.asked_to_stop, bound, frozen)
        end = view.end.rows_read if life.ended is None else life.ended
        # A parent that had no processor for a second saw the end of its child so much later.
        gone = end if life.left is None or life.ended is None else life.left
        if gone > deadline:
            yield f"{life.process} took {gone - life.asked_to_stop:.2f} s to stop, {settings.shutdown_timeout} s were given"
        deaf = passed(life.asked_to_stop, settings.allowance, frozen)
        for began in view.begans_of.get(life.process, ()):
            if view.started(began) > deaf:
                late = view.started(began) - life.asked_to_stop
                yield f"{shown(began)} began on {life.process} {late:.2f} s after that was asked to stop"
        if life.ended is not None and life.exit_code in (0, 1) and _reached(view, life, end):
            left = sorted({job for at, job in view.held_by.get(life.node, ()) if at > end})
            if left:
                yield f"{life.process} stopped in good order, and jobs {left} still ran for it"


def _reached(view: View, life: Life, end: float) -> bool:
    """Whether the node could reach the database all the time in which it stopped."""
    assert life.asked_to_stop is not None
    return length(view.speechless(life.process), life.asked_to_stop, end) == 0.0
