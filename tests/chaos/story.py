"""A history told by hand: four processes, every kind of fault and of call, and nothing that should not be.

`good()` is what the checker must pass; a test changes one thing in it and asks who noticed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from tests.chaos.history import (
    Away,
    Began,
    Call,
    Clock,
    Effect,
    End,
    Ended,
    Fault,
    Held,
    Life,
    Record,
    Row,
    Run,
    Settings,
    Snapshot,
    Told,
)

__all__ = ["BASE", "EVERY_2", "SILENT", "Story", "db", "good", "row", "run_id", "skipped"]

EVERY_2 = {"every": 2.0}
SILENT = "no heartbeat since 2027-01-15T08:00:00Z"
BASE = 1_800_000_000.0


def db(at: float) -> float:
    """A time of the story by the database's clock."""
    return round(BASE + at, 6)


Kind = TypeVar("Kind", Began, Ended, Run)


class Story:
    """A history in the making. Runs take place between seconds 0 and 100 of the story."""

    def __init__(self) -> None:
        self.records: list[Record] = [
            Settings(
                heartbeat_interval=1.0,
                no_heartbeat_timeout=4.0,
                job_check_interval=2.0,
                shutdown_timeout=3.0,
                max_concurrent_jobs=3,
                seed=1,
                allowance=0.5,
            ),
            End(faults_over=90.0, rows_read=100.0),
            Clock(database=db(0), boottime=0.0),
            Clock(database=db(100), boottime=100.0),
        ]

    def add(self, *records: Record) -> None:
        self.records += records

    def the(self, kind: type[Kind], token: int) -> Kind:
        """The record of this kind that has this token."""
        return next(r for r in self.records if isinstance(r, kind) and r.token == token)

    def stored(self, job: int, at: float, **facts: Any) -> None:
        """A client's call that stored a job."""
        given: dict[str, Any] = {
            "verb": "schedule", "client": "c", "began": at, "ended": at + 0.01, "answer": "ok", "job_id": job,
            "name": f"job{job}", "scheduled_at": db(at), "parameters": {"job": job},
        }  # fmt: skip
        self.add(Call(**{**given, **facts}))

    def asked(self, verb: str, job: int, at: float, **facts: Any) -> None:
        """Another call of a client, that was answered."""
        given: dict[str, Any] = {"answer": "ok", "job_id": job, "name": f"job{job}"}
        self.add(Call(verb=verb, client="c", began=at, ended=at + 0.01, **{**given, **facts}))

    def began(self, job: int, process: str, at: float, token: int, **facts: Any) -> Began:
        given: dict[str, Any] = {
            "name": f"job{job}", "key": None, "attempt": 1, "scheduled_at": db(at), "parameters": {"job": job},
        }  # fmt: skip
        began = Began(
            at=at, process=process, node=process.upper(), job_id=job, run_id=run_id(job, token), token=token,
            **{**given, **facts},
        )  # fmt: skip
        self.add(began)
        return began

    def ended(self, began: Began, at: float, how: str = "returned", **facts: Any) -> None:
        self.add(
            Ended(
                at=at, process=began.process, job_id=began.job_id, run_id=began.run_id, token=began.token,
                how=how, **facts,
            )
        )  # fmt: skip

    def told(self, began: Began, at: float, reason: str) -> None:
        self.add(
            Told(
                at=at, process=began.process, job_id=began.job_id, run_id=began.run_id, token=began.token,
                reason=reason,
            )
        )  # fmt: skip

    def line(self, began: Began, finished: float, outcome: str = "completed", **facts: Any) -> None:
        """The line of history of a run."""
        given: dict[str, Any] = {
            "node": began.node, "attempt": began.attempt, "scheduled_at": began.scheduled_at,
            "started_at": max(db(began.at), began.scheduled_at), "parameters": began.parameters,
        }  # fmt: skip
        self.add(
            Run(
                job_id=began.job_id, name=began.name, key=began.key, token=began.token, outcome=outcome,
                finished_at=db(finished), **{**given, **facts},
            )
        )  # fmt: skip

    def ran(self, job: int, process: str, at: float, token: int, took: float = 0.5, **facts: Any) -> Began:
        """A run from its beginning to its line."""
        began = self.began(job, process, at, token, **facts)
        self.ended(began, at + took)
        self.line(began, at + took)
        return began

    def effect(self, began: Began, at: float, sequence: int, kind: Any) -> None:
        self.add(
            Effect(
                kind=kind, sequence=sequence, at=db(at), job_id=began.job_id, run_id=began.run_id,
                token=began.token, scheduled_at=began.scheduled_at,
            )
        )  # fmt: skip


