"""P4 Fenced: every write of a run matches its claim's random token; a run that lost its claim changes nothing."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import (
    Cancel,
    Every,
    Fail,
    Job,
    JobCancelled,
    JobConfig,
    Retry,
    RunLostError,
    Scheduler,
    Snooze,
    states,
)
from pgscheduler._sql import Names
from pgscheduler._store import ClaimRequest, Store, new_token
from pgscheduler.states import Claim, Outcome
from tests.promises.node_scripts import create_ledger, history, live, quiet_config, start_node
from tests.support.processes import NodeProcess

Connection = psycopg.Connection[Any]
THIEF = str(uuid.uuid4())  # the node that took the job
STOLEN = 4611686018427387904  # its token


def steal(db: Connection, job: int) -> dict[str, Any]:
    """Another node has claimed the job; returns its row."""
    found = db.execute(
        "update pgscheduler_jobs set token = %s, node_id = %s, claimed_at = now(), heartbeat_at = now()"
        " where id = %s and state = 'running'",
        [STOLEN, THIEF, job],
    )
    assert found.rowcount == 1
    row = live(db, job)
    assert row is not None
    return row


def give_back(db: Connection, job: int) -> None:
    """The stalled scan has given the job back."""
    db.execute(
        "update pgscheduler_jobs set state = 'pending', token = null, node_id = null, claimed_at = null,"
        " heartbeat_at = null, stalls = stalls + 1 where id = %s and state = 'running'",
        [job],
    )


def records(db: Connection) -> tuple[int, int]:
    """How many runs and log lines there are."""
    row = db.execute(
        "select (select count(*) from pgscheduler_runs), (select count(*) from pgscheduler_run_logs)"
    ).fetchone()
    assert row is not None
    return row


class Held(Job):
    """Says that it runs, waits for the test, and ends as the test says."""

    def __init__(self, config: JobConfig, end: Callable[[Any], Any] = lambda ctx: None) -> None:
        super().__init__(config)
        self.end = end
        self.contexts: list[Any] = []
        self.gates: list[threading.Event] = [threading.Event(), threading.Event()]

    def run(self, ctx: Any) -> Any:
        gate = self.gates[len(self.contexts)]
        self.contexts.append(ctx)
        gate.wait(60)
        return self.end(ctx)


@pytest.fixture
def node(dsn: str) -> Iterator[Scheduler]:
    with Scheduler(quiet_config(dsn)) as scheduler:
        yield scheduler


def begin(node: Scheduler, held: Held, eventually: Callable[..., Any]) -> int:
    """Store the job, start the node, wait until it runs; returns its id."""
    if held.config.schedule is not None:
        job = node.schedule(held)
        node.trigger(job)
    else:
        node.register(held)
        job = node.enqueue(held.name)
    node.start()
    eventually(lambda: held.contexts, describe="the run has begun")
    return int(job.id)


# --- a node that was paused ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["complete", "silent", "fail", "cancel"])
def test_a_node_that_returns_from_a_pause_changes_nothing(
    dsn: str, db: Connection, nodes: Callable[..., NodeProcess], eventually: Callable[..., Any], end: str
) -> None:
    """A run that was paused past the timeout is told that it is lost, and none of its effects happens."""
    create_ledger(dsn)
    with Scheduler(quiet_config(dsn)) as client:
        paused = start_node(nodes, dsn, names=["stubborn"], beat=0.4, timeout=1.6)
        job = client.enqueue("stubborn", {"end": end}, retries=5)
        began = paused.wait_for("started", job=job.id)
        paused.pause()
        other = start_node(nodes, dsn, names=["stubborn"], beat=0.4, timeout=20)
        taken = other.wait_for("started", timeout=30, job=job.id)
        before = live(db, job.id)

        returned = time.time()
        paused.resume()
        told = paused.wait_for("told", job=job.id)
        tried = {
            event["what"]: event["error"] for event in (paused.wait_for("tried"), paused.wait_for("tried"))
        }
        paused.wait_for("ending", job=job.id)

        def settled() -> bool:
            paused.send({"do": "stats"})
            return bool(paused.wait_for("stats")["held"] == 0)

        eventually(settled, describe="the late outcome was offered to the database")
        after = live(db, job.id)
        warned = [event["text"] for event in paused.seen("warning")]
        other.send({"do": "go"})
        client.wait(job, 30)

    assert began["token"] != taken["token"]
    assert told["reason"] == "lost"
    assert told["time"] - returned < 0.4 + 5, (
        "within a heartbeat interval; five seconds are for a busy machine"
    )
    assert tried == {"assert_owner": "RunLostError", "transaction": "JobCancelled"}
    assert before is not None
    assert after is not None
    for row in (before, after):
        row.pop("heartbeat_at")  # of the other node
    assert before == after
    assert "claim lost" in warned
    assert [("stalled", began["token"]), ("completed", taken["token"])] == history(db, job.id)
    assert db.execute("select count(*) from ledger").fetchall() == [(0,)]
    assert records(db)[0] - 1 == 1
    assert records(db)[1] == 0


@pytest.mark.slow
def test_a_node_that_returns_is_told_within_one_heartbeat(
    dsn: str, db: Connection, nodes: Callable[..., NodeProcess]
) -> None:
    """However long it stood still: the interval is long enough here for the promise itself to be the bound."""
    beat, timeout = 5.0, 15.0
    create_ledger(dsn)
    with Scheduler(quiet_config(dsn)) as client:
        paused = start_node(nodes, dsn, names=["stubborn"], beat=beat, timeout=timeout)
        job = client.enqueue("stubborn", {"end": "silent"}, retries=5)
        paused.wait_for("started", job=job.id)
        paused.pause()
        other = start_node(nodes, dsn, names=["stubborn"], beat=beat, timeout=timeout)
        other.wait_for("started", timeout=60, job=job.id)
        returned = time.time()
        paused.resume()
        told = paused.wait_for("told", job=job.id)
        other.send({"do": "go"})
        client.wait(job, 30)

    assert told["reason"] == "lost"
    assert told["time"] - returned < beat


# --- a claim that is stolen under a run ---------------------------------------------------------------


def _raise(error: BaseException) -> Any:
    raise error


def _say(ctx: Any) -> None:
    ctx.progress(1, 2)
    ctx.log.info("late")


ENDS: dict[str, Callable[[Any], Any]] = {
    "returns": lambda ctx: None,
    "returns a result": lambda ctx: {"rows": 1},
    "says something and returns": _say,
    "raises": lambda ctx: _raise(ValueError("late")),
    "retries": lambda ctx: Retry(timedelta(0)),
    "snoozes": lambda ctx: Snooze(timedelta(0)),
    "cancels itself": lambda ctx: Cancel("late"),
    "fails for good": lambda ctx: Fail("late"),
    "acknowledges a cancel": lambda ctx: _raise(JobCancelled("cancelled")),
}


@pytest.mark.parametrize("schedule", [None, Every(timedelta(hours=1))], ids=["one-time", "recurring"])
@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_run_that_lost_its_claim_changes_nothing(
    node: Scheduler, db: Connection, eventually: Callable[..., Any], end: str, schedule: Any
) -> None:
    """However a run ends, when its claim was taken from it, neither the job nor history change; it is counted."""
    held = Held(JobConfig(name="held", schedule=schedule, retries=3), ENDS[end])
    job = begin(node, held, eventually)
    taken = steal(db, job)

    held.gates[0].set()
    # In this order: the claim is let go a moment after it was counted as lost.
    eventually(lambda: node.node_stats()["held"] == 0, describe="the outcome was refused")

    assert taken == live(db, job)
    assert records(db) == (0, 0)
    assert node.node_stats()["lost"] == 1


@pytest.mark.parametrize("way", ["heartbeat", "progress"])
def test_a_run_that_lost_its_claim_is_told(
    dsn: str, db: Connection, eventually: Callable[..., Any], way: str
) -> None:
    """The next heartbeat, or the next write of what the run says, tells the run that it is lost."""
    beat = 0.2 if way == "heartbeat" else 90
    held = Held(JobConfig(name="held"))
    with Scheduler(quiet_config(dsn, heartbeat_interval=beat, no_heartbeat_timeout=300)) as node:
        job = begin(node, held, eventually)
        ctx = held.contexts[0]
        taken = steal(db, job)
        if way == "progress":
            ctx.progress(1)
            ctx.log.info("late")
        eventually(lambda: ctx.cancelled, describe="the run is told")
        told = ctx.cancel_reason
        held.gates[0].set()
        eventually(lambda: node.node_stats()["held"] == 0)
        row = live(db, job)

    assert ("lost", taken, (0, 0)) == (told, row, records(db))


def test_a_transaction_of_a_run_that_lost_its_claim_is_rolled_back(
    node: Scheduler, dsn: str, db: Connection, eventually: Callable[..., Any]
) -> None:
    """A claim taken while the block of ctx.transaction() runs: RunLostError, and the user's SQL never was."""
    db.execute("create table effects (job bigint)")
    rows: list[Any] = []
    errors: list[BaseException] = []

    def end(ctx: Any) -> None:
        try:
            with ctx.transaction() as connection:
                connection.execute("insert into effects values (%s)", [ctx.job_id])
                rows.append(steal(db, ctx.job_id))
        except BaseException as error:
            errors.append(error)
            raise

    held = Held(JobConfig(name="held"), end)
    held.gates[0].set()
    job = begin(node, held, eventually)
    eventually(lambda: node.node_stats()["lost"] == 1)

    assert [RunLostError] == [type(error) for error in errors]
    assert held.contexts[0].cancel_reason == "lost"
    assert rows == [live(db, job)]
    assert db.execute("select * from effects").fetchall() == []
    assert records(db) == (0, 0)


