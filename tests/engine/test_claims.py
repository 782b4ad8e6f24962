"""Corners of a claim's life that take two faults, or none at all, to get into. The model in tests/model found them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import JobConfig, JobState, Outcome, Scheduler, _recorder, _store, states
from pgscheduler._sql import Names
from pgscheduler._store import ClaimRequest, Store, new_token
from pgscheduler.clock import elapsed
from pgscheduler.states import Claim
from tests.engine.conftest import Call, Gate, Quiet
from tests.support import eventually

NOON = datetime(2031, 3, 1, 12, 0, 30, tzinfo=UTC)
NODE = str(uuid.uuid4())


@pytest.fixture
def session(dsn: str) -> Iterator[tuple[Store, psycopg.Connection[Any]]]:
    """The statements, and a connection for them."""
    store = Store(dsn, Names("public", "pgscheduler_"))
    with store.connect() as connection:
        yield store, connection


def claim_one(store: Store, connection: psycopg.Connection[Any], name: str) -> Claim:
    request = ClaimRequest(1, [name], {}, True)
    (claim,) = store.claim(connection, NODE, request, new_token())
    return claim


def forget(db: psycopg.Connection[Any], record: Any) -> None:
    """What a crash leaves of a claim that had not reached the disk: nothing."""
    db.execute(
        "update pgscheduler_jobs set state = 'pending', token = null, node_id = null, claimed_at = null,"
        " heartbeat_at = null where id = %s",
        [record.id],
    )


class Once:
    """A schedule with an end: one occurrence, at noon."""

    def next_after(self, instant: datetime) -> datetime | None:
        return NOON if instant < NOON else None


def test_the_last_occurrence_that_a_transaction_completed_is_recorded(
    dsn: str, db: Any, scheduler_on: Any, clock: Any
) -> None:
    """When a schedule ends with a run that `ctx.transaction()` completed, that run is in history like any other."""
    clock(NOON - timedelta(minutes=1))
    scheduler = scheduler_on(dsn)

    def run(ctx: Any) -> None:
        with ctx.transaction():
            pass

    record = scheduler.schedule(Call(JobConfig.recurring("last", Once()), run))
    clock(NOON)
    scheduler.run_pending()

    left = db.execute("select count(*) from pgscheduler_jobs").fetchone()
    assert (left, [run.outcome for run in scheduler.runs(record.id)]) == ((0,), [Outcome.COMPLETED])


def test_a_completed_job_that_is_given_back_is_recorded_by_the_next_who_claims_it(
    dsn: str, db: Any, scheduler_on: Any, session: Any
) -> None:
    """Its work is done and only the record is missing: a node that gives the job back unstarted loses neither."""
    store, connection = session
    scheduler = scheduler_on(dsn, register=(Call(JobConfig.one_time("done")),))
    record = scheduler.enqueue("done")
    claim = claim_one(store, connection, "done")
    db.execute("update pgscheduler_jobs set completed_at = now() where id = %s", [record.id])
    store.finish(connection, [states.released(claim)])
    kept = db.execute("select state, completed_at is not null from pgscheduler_jobs").fetchall()
    scheduler.run_pending()

    assert kept == [("pending", True)]
    assert JobState.COMPLETED is scheduler.get_job(record).state


def test_a_run_whose_job_its_own_node_claims_anew_is_told(
    dsn: str, db: Any, scheduler_on: Any, gate: Gate, quiet: Quiet
) -> None:
    """A claim that the server forgot is lost at the latest when the same node is given the job again."""
    contexts: list[Any] = []

    def run(ctx: Any) -> None:
        contexts.append(ctx)
        gate(ctx)

    # No heartbeat comes in between: it would ask about the new claim only.
    scheduler = scheduler_on(
        dsn, heartbeat_interval=60, no_heartbeat_timeout=600, max_concurrent_jobs=2, logger=quiet
    )
    record = scheduler.schedule(Call(JobConfig.one_time("twice"), run))
    scheduler.start()
    gate.wait_for(1)
    forget(db, record)
    scheduler._node.dispatcher.look()
    gate.wait_for(2)

    assert (contexts[0].cancel_reason, contexts[1].cancel_reason) == ("lost", None)
    assert quiet.events().count("claim lost") == 1
    gate.open()
    assert scheduler.wait(record, timeout=30).state is JobState.COMPLETED
    assert [contexts[1].token] == [r[0] for r in db.execute("select token from pgscheduler_runs").fetchall()]


def test_a_claim_whose_answer_comes_too_late_is_not_started(
    dsn: str, db: Any, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have the job by the time that the answer is here: it goes back, and no attempt is burned."""
    attempts: list[tuple[int, bool]] = []
    slow = True
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(
        Call(JobConfig.one_time("late"), lambda ctx: attempts.append((ctx.attempt, slow)))
    )
    # The store counts a claim's age from here, when it is sent.
    monkeypatch.setattr(_store, "elapsed", lambda: elapsed() - (100 if slow else 0))
    scheduler.start()
    eventually(
        lambda: scheduler.node_stats()["claimed"] >= 2, describe="the job to come back and be claimed again"
    )
    slow = False

    assert scheduler.wait(record, timeout=30).state is JobState.COMPLETED
    assert attempts == [(1, False)]
    assert db.execute("select count(*) from pgscheduler_runs").fetchone() == (1,)


