"""Writing what ended, when something is in the way: locked rows, lost answers, refused connections, broken writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgscheduler import JobConfig, Outcome, Scheduler, _recorder, states
from pgscheduler._store import Refused, Store
from pgscheduler.clock import monotonic
from pgscheduler.metrics import Metrics
from pgscheduler.states import Claim
from tests.engine.conftest import Call, Gate
from tests.support import eventually

THIEF = 99  # a token that is nobody's


def count(db: Any, table: str = "runs") -> int:
    ((number,),) = db.execute(f"select count(*) from pgscheduler_{table}").fetchall()
    return int(number)


@pytest.fixture
def held(dsn: str, scheduler_on: Any, gate: Gate) -> Iterator[Callable[[int], tuple[Scheduler, list[Claim]]]]:
    """`node, claims = held(2)`: a node that holds claims, by id, and whose loops are at an end: the test plays the
    recorder."""
    made: list[Scheduler] = []

    def make(jobs: int) -> tuple[Scheduler, list[Claim]]:
        job = Call(JobConfig(name="job"), gate)
        node: Scheduler = scheduler_on(dsn, start=True, max_concurrent_jobs=jobs, register=(job,))
        made.append(node)
        node.enqueue_many("job", [{} for _ in range(jobs)])
        gate.wait_for(jobs)
        for name in ("dispatcher", "maintenance", "recorder", "heartbeat"):
            node._node.loops[name].stop()
            assert node._node.loops[name].join(20)
        return node, sorted(node._node.ledger.all(), key=lambda claim: claim.id)

    yield make
    for node in made:
        node._node.ledger.drop(node._node.ledger.all())
        node._node.recorder.close()


@contextmanager
def locked(dsn: str, *claims: Claim) -> Iterator[psycopg.Connection[Any]]:
    """While somebody writes these rows, and has not committed yet."""
    with psycopg.connect(dsn) as other:
        ids = [claim.id for claim in claims]
        other.execute("update pgscheduler_jobs set heartbeat_at = now() where id = any (%s)", [ids])
        yield other


def lines_of(db: Any) -> list[str]:
    return [event for (event,) in db.execute("select event from pgscheduler_run_logs order by at").fetchall()]


# --- locked rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("result", [None, {"n": 1}])
def test_a_row_that_stays_locked_holds_up_no_other_outcome(
    dsn: str, db: Any, scheduler_on: Any, result: Any, prepared: bool
) -> None:
    """A run that leaves its own row locked keeps neither other outcomes nor claims back; its own is written after it."""
    left: list[psycopg.Connection[Any]] = []

    def lock(ctx: Any) -> Any:
        left.append(psycopg.connect(dsn))
        ctx.assert_owner(left[0])
        return result

    jobs = Call(JobConfig(name="lock"), lock), Call(JobConfig(name="job"), lambda ctx: ctx.parameters)
    # Without prepared statements, as behind a pooler, a session has no lock_timeout.
    node = scheduler_on(dsn, start=True, register=jobs, prepared_statements=prepared)
    first = node.enqueue("lock")
    eventually(lambda: node.node_stats()["unwritten"] == 1)
    node.enqueue_many("job", [None if n % 2 else {"n": n} for n in range(50)])
    eventually(lambda: count(db) == 50, timeout=4, describe="all outcomes but the one whose row is locked")
    eventually(lambda: node.node_stats()["held"] == 1)
    waiting = node.node_stats()
    left[0].close()

    assert node.wait(first, timeout=10).state == "completed"
    assert (waiting["held"], waiting["unwritten"], waiting["lost"]) == (1, 1, 0)
    assert node.node_stats()["loops"]["recorder"]["failures"] == 0
    assert node.log.events().count("outcome waits for the job's row, which a transaction holds locked") <= 1


@pytest.mark.parametrize("statement", ["complete", "finish", "note"])
def test_what_was_written_lost_and_locked_is_told_apart(dsn: str, db: Any, held: Any, statement: str) -> None:
    """One statement writes what it can, and says which claims are lost and which rows are only locked."""
    node, (free, gone, taken, busy) = held(4)
    db.execute("delete from pgscheduler_jobs where id = %s", [gone.id])
    db.execute("update pgscheduler_jobs set token = %s where id = %s", [THIEF, taken.id])
    claims = [taken, busy, free, gone]

    def write(connection: psycopg.Connection[Any], claims: Sequence[Claim]) -> Refused:
        if statement == "complete":
            return node._store.complete(connection, [(c, 0.0, 1.0) for c in claims])
        if statement == "note":
            notes = [{"id": c.id, "token": c.token, "progress": {"done": 1}, "logs": None} for c in claims]
            return node._store.finish(connection, [], notes)
        return node._store.finish(
            connection, [states.ended(c, Outcome.FAILED, 0.0, 1.0, error="no") for c in claims]
        )

    with node._store.connect() as connection:
        with locked(dsn, busy):
            first = write(connection, claims)
        second = write(connection, [busy])

    assert sorted(first.lost) == sorted((c.id, c.token) for c in (gone, taken))
    assert first.locked == [(busy.id, busy.token)]
    assert Refused([], []) == second
    if statement == "note":
        said = db.execute("select id from pgscheduler_jobs where progress is not null order by id").fetchall()
        assert said == [(free.id,), (busy.id,)]
    else:
        assert db.execute("select job_id from pgscheduler_runs order by 1").fetchall() == [
            (free.id,),
            (busy.id,),
        ]
        assert db.execute("select id, token from pgscheduler_jobs").fetchall() == [(taken.id, THIEF)]


def test_completed_by_its_transaction_and_locked_is_not_a_transaction_lost(
    dsn: str, db: Any, held: Any
) -> None:
    """The outcome of `ctx.transaction()` waits for a locked row; only where the row does not have its mark is it gone."""
    node, (marked, forgotten) = held(2)
    db.execute("update pgscheduler_jobs set completed_at = now() where id = %s", [marked.id])
    moves = [states.ended(c, Outcome.COMPLETED, 0.0, 1.0, marked=True) for c in (marked, forgotten)]
    with node._store.connect() as connection, locked(dsn, marked, forgotten):
        refused = node._store.finish(connection, moves)

    assert refused == ([(forgotten.id, forgotten.token)], [(marked.id, marked.token)])


@pytest.mark.parametrize("recurs", [False, True])
def test_rows_that_others_write_all_the_time_are_recorded_once_each(
    dsn: str, direct_dsn: str, db: Any, held: Any, recurs: bool
) -> None:
    """Heartbeats, cancels and the like lock rows for a moment, before and while outcomes are written: nothing is half done."""
    jobs = 200
    node, claims = held(jobs)
    recorder, done = node._node.recorder, threading.Event()
    writes = [0]

    def meddle() -> None:
        with psycopg.connect(direct_dsn, autocommit=True) as other:
            while not done.is_set():
                other.execute("update pgscheduler_jobs set heartbeat_at = now() where state = 'running'")
                writes[0] += 1

    meddler = threading.Thread(target=meddle)
    meddler.start()
    eventually(lambda: writes[0])
    for claim in claims:
        plain = (claim, 0.0, 1.0)
        recorder.report(
            claim, states.failed_again(claim, Outcome.FAILED, 0.0, 1.0, 60.0) if recurs else plain
        )
    eventually(lambda: recorder.step() is None or recorder.unwritten == 0, timeout=30)
    done.set()
    meddler.join(10)

    written = db.execute("select job_id, token from pgscheduler_runs order by 1").fetchall()
    assert [(claim.id, claim.token) for claim in claims] == written
    left = db.execute("select state, token, failures from pgscheduler_jobs").fetchall()
    assert ([("pending", None, 1)] * jobs if recurs else []) == left
    assert node._node.dispatcher.counters["lost"] == 0


def test_a_locked_row_is_tried_again_at_once_and_then_more_rarely(
    dsn: str, db: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a heartbeat holds for a moment costs no time, and what is locked for long no work; the log says so once."""
    node, (claim,) = held(1)
    recorder, now = node._node.recorder, [monotonic()]
    monkeypatch.setattr(_recorder, "monotonic", lambda: now[0])
    recorder.report(claim, (claim, 0.0, 1.0))
    pauses: list[float] = []
    with locked(dsn, claim):
        for _ in range(10):
            pauses.append(recorder.step())
            now[0] += pauses[-1]
    recorder.step()

    assert [pytest.approx(0.008 * 2**n) for n in range(6)] + [pytest.approx(0.5)] * 4 == pauses
    assert (recorder.unwritten, count(db)) == (0, 1)
    assert len([e for e in node.log.events() if e.startswith("outcome waits for the job's row")]) == 1