def test_assert_owner_refuses_a_run_that_lost_its_claim_and_holds_the_others(
    node: Scheduler, dsn: str, db: Connection, eventually: Callable[..., Any]
) -> None:
    """assert_owner() lets the owner pass and keeps the job until its transaction ends; later it raises."""
    held = Held(JobConfig(name="held"))
    job = begin(node, held, eventually)
    ctx = held.contexts[0]
    with psycopg.connect(dsn) as mine:
        ctx.assert_owner(mine)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            db.execute("select from pgscheduler_jobs where id = %s for update nowait", [job])
        mine.commit()
        steal(db, job)
        with pytest.raises(RunLostError):
            ctx.assert_owner(mine)

    assert ctx.cancel_reason == "lost"
    held.gates[0].set()


def test_the_late_end_of_an_old_run_leaves_the_same_nodes_new_run_alone(
    node: Scheduler, db: Connection, eventually: Callable[..., Any]
) -> None:
    """A node that took its own lost job anew does not take the old run's refusal for the new run's."""
    held = Held(JobConfig(name="held"), lambda ctx: {"attempt": ctx.attempt})
    job = begin(node, held, eventually)
    give_back(db, job)
    node._node.dispatcher.look()
    eventually(lambda: len(held.contexts) == 2, describe="the same node runs it again")
    new = live(db, job)

    held.gates[0].set()
    eventually(lambda: node.node_stats()["lost"] >= 1, describe="the old run's outcome was refused")
    told, lost = held.contexts[1].cancel_reason, node.node_stats()["lost"]
    kept = live(db, job)
    held.gates[1].set()
    record = node.wait(job, 30)

    assert (None, 1, new) == (told, lost, kept)
    assert record.result == {"attempt": 2}
    assert [("completed", held.contexts[1].token)] == history(db, job)