def test_a_locked_row_is_no_proof_of_life(dsn: str, scheduler_on: Any, session: Any, db: Any) -> None:
    """A claim that a lock keeps from being renewed is its node's still, and not renewed."""
    store, connection = session
    scheduler = scheduler_on(dsn, register=(Call(JobConfig.one_time("job")),))
    record = scheduler.enqueue("job")
    claim = claim_one(store, connection, "job")
    node = {"id": NODE, "host": "h", "pid": 1, "version": "0", "slots": 1, "names": [], "timeout": 60}
    with psycopg.connect(dsn) as other:
        other.execute("select from pgscheduler_jobs where id = %s for share", [record.id])
        locked = store.heartbeat(connection, node, [claim])
    free = store.heartbeat(connection, node, [claim])

    assert {record.id: (claim.token, False, False)} == locked
    assert {record.id: (claim.token, False, True)} == free


def test_a_run_that_locks_its_own_row_too_long_is_told_before_another_may_take_it(
    dsn: str, db: Any, scheduler_on: Any
) -> None:
    """The lock keeps the heartbeat out, so when it ends the job can be taken at once: the run must know by then."""
    told: list[str | None] = []

    def run(ctx: Any) -> None:
        with psycopg.connect(dsn) as connection:
            ctx.assert_owner(connection)
            ctx.wait(60)
            told.append(ctx.cancel_reason)

    scheduler = scheduler_on(dsn, heartbeat_interval=0.2, no_heartbeat_timeout=1)
    scheduler.schedule(Call(JobConfig.one_time("long"), run))
    scheduler.start()
    eventually(lambda: told, describe="the run to be told")

    assert told[0] == "lost"


@pytest.mark.parametrize("move", [states.interrupted, states.died])
def test_a_job_deleted_in_its_last_moments_has_an_end(
    dsn: str, db: Any, scheduler_on: Any, session: Any, move: Any
) -> None:
    """A run that would go on elsewhere, of a job that was deleted meanwhile: gone, and on record as cancelled."""
    store, connection = session
    scheduler: Scheduler = scheduler_on(dsn, register=(Call(JobConfig.one_time("job")),))
    record = scheduler.enqueue("job")
    claim = claim_one(store, connection, "job")
    assert scheduler.delete(record) == "requested"
    extra = () if move is states.died else (60.0,)
    store.finish(connection, [move(claim, 0.0, 1.0, *extra, reason="shutdown")])

    assert scheduler.jobs() == []
    assert [(run.outcome, run.reason) for run in scheduler.runs()] == [(Outcome.CANCELLED, "deleted")]


def test_an_old_stall_does_not_hide_the_new_outcome(
    dsn: str, db: Any, scheduler_on: Any, session: Any
) -> None:
    """After a lost answer an outcome counts as written if its own claim is in history, not an older one of its job."""
    store, connection = session
    scheduler: Scheduler = scheduler_on(dsn, register=(Call(JobConfig.one_time("job")),))
    record = scheduler.enqueue("job")
    old = claim_one(store, connection, "job")
    db.execute(
        "update pgscheduler_jobs set claimed_at = now() - interval '1 hour' where id = %s", [record.id]
    )
    connection.execute(store.sql["stalled"], {"timeout": 60, "batch": 10})
    new = claim_one(store, connection, "job")
    moves = [states.ended(claim, Outcome.COMPLETED, 0.0, 1.0, result=1) for claim in (old, new)]
    scheduler.start()
    recorder = scheduler._node.recorder
    scheduler._node._stop_loops(elapsed() + 5)  # from here on the recorder's methods are called by hand
    recorder._doubts = {(claim.id, claim.token) for claim in (old, new)}

    assert ([], [moves[1]]) == recorder._resolve_doubts(connection, [], moves)