def test_rows_locked_by_the_thousand_are_not_claimed_past(
    dsn: str, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node claims no more while very many outcomes wait for locked rows: memory is bounded."""
    monkeypatch.setattr(_recorder, "BATCH_LIMIT", 2)
    node, claims = held(3)
    recorder = node._node.recorder
    with locked(dsn, *claims):
        for claim in claims:
            recorder.report(claim, (claim, 0.0, 1.0))
        eventually(lambda: recorder.step() is not None and len(recorder._locked) == 3)
        stuck = recorder.stuck
    eventually(lambda: recorder.step() is not None and recorder.unwritten == 0)

    assert (stuck, recorder.stuck) == (True, False)


def test_the_end_of_the_loop_does_not_wait_for_a_locked_row(dsn: str, db: Any, held: Any) -> None:
    """What is given back in the last moment and locked by somebody is left to the other nodes, after half a second."""
    node, (claim, other) = held(2)
    recorder = node._node.recorder
    with locked(dsn, claim):
        recorder.release([claim, other])
        recorder.finish()

    assert recorder.unwritten == 1
    rows = db.execute("select id, state from pgscheduler_jobs order by id").fetchall()
    assert rows == [(claim.id, "running"), (other.id, "pending")]


def test_a_shutdown_is_bounded_although_a_row_stays_locked(dsn: str, db: Any, scheduler_on: Any) -> None:
    """An outcome that cannot be written for a lock is waited for like a run, and no longer."""
    left: list[psycopg.Connection[Any]] = []

    def lock(ctx: Any) -> None:
        left.append(psycopg.connect(dsn))
        ctx.assert_owner(left[0])

    node = scheduler_on(dsn, start=True, shutdown_timeout=1, register=(Call(JobConfig(name="lock"), lock),))
    node.enqueue("lock")
    eventually(lambda: node.node_stats()["unwritten"] == 1)
    began = monotonic()
    clean = node.shutdown()
    took = monotonic() - began
    left[0].close()

    assert not clean
    assert took < 1 + 1 + 2.5  # the last for a busy machine; no wait for a lock takes less than five
    eventually(lambda: count(db) == 1, describe="the outcome to be written after all")


def test_outcomes_are_written_beside_one_who_locks_by_id(dsn: str, db: Any, held: Any) -> None:
    """Whoever takes rows one after the other, in whatever order, and a commit of outcomes do not wait for each other."""
    node, (first, second) = held(2)
    moves = [states.released(second), states.released(first)]  # in the order in which the runs ended
    with node._store.connect() as connection, locked(dsn, first) as other:
        refused = node._store.finish(connection, moves)
        other.execute("select from pgscheduler_jobs where id = %s for update", [second.id])

    assert refused == ([], [(first.id, first.token)])


# --- no connection ----------------------------------------------------------------------------------------


def test_a_recorder_without_a_connection_stops_the_claims(
    dsn: str, db: Any, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that can claim and cannot record, at a role's connection limit say, does not run everything meanwhile."""
    real, refusing = Store.connect, threading.Event()
    refusing.set()

    def connect(self: Store, *given: Any) -> Any:
        if refusing.is_set() and threading.current_thread().name.endswith("-recorder"):
            raise psycopg.OperationalError("too many connections for role")
        return real(self, *given)

    monkeypatch.setattr(Store, "connect", connect)
    client = scheduler_on(dsn)
    client.enqueue_many("job", [{} for _ in range(500)])
    node = scheduler_on(dsn, start=True, max_concurrent_jobs=2, register=(Call(JobConfig(name="job")),))
    eventually(lambda: node.node_stats()["claimed"])
    eventually(lambda: node.node_stats()["loops"]["recorder"]["failures"] > 4, timeout=20)
    claimed, stuck = node.node_stats()["claimed"], node._node.recorder.stuck
    refusing.clear()
    eventually(lambda: count(db) == 500, timeout=30)

    assert claimed < 500
    assert stuck
    assert not node._node.recorder.stuck


# --- what runs say ----------------------------------------------------------------------------------------


class Breaking:
    """Has writes of notes fail until it is told not to, and says when the first one did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]) -> None:
        self.failed, self.healed = threading.Event(), threading.Event()
        real = Store.finish

        def finish(store: Store, connection: Any, finished: Any, notes: Any = ()) -> Refused:
            if notes and not self.healed.is_set():
                self.failed.set()
                raise error()
            return real(store, connection, finished, notes)

        monkeypatch.setattr(Store, "finish", finish)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("error", [psycopg.OperationalError, psycopg.errors.DiskFull])
def test_what_a_run_says_survives_a_failed_write(
    dsn: str,
    db: Any,
    scheduler_on: Any,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    ends: bool,
    error: type[Exception],
) -> None:
    """Lines and progress that a commit could not write are in the next one, or in the run's record: in order, each once,
    and the newest progress."""
    breaking = Breaking(monkeypatch, lambda: error("on purpose"))

    def talk(ctx: Any) -> None:
        ctx.log.info("first")
        ctx.progress(1, 2)
        assert breaking.failed.wait(20)
        ctx.log.info("second")
        if not ends:
            ctx.progress(2, 2)
            breaking.healed.set()
            gate(ctx)

    node = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="talk"), talk),))
    job = node.enqueue("talk")
    if ends:
        (run,) = node.wait(job, 20) and node.runs(job)
        assert run.progress == {"done": 1, "total": 2, "message": None}
    else:
        eventually(lambda: len(lines_of(db)) == 2)
        progress = db.execute("select progress from pgscheduler_jobs").fetchall()
        assert progress == [({"done": 2, "total": 2, "message": None},)]
    assert lines_of(db) == ["first", "second"]
    assert node._node.recorder._unsaid == {}


def test_what_a_run_says_waits_for_its_locked_row(dsn: str, db: Any, held: Any) -> None:
    """Lines of a run whose row somebody holds locked are written after that, and those of others at once."""
    node, claims = held(2)
    recorder = node._node.recorder
    with locked(dsn, claims[0]):
        for number, claim in enumerate(claims):
            claim.context.log.info(("locked", "free")[number])
            claim.context.progress(number)
        eventually(lambda: recorder.step() is not None and lines_of(db))
        meanwhile = lines_of(db)
    claims[0].context.log.info("later")
    eventually(lambda: recorder.step() is not None and len(lines_of(db)) == 3)

    assert meanwhile == ["free"]
    assert lines_of(db) == ["locked", "free", "later"]
    said = db.execute("select progress -> 'done' from pgscheduler_jobs order by id").fetchall()
    assert said == [(0,), (1,)]
    assert node._node.dispatcher.counters["lost"] == 0


def test_a_line_that_the_server_refuses_keeps_no_other(dsn: str, db: Any, held: Any) -> None:
    """What can never be written is dropped, and the log says so; the lines of other runs are written."""
    db.execute(
        "create function refuse() returns trigger language plpgsql as"
        " $$ begin raise exception 'no' using errcode = '22000'; end $$;"
        "create trigger refuse before insert on pgscheduler_run_logs for each row when (new.event = 'bad')"
        " execute function refuse()"
    )
    node, claims = held(2)
    recorder = node._node.recorder
    claims[0].context.log.info("bad")
    claims[1].context.log.info("good")
    with pytest.raises(psycopg.DataError):
        recorder.step()

    assert lines_of(db) == ["good"]
    assert recorder._unsaid == {}
    assert "notes refused by the server" in node.log.events()


def test_what_is_kept_of_a_run_is_bounded(
    dsn: str, db: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing can be written a run that talks and talks keeps no more lines than ever."""
    breaking = Breaking(monkeypatch, lambda: psycopg.errors.DiskFull("on purpose"))
    monkeypatch.setattr(_recorder, "NOTE_INTERVAL", 0.0)
    node, (claim,) = held(1)
    recorder = node._node.recorder
    for _ in range(4):
        for number in range(400):
            claim.context.log.debug(str(number))
        with pytest.raises(psycopg.errors.DiskFull):
            recorder.step()
    breaking.healed.set()
    recorder.step()

    assert len(lines_of(db)) == 1000


# --- lost answers -----------------------------------------------------------------------------------------


@contextmanager
def answers_lost(monkeypatch: pytest.MonkeyPatch, statement: str) -> Iterator[None]:
    """The next such write is committed, and the connection gone before the answer."""
    real, lost = getattr(Store, statement), []

    def write(store: Store, connection: psycopg.Connection[Any], *given: Any) -> Refused:
        answer: Refused = real(store, connection, *given)
        if not lost:
            lost.append(answer)
            connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Store, statement, write)
        yield
    assert lost == [Refused([], [])]