# --- each statement by itself ------------------------------------------------------------------------


@pytest.fixture
def store(dsn: str) -> Store:
    return Store(dsn, Names("public", "pgscheduler_"))


def claim_one(store: Store, connection: Connection, name: str = "held") -> Claim:
    request = ClaimRequest(1, [name], {}, True)
    (claim,) = store.claim(connection, str(uuid.uuid4()), request, new_token())
    return claim


SOON = datetime(2031, 1, 1, tzinfo=UTC)
MOVES: dict[str, Callable[[Claim], states.Ended]] = {
    "ended": lambda c: states.ended(c, Outcome.COMPLETED, 0.0, 1.0, result={"late": 1}),
    "failed": lambda c: states.ended(c, Outcome.FAILED, 0.0, 1.0, error="late"),
    "failed_again": lambda c: states.failed_again(c, Outcome.FAILED, 0.0, 1.0, 0.0),
    "died": lambda c: states.died(c, 0.0, 1.0),
    "advanced": lambda c: states.advanced(
        c,
        Outcome.COMPLETED,
        0.0,
        1.0,
        SOON,
        SOON,
        skipped=[{"scheduled_at": SOON.isoformat(), "reason": "late"}],
    ),
    "cancelled": lambda c: states.ended(c, Outcome.CANCELLED, 0.0, 1.0),
    "interrupted": lambda c: states.interrupted(c, 0.0, 1.0, 0.0),
    "released": lambda c: states.released(c),
}


@pytest.mark.parametrize("move", MOVES)
def test_finish_is_fenced(node: Scheduler, store: Store, db: Connection, move: str) -> None:
    """finish.sql, for each move that a run can make, refuses an old token and changes nothing."""
    job = node.enqueue("held").id
    with store.connect() as connection:
        claim = claim_one(store, connection)
        taken = steal(db, job)
        late = MOVES[move](claim)
        late.logs = [{"at": 0.0, "level": "info", "event": "late", "fields": None}]
        store.finish(connection, [late])

    assert (taken, (0, 0)) == (live(db, job), records(db))


def test_complete_is_fenced(node: Scheduler, store: Store, db: Connection) -> None:
    """complete.sql takes the claims that hold and leaves the one that was lost."""
    lost, kept = node.enqueue("held", priority=0).id, node.enqueue("held").id
    with store.connect() as connection:
        claims = [claim_one(store, connection), claim_one(store, connection)]
        taken = steal(db, lost)
        store.complete(connection, [(claim, 0.0, 1.0) for claim in claims])

    assert taken == live(db, lost)
    assert ([], [("completed", claims[1].token)]) == (history(db, lost), history(db, kept))