def test_what_is_in_doubt_is_asked_for_also_after_a_refusal(
    dsn: str, db: Any, scheduler_on: Any, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that the server refuses, right after a lost answer: what that had written is not taken for lost."""
    store, connection = session
    scheduler: Scheduler = scheduler_on(dsn, register=(Call(JobConfig.one_time("job")),))
    for _ in range(2):
        scheduler.enqueue("job")
    first, second = claim_one(store, connection, "job"), claim_one(store, connection, "job")
    written = states.ended(first, Outcome.COMPLETED, 0.0, 1.0, result=1)
    store.finish(connection, [written])
    scheduler.start()
    node = scheduler._node
    node._stop_loops(elapsed() + 5)  # from here on the recorder's methods are called by hand
    monkeypatch.setattr(_recorder, "FINISH_LIMIT", 1)
    node.recorder._doubts = {(first.id, first.token)}
    node.recorder.report(second, states.ended(second, Outcome.COMPLETED, 0.0, 1.0, result="\0"))
    node.recorder.report(first, written)
    with pytest.raises(psycopg.DataError):
        node.recorder.step()
    node.recorder.finish()

    assert node.recorder.unwritten == 0
    assert node.dispatcher.counters["lost"] == 0
    assert db.execute("select outcome from pgscheduler_runs").fetchall() == [("completed",)] * 2


@pytest.mark.parametrize("order", [1, -1])
def test_two_outcomes_of_one_job_are_told_apart_also_after_a_refusal(
    dsn: str, db: Any, scheduler_on: Any, session: Any, order: int
) -> None:
    """An older claim's outcome of the same job does not take the newer one's place."""
    store, connection = session
    scheduler: Scheduler = scheduler_on(dsn, register=(Call(JobConfig.one_time("job")),))
    record = scheduler.enqueue("job")
    old = claim_one(store, connection, "job")
    forget(db, record)
    new = claim_one(store, connection, "job")
    scheduler.start()
    recorder = scheduler._node.recorder
    scheduler._node._stop_loops(elapsed() + 5)
    for claim in (old, new)[::order]:
        recorder.report(claim, (claim, 0.0, 1.0))
    recorder._salvage()
    recorder.finish()

    assert db.execute("select outcome from pgscheduler_runs").fetchall() == [("completed",)]


def test_what_fell_due_before_a_mark_is_found_soon_after_slow_looks(
    dsn: str, direct_dsn: str, scheduler_on: Any
) -> None:
    """Looks at everything that had to wait, for a lock here, do not put off the next for longer than seconds."""
    ran: list[str] = []
    node = scheduler_on(
        dsn, start=True, register=tuple(Call(JobConfig(name=n), lambda _, n=n: ran.append(n)) for n in "ab")
    )
    dispatcher = node._node.dispatcher
    waits = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    with psycopg.connect(direct_dsn, autocommit=True) as look:
        for number in range(3):
            with psycopg.connect(direct_dsn) as other:
                other.execute("lock table pgscheduler_jobs in access exclusive mode")
                dispatcher.look()
                eventually(lambda: look.execute(waits).fetchone() is not None)
                other.execute("select pgscheduler_enqueue('a')")
                time.sleep(1.5)  # the slow look itself
            eventually(lambda number=number: len(ran) == number + 1)

    node.enqueue("b", run_at=datetime(2020, 1, 1, tzinfo=UTC))  # as it comes by a commit that took long
    eventually(lambda: "b" in ran, timeout=30)  # and not after the minute of the next look


def test_what_was_claimed_and_could_not_be_read_is_given_back(
    dsn: str, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit was made and its answer broke on its way into Python: the jobs are not held by nobody."""
    real, broken = Store.claim, []

    def claim(*arguments: Any) -> list[Claim]:
        claims = real(*arguments)
        if claims and not broken:
            broken.extend(claims)
            raise ValueError("on purpose")
        return claims

    monkeypatch.setattr(Store, "claim", claim)
    ran: list[int] = []
    node = scheduler_on(
        dsn, start=True, register=(Call(JobConfig(name="job"), lambda c: ran.append(c.attempt)),)
    )
    job = node.enqueue("job")
    eventually(lambda: ran, timeout=30)  # before the claim would count as stalled
    assert [claim.id for claim in broken] == [job.id]
    assert ran == [1]