@pytest.mark.parametrize(
    ("statement", "end", "state"),
    [
        ("complete", lambda c: (c, 0.0, 1.0), "completed"),
        ("finish", lambda c: states.ended(c, Outcome.COMPLETED, 0.0, 1.0, result=1), "completed"),
        ("finish", lambda c: states.ended(c, Outcome.FAILED, 0.0, 1.0, error="no"), "failed"),
        ("finish", lambda c: states.failed_again(c, Outcome.FAILED, 0.0, 1.0, 60.0), "pending"),
        ("finish", lambda c: states.died(c, 0.0, 1.0), "pending"),
        ("finish", states.released, "pending"),
    ],
    ids=["plain", "result", "failed", "retried", "died", "released"],
)
def test_an_outcome_whose_answer_was_lost_is_told_like_any_other(
    dsn: str,
    db: Any,
    held: Any,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    end: Any,
    state: str,
) -> None:
    """Subscribers, metrics and counters hear of what was written although nobody heard the server say so."""
    node, (claim,) = held(1)
    recorder, told = node._node.recorder, []
    node.subscribe(lambda change: told.append((change.job_id, change.old, change.new)))
    metrics = Metrics(node)
    recorder.report(claim, end(claim))
    with answers_lost(monkeypatch, statement), pytest.raises(psycopg.OperationalError):
        recorder.step()
    in_doubt = recorder.unwritten
    recorder.step()

    eventually(lambda: told)
    assert told == [(claim.id, "running", state)]
    assert (in_doubt, recorder.unwritten, recorder.recorded) == (1, 0, 1)
    assert (recorder.reported, len(node._node.ledger)) == (1, 0)
    assert (node._node.dispatcher.counters["lost"], recorder._doubts) == (0, set())
    assert count(db) == (0 if end is states.released else 1)
    ends = "scheduler_jobs_success" if state == "completed" else "scheduler_jobs_failed"
    if state in ("completed", "failed"):
        assert f"{ends} 1".encode() in metrics.text()