def run_id(job: int, token: int) -> str:
    return f"{job}-{token:016x}"


def skipped(job: int, occurrence: float, at: float, **facts: Any) -> Run:
    return Run(
        job_id=job, name=f"job{job}", key=f"job{job}", token=None, node="A", attempt=0, outcome="skipped",
        scheduled_at=db(occurrence), started_at=None, finished_at=db(at), schedule=EVERY_2, reason="overlap", **facts,
    )  # fmt: skip


def row(job: int, state: str, at: float, **facts: Any) -> Row:
    given: dict[str, Any] = {"name": f"job{job}", "key": None, "run_at": db(at), "scheduled_at": db(at)}
    return Row(job_id=job, state=state, created_at=db(1), parameters={"job": job}, **{**given, **facts})


def good() -> list[Record]:
    """Four processes, every kind of fault and of call, and nothing that should not be."""
    story = Story()
    story.add(
        Life(
            process="a",
            node="A",
            started=0.0,
            ready=0.5,
            asked_to_stop=95.0,
            ended=96.0,
            exit_code=0,
            clean=True,
        ),
        Life(process="b", node="B", started=0.0, ready=0.5, stopped=((20.0, 30.0),)),
        Life(process="c", node="C", started=0.0, ready=0.5, ended=40.0, exit_code=-9),
        Life(process="d", node="D", started=41.0, ready=42.0, cut_off=((70.0, 77.0),)),
        Away(began=50.0, ended=52.0, kind="crash", crashed=True),
        Fault(kind="kill", began=40.0, ended=42.0, what="c"),
    )
    _one_time(story)
    _lost_claims(story)
    _effects(story)
    _asked(story)
    _recurring(story)
    return story.records


def _one_time(story: Story) -> None:
    story.stored(1, 1.0)
    story.ran(1, "a", 1.0, 0x11, scheduled_at=db(1.0))
    # Fails once, is interrupted by nobody's fault, and completes.
    story.stored(2, 2.0, retries=1)
    first = story.began(2, "a", 2.0, 0x21, scheduled_at=db(2.0))
    story.ended(first, 2.2, "raised")
    story.line(first, 2.2, "failed")
    snoozed = story.began(2, "b", 3.0, 0x22, scheduled_at=db(2.0), attempt=2)
    story.ended(snoozed, 3.1, "snooze")
    story.line(snoozed, 3.1, "interrupted")
    story.ran(2, "a", 4.0, 0x23, scheduled_at=db(2.0), attempt=2)
    # Its caller does not know whether it was stored.
    story.add(
        Call(
            verb="schedule", client="c", began=5.0, ended=6.0, answer="unknown", job_id=None, name="job3",
            parameters={"job": 3},
        )
    )  # fmt: skip
    story.ran(3, "a", 6.0, 0x31)
    # Rolled back, and so without a trace.
    story.stored(4, 7.0, committed=False)
    # Two lives of one key.
    story.stored(5, 8.0, key="k", name="keyed", parameters={"n": 1})
    story.ran(5, "a", 8.1, 0x51, key="k", name="keyed", parameters={"n": 1}, scheduled_at=db(8.0))
    story.stored(6, 9.0, key="k", name="keyed", parameters={"n": 2})
    story.ran(6, "a", 9.1, 0x61, key="k", name="keyed", parameters={"n": 2}, scheduled_at=db(9.0))
    # Gives up after its retries.
    story.stored(7, 10.0, retries=0)
    last = story.began(7, "a", 10.0, 0x71, scheduled_at=db(10.0))
    story.ended(last, 10.1, "raised")
    story.line(last, 10.1, "failed")
    # For the future.
    story.stored(8, 11.0, scheduled_at=db(500.0))
    story.add(row(8, "pending", 500.0))