def test_note_is_fenced(node: Scheduler, store: Store, db: Connection) -> None:
    """note.sql writes neither progress nor log lines for an old token."""
    job = node.enqueue("held").id
    line = {"at": 0.0, "level": "info", "event": "late", "fields": None}
    with store.connect() as connection:
        claim = claim_one(store, connection)
        taken = steal(db, job)
        note = {"id": job, "token": claim.token, "progress": {"done": 1}, "logs": [line]}
        store.finish(connection, [], [note])

    assert (taken, (0, 0)) == (live(db, job), records(db))


def test_heartbeat_is_fenced(node: Scheduler, store: Store, db: Connection) -> None:
    """heartbeat.sql renews no claim of another, and does not list it among its own."""
    job = node.enqueue("held").id
    description = {"id": THIEF, "host": "h", "pid": 1, "version": "0", "slots": 1, "names": [], "timeout": 60}
    with store.connect() as connection:
        claim = claim_one(store, connection)
        own = store.heartbeat(connection, description, [claim])
        taken = steal(db, job)
        others = store.heartbeat(connection, description, [claim])

    assert ({job: (claim.token, False, True)}, {}) == (own, others)
    assert taken == live(db, job)


@pytest.mark.parametrize("statement", ["mark_completed", "assert_owner", "release_claim"])
def test_the_other_statements_of_a_run_are_fenced(
    node: Scheduler, store: Store, db: Connection, statement: str
) -> None:
    """mark_completed, assert_owner and release_claim find no row under an old token."""
    job = node.enqueue("held").id
    with store.connect() as connection:
        claim = claim_one(store, connection)
        (owner,) = db.execute("select node_id from pgscheduler_jobs where id = %s", [job]).fetchone()  # type: ignore[misc]
        taken = steal(db, job)
        values = {"id": job, "token": claim.token, "result": None, "occurrence": None, "node": owner}
        found = connection.execute(store.sql[statement], values).fetchall()
        # The same node may hold the next claim; its name alone proves nothing.
        db.execute("update pgscheduler_jobs set node_id = %s where id = %s", [owner, job])
        found += connection.execute(store.sql[statement], values).fetchall()

    assert ([], {**taken, "node_id": str(owner)}) == (found, live(db, job))


@pytest.mark.parametrize("first", ["old", "new"])
def test_an_old_and_a_new_outcome_in_one_write_are_told_apart(
    node: Scheduler, store: Store, db: Connection, first: str
) -> None:
    """When the outcomes of a lost run and of its successor are written together, only the successor's counts."""
    job = node.enqueue("held").id
    with store.connect() as connection:
        old = claim_one(store, connection)
        give_back(db, job)
        new = claim_one(store, connection)
        line = {"at": 0.0, "level": "info", "event": "said", "fields": None}
        moves = [
            states.ended(c, Outcome.COMPLETED, 0.0, 1.0, result=c is new, logs=[line]) for c in (old, new)
        ]
        store.finish(connection, moves if first == "old" else moves[::-1])

    written = db.execute("select token, result from pgscheduler_runs").fetchall()
    lines = db.execute("select token from pgscheduler_run_logs").fetchall()
    assert ([(new.token, True)], [(new.token,)]) == (written, lines)


# --- the token ---------------------------------------------------------------------------------------


def test_tokens_are_random(node: Scheduler, store: Store, db: Connection) -> None:
    """Claims of one job never share a token, even when the row is put back to what it was before each of them."""
    job = node.enqueue("held").id
    before = live(db, job)
    tokens = []
    with store.connect() as connection:
        for _ in range(64):
            tokens.append(claim_one(store, connection).token)
            db.execute("delete from pgscheduler_jobs")
            db.execute(
                "insert into pgscheduler_jobs select * from jsonb_populate_record(null::pgscheduler_jobs, %s)",
                [psycopg.types.json.Jsonb(before)],
            )

    assert len(set(tokens)) == 64
    # 63 bits from the system, each of them used: a counter or a clock leaves most of them still.
    for bit in range(63):
        assert 0 < sum(token >> bit & 1 for token in tokens) < 64


def test_two_nodes_never_choose_the_same_token(
    dsn: str, db: Connection, nodes: Callable[..., NodeProcess]
) -> None:
    """The first claims of two fresh processes, of the same row in the same state, differ."""
    create_ledger(dsn)
    with Scheduler(quiet_config(dsn)) as client:
        job = client.enqueue("work")
        before = live(db, job.id)
        tokens = []
        for _ in range(2):
            node = start_node(nodes, dsn)
            tokens.append(node.wait_for("started", job=job.id)["token"])
            client.wait(job, 30)
            node.kill()
            db.execute("truncate pgscheduler_runs")
            db.execute(
                "insert into pgscheduler_jobs select * from jsonb_populate_record(null::pgscheduler_jobs, %s)",
                [psycopg.types.json.Jsonb(before)],
            )

    assert len(set(tokens)) == 2