@pytest.mark.parametrize("statement", ["complete", "finish"])
def test_a_stall_that_another_node_wrote_is_not_told_as_our_outcome(
    dsn: str, db: Any, held: Any, statement: str
) -> None:
    """An outcome in doubt, whose claim a stalled scan took back and recorded under the same token, is lost."""
    node, (claim,) = held(1)
    recorder, told = node._node.recorder, []
    node.subscribe(told.append)
    db.execute("update pgscheduler_jobs set claimed_at = now() - interval '1 hour', heartbeat_at = null")
    db.execute("update pgscheduler_nodes set no_heartbeat_timeout = '1 minute'")
    db.execute(node._store.sql["stalled"], {"timeout": 60.0, "batch": 10})
    recorder._doubts = {(claim.id, claim.token)}
    plain = (claim, 0.0, 1.0)
    recorder.report(
        claim, plain if statement == "complete" else states.ended(claim, Outcome.COMPLETED, 0.0, 1.0)
    )
    recorder.step()

    assert db.execute("select outcome from pgscheduler_runs").fetchall() == [("stalled",)]
    # Not `unwritten`: the run itself is told that it is lost, and may have reported its end by now.
    assert (recorder.recorded, len(node._node.ledger)) == (0, 0)
    assert (node._node.dispatcher.counters["lost"], told, claim.lost) == (1, [], True)