def _lost_claims(story: Story) -> None:
    # Its process was stopped; another node runs it; the first is told when it is back, and ends.
    story.stored(10, 19.0)
    lost = story.began(10, "b", 19.0, 0x101, scheduled_at=db(19.0))
    story.line(lost, 24.0, "stalled", reason=SILENT)
    story.ran(10, "a", 24.5, 0x102, scheduled_at=db(19.0), attempt=2)
    story.told(lost, 30.3, "lost")
    story.ended(lost, 30.4, "stopped")
    story.add(
        Snapshot(began=23.0, ended=23.1, held=(Held(job_id=10, token=0x101, node="B", claimed_at=db(19.0)),)),
        Snapshot(began=24.8, ended=24.9, held=(Held(job_id=10, token=0x102, node="A", claimed_at=db(24.5)),)),
    )
    # Its process was stopped on the way into two runs, after the last look at their claims, and woke in them.
    for job, woke, took in ((16, 30.01, 0.5), (17, 30.04, 7.0)):
        story.stored(job, 19.5)
        late = story.began(job, "b", woke, job << 8 | 1, scheduled_at=db(19.5))
        story.line(late, 24.0, "stalled", reason=SILENT, started_at=db(19.9))
        story.ran(job, "c", 24.5, job << 8 | 2, took=took, scheduled_at=db(19.5), attempt=2)
        story.told(late, woke + 0.01, "lost")
        story.ended(late, woke + 0.02, "stopped")
    # Its process was killed.
    story.stored(11, 39.0)
    dead = story.began(11, "c", 39.0, 0x111, scheduled_at=db(39.0))
    story.line(dead, 43.5, "stalled", reason=SILENT)
    story.ran(11, "a", 43.6, 0x112, scheduled_at=db(39.0), attempt=2)
    # The database's crash forgot that it had been claimed.
    story.stored(12, 49.5)
    forgotten = story.began(12, "a", 49.8, 0x121, scheduled_at=db(49.5))
    story.told(forgotten, 54.0, "lost")
    story.ended(forgotten, 54.1, "stopped")
    story.ran(12, "d", 53.0, 0x122, scheduled_at=db(49.5))
    # Cut off: its node gives it up by itself, before it is taken.
    story.stored(13, 69.0)
    fenced = story.began(13, "d", 69.0, 0x131, scheduled_at=db(69.0))
    story.told(fenced, 72.9, "lost")
    story.line(fenced, 74.0, "stalled", reason=SILENT)
    story.ended(fenced, 73.0, "stopped")
    story.ran(13, "a", 74.1, 0x132, scheduled_at=db(69.0), attempt=2)
    # Went on at the end of its process, and was given back.
    story.stored(14, 94.0)
    stubborn = story.began(14, "a", 94.0, 0x141, scheduled_at=db(94.0))
    story.told(stubborn, 95.1, "shutdown")
    story.line(stubborn, 95.9, "interrupted", reason="shutdown")
    story.told(stubborn, 95.91, "lost")
    story.ran(14, "d", 95.95, 0x142, scheduled_at=db(94.0))


