"""Bugs on purpose. Each takes ONE guard out of the worker process, before its Scheduler is made.

A fault test that finds nothing may be blind. With `--plant NAME` it must find something, in a run of default length.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pgscheduler import _decide, _heartbeat, _loops, _node, _recorder, _runner, _sql, _store, states
from pgscheduler._ledger import Ledger

__all__ = ["PLANTS", "plant"]


def _replace(statement: str, old: str, new: str) -> None:
    """Another text for a statement. A guard that is not where it was makes the plant wrong: that must be told."""
    sources = _sql._sources("sql")
    if old not in sources[statement]:
        raise LookupError(f"{statement}.sql no longer holds {old!r}")
    sources[statement] = sources[statement].replace(old, new)


def _put(owner: Any, name: str, value: object) -> None:
    """Another function in the place of a guard."""
    if not hasattr(owner, name):
        raise LookupError(f"{owner.__name__} no longer has {name}")
    setattr(owner, name, value)


def token() -> None:
    """Outcomes are matched by the job alone: a run that lost its claim overwrites its successor."""
    guard = "j.token = (%(tokens)s::bigint[])[width_bucket(j.id, %(ids)s::bigint[])]"
    _replace("complete", guard, "(%(tokens)s::bigint[])[1] is not null")
    _replace("finish", "where j.id = g.id and j.token = g.token", "where j.id = g.id")
    _replace("finish", "where h.id = j.id and h.token = j.token", "where h.id = j.id")


def transaction() -> None:
    """`ctx.transaction()` and `assert_owner` do not look at the token."""
    _replace("mark_completed", "and j.token = %(token)s", "and %(token)s::bigint is not null")
    _replace("assert_owner", "and j.token = %(token)s", "and %(token)s::bigint is not null")


def rowlock() -> None:
    """Two nodes may claim the same row."""
    _replace("claim", "\n        for update skip locked", "")
    _replace("claim", "select picked.ctid, picked.stalls", "select picked.id, picked.stalls")
    _replace("claim", "select j.ctid, j.stalls\n", "select j.id, j.stalls\n")
    _replace("claim", "where j.ctid = any (array(", "where j.id = any (array(")
    _replace("claim", "select ctid from due where", "select id from due where")


def stalls() -> None:
    """A stall is not counted: a job that kills its process is tried for ever."""
    _replace(
        "stalled", "stalls = j.stalls + case when j.completed_at is null then 1 else 0 end", "stalls = 0"
    )


def failures() -> None:
    """A failure with retries left is not counted."""
    counted = states.failed_again

    def uncounted(claim: Any, *values: Any, **facts: Any) -> Any:
        move = counted(claim, *values, **facts)
        move.failures = claim.failures
        return move

    _put(states, "failed_again", uncounted)


def fence() -> None:
    """A node that cannot renew its claims goes on with them."""
    _put(_heartbeat.Fence, "step", lambda self: 1.0)
    _put(Ledger, "fenced", property(lambda self: False))


def heartbeat() -> None:
    """The heartbeat's loop ends at its first error."""
    run = _loops.Loop._run

    def fragile(self: _loops.Loop) -> None:
        if self.name.endswith("-heartbeat"):
            step = self._step

            def once() -> float | None:
                try:
                    return step()
                except BaseException:
                    self._stopping = True
                    raise

            self._step = once
        run(self)

    _put(_loops.Loop, "_run", fragile)


def clock() -> None:
    """What is due is decided by the node's clock."""
    _replace("claim", "select {now}() as now,", "select to_timestamp(%(wall)s::float8) as now,")
    given = _store._claim_parameters
    _put(
        _store, "_claim_parameters", lambda *values, **named: {**given(*values, **named), "wall": time.time()}
    )


def misfire() -> None:
    """Occurrences that fell into a run are passed over without a line."""

    def silent(
        schedule: Any, policy: Any, occurrence: datetime, now: datetime
    ) -> tuple[datetime | None, list[Any]]:
        return schedule.next_after(now), []

    _put(_decide, "following", silent)


def release() -> None:
    """A shutdown gives the jobs back while their code still runs."""
    stop = _node.Node.stop

    def hasty(self: _node.Node, seconds: float) -> bool:
        self.dispatcher.claiming = False
        self.abandon()
        time.sleep(min(seconds, 2.0))
        return stop(self, seconds)

    _put(_node.Node, "stop", hasty)


def completed() -> None:
    """Whoever claims a job does not look whether its transaction has completed it."""
    made = states.Claim.__init__

    def blind(self: states.Claim, *values: Any) -> None:
        made(self, *values)
        self.done_already = False

    _put(states.Claim, "__init__", blind)
    _replace("mark_completed", "and j.completed_at is null", "")


def cancelled() -> None:
    """A run that was cancelled is retried like one that failed."""
    decide = _runner.decide

    def forgetful(plan: Any, reason: str | None, *values: Any) -> Any:
        return decide(plan, "timeout" if reason == "cancelled" else reason, *values)

    _put(_runner, "decide", forgetful)


def early() -> None:
    """Jobs are claimed a second before they are due."""
    _replace(
        "claim",
        "j.run_at <= (select least(now, until) from clock)",
        "j.run_at <= (select least(now, until) from clock) + interval '1 second'",
    )


def outcome() -> None:
    """One outcome in thirty is forgotten before it is written; its claim is kept alive."""
    report = _recorder.Recorder.report
    ended = itertools.count(1)

    def lossy(self: _recorder.Recorder, claim: Any, end: Any) -> None:
        if next(ended) % 30:
            report(self, claim, end)

    _put(_recorder.Recorder, "report", lossy)


def patience() -> None:
    """A shutdown waits for its jobs as long as they take."""

    def patient(self: _node.Node, deadline: float) -> bool:
        while len(self.ledger):
            self.ledger.changed.wait(0.05)
        return True

    _put(_node.Node, "_drained", patient)


PLANTS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        token, transaction, rowlock, stalls, failures, fence, heartbeat, clock, misfire, release, completed,
        cancelled, early, outcome, patience,
    )
}  # fmt: skip


def plant(name: str) -> None:
    """Take the guard out of this process."""
    PLANTS[name]()