@pytest.mark.parametrize("statement", ["complete", "finish"])
def test_a_write_that_comes_through_late_is_not_taken_for_lost(
    dsn: str, db: Any, held: Any, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """The server may commit what it was sent on a dead connection after history was asked, and before it is sent again."""
    node, (claim,) = held(1)
    recorder, real = node._node.recorder, Store.written
    plain, other = (claim, 0.0, 1.0), states.ended(claim, Outcome.COMPLETED, 0.0, 1.0)

    def written(store: Store, connection: Any, claims: Any) -> Any:
        found = real(store, connection, claims)
        monkeypatch.setattr(Store, "written", real)
        if statement == "complete":
            store.complete(connection, [plain])
        else:
            store.finish(connection, [other])
        return found

    monkeypatch.setattr(Store, "written", written)
    recorder._doubts = {(claim.id, claim.token)}
    recorder.report(claim, plain if statement == "complete" else other)
    eventually(lambda: recorder.step() is not None and recorder.unwritten == 0)

    assert count(db) == 1
    assert (recorder.recorded, recorder._doubts, node._node.dispatcher.counters["lost"]) == (1, set(), 0)


@pytest.mark.parametrize("end", [states.released, lambda claim: (claim, 0.0, 1.0)], ids=["released", "plain"])
def test_what_is_in_doubt_and_was_not_written_is_written(dsn: str, db: Any, held: Any, end: Any) -> None:
    """A doubt that turns out to be none is settled by writing, also where a lock puts that off."""
    node, (claim,) = held(1)
    recorder = node._node.recorder
    recorder._doubts = {(claim.id, claim.token)}
    recorder.report(claim, end(claim))
    with locked(dsn, claim):
        recorder.step()
        waiting = (recorder.unwritten, len(recorder._doubts))
    eventually(lambda: recorder.step() is not None and recorder.unwritten == 0)

    assert waiting == (1, 1)
    assert (recorder.recorded, recorder._doubts, node._node.dispatcher.counters["lost"]) == (1, set(), 0)
    left = db.execute("select state from pgscheduler_jobs").fetchall()
    assert left == ([("pending",)] if end is states.released else [])