def _effects(story: Story) -> None:
    story.stored(20, 12.0)
    paid = story.began(20, "a", 12.0, 0x201, scheduled_at=db(12.0))
    story.effect(paid, 12.1, 1, "transaction")
    story.ended(paid, 12.2, transaction="committed")
    story.line(paid, 12.2)
    # Committed, and then its process was killed: the next claim only writes it down.
    story.stored(21, 39.0)
    dead = story.began(21, "c", 39.1, 0x211, scheduled_at=db(39.0))
    story.effect(dead, 39.5, 2, "transaction")
    written = dataclasses.replace(dead, token=0x212, run_id=run_id(21, 0x212))
    story.line(written, 44.0, reason="completed by its transaction", started_at=None, node="A")
    # One owner after the other.
    story.stored(22, 19.0)
    old = story.began(22, "b", 19.0, 0x221, scheduled_at=db(19.0))
    story.effect(old, 19.5, 3, "fenced")
    story.line(old, 24.0, "stalled", reason=SILENT)
    new = story.ran(22, "a", 24.5, 0x222, scheduled_at=db(19.0), attempt=2)
    story.effect(new, 24.7, 4, "fenced")
    story.told(old, 30.3, "lost")
    story.ended(old, 30.3, "lost")


def _asked(story: Story) -> None:
    # Cancelled before it began.
    story.stored(30, 13.0, scheduled_at=db(60.0))
    story.asked("cancel", 30, 14.0, value="cancelled")
    story.add(
        Run(
            job_id=30, name="job30", key=None, token=None, node=None, attempt=0, outcome="cancelled",
            scheduled_at=db(60.0), started_at=None, finished_at=db(14.0), parameters={"job": 30},
        )
    )  # fmt: skip
    # Cancelled while it ran.
    story.stored(31, 15.0, retries=3)
    asked = story.began(31, "a", 15.0, 0x311, scheduled_at=db(15.0))
    story.asked("cancel", 31, 16.0, value="requested")
    story.told(asked, 16.2, "cancelled")
    story.ended(asked, 16.3, "stopped")
    story.line(asked, 16.3, "cancelled")
    # Paused and resumed.
    story.stored(32, 17.0, scheduled_at=db(18.0))
    story.asked("pause", 32, 17.5, scheduled_at=db(18.0))
    story.asked("resume", 32, 60.0, scheduled_at=db(18.0))
    story.ran(32, "a", 60.1, 0x321, scheduled_at=db(18.0))
    # Deleted.
    story.stored(33, 17.0, scheduled_at=db(80.0))
    story.asked("delete", 33, 18.0, value="deleted")
    story.add(
        Run(
            job_id=33, name="job33", key=None, token=None, node=None, attempt=0, outcome="cancelled",
            scheduled_at=db(80.0), started_at=None, finished_at=db(18.0), parameters={"job": 33}, reason="deleted",
        )
    )  # fmt: skip


def _recurring(story: Story) -> None:
    facts: dict[str, Any] = {"key": "job40", "name": "job40"}
    story.stored(40, 61.0, schedule=EVERY_2, scheduled_at=db(62.0), **facts)
    story.ran(40, "a", 62.0, 0x401, scheduled_at=db(62.0), **facts)
    story.ran(40, "a", 64.0, 0x402, took=4.5, scheduled_at=db(64.0), **facts)
    story.add(skipped(40, 66.0, 68.5), skipped(40, 68.0, 68.5))
    # Triggered between two occurrences, then on from there.
    story.asked("trigger", 40, 69.0, key="job40", scheduled_at=db(69.005))
    story.ran(40, "a", 69.01, 0x403, scheduled_at=db(69.005), **facts)
    story.ran(40, "a", 71.0, 0x404, scheduled_at=db(71.0), **facts)
    # Paused and resumed: on from then.
    story.asked("pause", 40, 72.0, key="job40", scheduled_at=db(73.0))
    story.asked("resume", 40, 80.5, key="job40", scheduled_at=db(82.0))
    failed = story.began(40, "a", 82.0, 0x405, scheduled_at=db(82.0), **facts)
    story.ended(failed, 82.1, "raised")
    story.line(failed, 82.1, "failed")
    story.add(
        Run(
            job_id=40, name="job40", key="job40", token=None, node="A", attempt=0, outcome="skipped",
            scheduled_at=db(84.0), started_at=None, finished_at=db(95.0), schedule=EVERY_2,
            result={"from": "2027-01-15T08:01:24+00:00", "before": "2027-01-15T08:01:34+00:00"},
        )
    )  # fmt: skip
    story.add(row(40, "pending", 94.0, schedule=EVERY_2, **facts))
