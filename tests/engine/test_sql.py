"""The statements: each file is used, each one fits the schema, and none of the hot ones reads the whole table."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgscheduler
from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig
from pgscheduler._sql import JOB_COLUMNS, Names, positional
from pgscheduler._store import ClaimRequest, Store, new_token
from tests.engine.conftest import Quiet
from tests.support import eventually
from tests.support.postgres import terminate_backends

PACKAGE = Path(pgscheduler.__file__).parent
FILES = sorted(file.stem for file in (PACKAGE / "sql").glob("*.sql"))
ROWS = 50_000
RUNNING = 3_000
NODE = "11111111-1111-1111-1111-111111111111"


@pytest.fixture
def store(dsn: str) -> Store:
    return Store(dsn, Names("public", "pgscheduler_"))


@pytest.fixture
def direct_store(direct_dsn: str) -> Store:
    """For what only a session of one's own has: planner settings, and an end when the backend ends."""
    return Store(direct_dsn, Names("public", "pgscheduler_"))


@pytest.mark.parametrize("name", FILES)
def test_every_statement_is_used(name: str) -> None:
    """A statement that no module names is dead, and a first line says what each one does."""
    sources = "\n".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    assert f'"{name}"' in sources
    assert (PACKAGE / "sql" / f"{name}.sql").read_text().startswith("-- ")


@pytest.mark.parametrize("name", [name for name in FILES if name != "copy_jobs"])
def test_every_statement_can_be_prepared(db: psycopg.Connection[Any], store: Store, name: str) -> None:
    """Each statement fits a fresh schema."""
    text, _ = positional(store.sql[name])
    db.execute(f"prepare statement as {text.decode()}")


def test_a_whole_job_is_every_column(db: psycopg.Connection[Any]) -> None:
    """The list that stands for `*` where callers' connections prepare has each column, in the table's order."""
    found = db.execute("select * from pgscheduler_jobs").description or []
    assert [column.name for column in found] == list(JOB_COLUMNS)


def test_copy_fits(db: psycopg.Connection[Any], store: Store) -> None:
    """COPY too, which cannot be prepared."""
    with db.cursor() as cursor, cursor.copy(store.sql["copy_jobs"]) as copy:
        copy.write("")


class Noop(Job):
    def run(self, ctx: RunContext) -> None: ...


def test_a_statement_reads_the_clock_once(dsn: str, db: psycopg.Connection[Any]) -> None:
    """Due and scheduled are one instant, or a job could start a moment before its occurrence."""
    db.execute("create sequence ticks")
    db.execute(
        "create or replace function pgscheduler_now() returns timestamptz language plpgsql stable as"
        " $$ begin return timestamptz '2031-03-01Z' + nextval('ticks') * interval '1 second'; end $$"
    )
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet())) as client:
        hour = timedelta(hours=1)
        moved = client.enqueue("moved", delay=hour)
        daily = client.schedule(Noop(JobConfig.recurring("daily", "@daily")))
        client.enqueue("now")
        client.enqueue("keyed", key="one")
        client.enqueue("later", key="two", delay=hour)
        client.schedule_many([Noop(JobConfig(name="many", key=str(n))) for n in range(2)])
        client.reschedule(moved, delay=2 * hour)
        client.trigger(daily)

    rows = db.execute("select name, run_at, scheduled_at, created_at from pgscheduler_jobs").fetchall()
    assert {row[0] for row in rows} == {"moved", "daily", "now", "keyed", "later", "many"}
    assert [row for row in rows if row[1] != row[2]] == []
    assert [row for row in rows if row[0] in {"now", "keyed", "many"} and row[3] != row[1]] == []


# --- plans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize(
    "name",
    ["plain", 'with "quotes"', "back\\slash", "{curly},comma", "null", "grüße 🎉", "50%", "%(name)s", "$1"],
)
def test_any_name_reaches_the_claim(dsn: str, db: psycopg.Connection[Any], name: str, prepared: bool) -> None:
    """Names travel as an array literal: what is special there, in psycopg or in libpq, is only text."""
    db.execute(
        "insert into pgscheduler_jobs (name, run_at, scheduled_at, created_at, parameters)"
        " values (%s, now(), now(), now(), %s)",
        [name, json.dumps({"said": name})],
    )
    store = Store(dsn, Names("public", "pgscheduler_"), prepared=prepared)
    request = ClaimRequest(10, ["another", name], {}, True)
    with store.connect() as connection:
        found = [
            [(claim.name, json.loads(claim.parameters or "null")) for claim in claims]
            for claims in (
                store.claim(connection, NODE, request, new_token()),
                store.claim(connection, NODE, request, new_token()),  # now the statement is prepared
            )
        ]
    assert found == [[(name, {"said": name})], []]


def test_a_mark_reaches_the_claim(dsn: str, db: psycopg.Connection[Any], store: Store) -> None:
    """A claim from the marks passes over what is due before them, to the microsecond."""
    db.execute(
        "insert into pgscheduler_jobs (name, run_at, scheduled_at, created_at)"
        " select 'job', at, at, at from generate_series(1, 3) n,"
        " lateral (select timestamptz '2026-01-01 12:00:00.000000+05:30' + n * interval '1 microsecond' as at) due"
    )
    mark = datetime(2026, 1, 1, 6, 30, 0, 2, tzinfo=UTC)
    with store.connect() as connection:
        request = ClaimRequest(10, ["job"], {5: mark}, False)
        claims = store.claim(connection, NODE, request, new_token())
    assert [claim.run_at for claim in claims] == [mark, mark + timedelta(microseconds=1)]


def test_a_refused_statement_says_why_and_the_connection_lives(direct_store: Store, dsn: str) -> None:
    """What the server refuses in the direct path raises psycopg's own error; a cut connection an OperationalError."""
    with direct_store.connect() as connection:
        request = ClaimRequest(10, ["job"], {}, True)
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            direct_store.claim(connection, "no uuid", request, new_token())
        assert direct_store.claim(connection, NODE, request, new_token()) == []
        terminate_backends(dsn)
        with pytest.raises(psycopg.OperationalError):
            direct_store.claim(connection, NODE, request, new_token())
        assert connection.closed


def outcomes(ids: list[int], token: int) -> str:
    shared = {
        "token": token,
        "outcome": "failed",
        "started": 0.0,
        "ended": 0.1,
        "attempt": 1,
        "failures": 1,
        "stalls": 0,
    }
    return json.dumps([{"id": id_, "ends": n % 2 == 0, "delay": 1.0, **shared} for n, id_ in enumerate(ids)])


def arguments(name: str, ids: list[int], token: int) -> dict[str, str]:
    """For one batch, as SQL literals."""
    array = "'{" + ",".join(map(str, ids)) + "}'"
    same = "'{" + ",".join([str(token)] * len(ids)) + "}'"
    zeros = "'{" + ",".join(["0"] * len(ids)) + "}'"
    return {
        "complete": {"ids": array, "tokens": same, "started": zeros, "ended": zeros},
        "finish": {"outcomes": f"'{outcomes(ids, token)}'"},
        "note": {"notes": f"'{outcomes(ids, token)}'"},
        "heartbeat": {"ids": array, "tokens": same},
        "claim": {
            "everything": "true", "priorities": "'{}'", "marks": "'{}'", "names": "'{job}'", "slots": str(len(ids) or 1),
            "once": "10", "often": "1", "until": "null", "token": "99", "node": f"'{NODE}'",
        },
    }[name]  # fmt: skip


def come_and_go(db: psycopg.Connection[Any], then: str) -> None:
    db.execute(
        "insert into pgscheduler_jobs (name, run_at, scheduled_at, created_at)"
        " select 'job', now(), now(), now() from generate_series(1, 20000)"
    )
    db.execute(
        "delete from pgscheduler_jobs where id > 20"
    )  # a few, of which the planner knows more than of none
    db.execute(then)
    db.execute("delete from pgscheduler_jobs")


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes_of(child)


@pytest.mark.parametrize(
    "statistics", ["none", "of an empty table", "of a drained table", "under an old snapshot"]
)
@pytest.mark.parametrize("name", ["complete", "finish", "note", "heartbeat", "claim"])
def test_no_plan_reads_the_whole_table(
    dsn: str, db: psycopg.Connection[Any], direct_store: Store, name: str, statistics: str
) -> None:
    """A generic plan from when the table was empty still walks indexes, and few rows, when it has 50,000."""
    db.execute("alter table pgscheduler_jobs set (autovacuum_enabled = off)")  # the statistics stay stale
    if statistics == "of a drained table":  # many pages, no rows: the planner believes it stays so
        come_and_go(db, "vacuum analyze pgscheduler_jobs")
    if statistics == "under an old snapshot":  # the same, and the indexes are as large as before
        with psycopg.connect(dsn, autocommit=True) as other, other.transaction():
            other.execute("set transaction isolation level repeatable read")
            other.execute("select * from pgscheduler_nodes")
            come_and_go(db, "vacuum analyze pgscheduler_jobs")
    if statistics == "of an empty table":
        db.execute("analyze pgscheduler_jobs")
    text, order = positional(direct_store.sql[name])
    token = 7
    with direct_store.connect() as connection:

        def call(ids: list[int]) -> str:
            values = arguments(name, ids, token)
            return f"execute hot({', '.join(values[n] for n in order)})"

        connection.execute("set plan_cache_mode = force_generic_plan")
        connection.execute(f"prepare hot as {text.decode()}")
        connection.execute(call([]))  # the plan is made here, for an empty table
        db.execute(
            "insert into pgscheduler_jobs (name, run_at, scheduled_at, created_at, priority, state, token, claimed_at, node_id)"
            " select 'job', now() + (n - 25000) * interval '1 second', now(), now(), n %% 3,"
            " case when n <= %(running)s then 'running' else 'pending' end,"
            " case when n <= %(running)s then %(token)s end, case when n <= %(running)s then now() end,"
            " case when n <= %(running)s then %(node)s::uuid end from generate_series(1, %(rows)s) n",
            {"rows": ROWS, "running": RUNNING, "token": token, "node": NODE},
        )
        chosen = db.execute(
            "select id from pgscheduler_jobs where state = 'running' order by random() limit 100"
        )
        ids = sorted(row[0] for row in chosen)
        with connection.transaction(force_rollback=True):
            (document,) = connection.execute(f"explain (analyze, format json) {call(ids)}").fetchone()  # type: ignore[misc]
    scans = [
        node
        for node in nodes_of(document[0]["Plan"])
        if node.get("Relation Name") == "pgscheduler_jobs" and "Scan" in node["Node Type"]
    ]
    assert scans
    by_index = {"Index Scan", "Index Only Scan", "Tid Scan"}
    assert {node["Node Type"] for node in scans} <= by_index
    assert "pgscheduler_jobs_running" not in {node.get("Index Name") for node in scans}
    for node in scans:
        touched = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        assert touched <= 20 * len(ids), node


@pytest.mark.parametrize("prepared", [True, False])
def test_a_claim_reads_what_it_takes(
    dsn: str, db: psycopg.Connection[Any], direct_dsn: str, prepared: bool
) -> None:
    """Also where no session is our own, as behind a pooler, a claim of a few jobs reads a few of 25,000 that are due."""
    db.execute("alter table pgscheduler_jobs set (autovacuum_enabled = off)")
    come_and_go(db, "vacuum analyze pgscheduler_jobs")
    db.execute(
        "insert into pgscheduler_jobs (name, run_at, scheduled_at, created_at)"
        " select 'job', now(), now(), now() from generate_series(1, 25000)"
    )
    store = Store(direct_dsn, Names("public", "pgscheduler_"), prepared=prepared)
    counted = (
        "select idx_tup_fetch from pg_catalog.pg_stat_xact_user_tables where relname = 'pgscheduler_jobs'"
    )
    with store.connect() as connection, connection.transaction(force_rollback=True):
        assert len(store.claim(connection, NODE, ClaimRequest(10, ["job"], {}, True), new_token())) == 10
        (fetched,) = connection.execute(counted).fetchone()  # type: ignore[misc]
    assert fetched < 100


# --- concurrent writes --------------------------------------------------------------------------------------


def running_job(db: psycopg.Connection[Any], token: int) -> int:
    row: Any = db.execute(
        "insert into pgscheduler_jobs (name, run_at, scheduled_at, created_at, state, token, claimed_at, node_id)"
        " values ('job', now(), now(), now(), 'running', %s, now(), %s) returning id",
        [token, NODE],
    ).fetchone()
    return int(row[0])


def left(db: psycopg.Connection[Any]) -> tuple[list[Any], int]:
    """What there is of the job, and how many lines its history has."""
    rows = db.execute("select state, progress, cancel_requested from pgscheduler_jobs").fetchall()
    (lines,) = db.execute("select count(*) from pgscheduler_runs").fetchone()  # type: ignore[misc]
    return rows, lines


def commit_once_waited_for(db: psycopg.Connection[Any], other: psycopg.Connection[Any]) -> None:
    """End the transaction that holds the row, when a statement waits for it."""
    blocked = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    eventually(lambda: db.execute(blocked).fetchone() == (1,), describe="the statement to wait for the row")
    other.commit()


@pytest.mark.parametrize("name", ["cancel", "delete"])
def test_a_statement_that_had_to_wait_for_the_row_does_its_work(
    dsn: str, db: psycopg.Connection[Any], store: Store, name: str
) -> None:
    """Another transaction had written the row and committed after the statement began: nothing is half done."""
    job = running_job(db, 7)
    parameters = {"id": job, "name": None, "key": None, "reason": "cancelled"}
    with psycopg.connect(dsn) as other, store.connect() as connection:
        other.execute("update pgscheduler_jobs set heartbeat_at = now() where id = %s", [job])
        worker = threading.Thread(target=connection.execute, args=(store.sql[name], parameters))
        worker.start()
        commit_once_waited_for(db, other)
        worker.join(10)
    assert left(db) == ([("running", None, True)], 0)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("finish-end", ([], 1)),
        ("finish-retry", ([("pending", None, False)], 1)),
        ("note", ([("running", {"done": 5}, False)], 0)),
    ],
)
def test_a_record_waits_for_no_row(
    dsn: str, db: psycopg.Connection[Any], store: Store, name: str, end: tuple[list[Any], int]
) -> None:
    """A locked row is left as it is, and the answer says that its claim is still ours; the next try does the work."""
    token = 7
    job = running_job(db, token)
    line = {"id": job, "token": token, "outcome": "failed", "started": 0, "ended": 1, "attempt": 1}
    statement, parameters = {
        "finish-end": ("finish", {"outcomes": json.dumps([{**line, "ends": True}])}),
        "finish-retry": (
            "finish",
            {"outcomes": json.dumps([{**line, "ends": False, "delay": 1, "failures": 1, "stalls": 0}])},
        ),
        "note": ("note", {"notes": json.dumps([{"id": job, "token": token, "progress": {"done": 5}}])}),
    }[name]
    with psycopg.connect(dsn) as other, store.connect() as connection:
        other.execute("update pgscheduler_jobs set heartbeat_at = now() where id = %s", [job])
        answer: Any = connection.execute(store.sql[statement], parameters).fetchone()
        assert list(answer)[-2:] == [None, [[job, token]]]
        other.commit()
        assert left(db) == ([("running", None, False)], 0)

        again: Any = connection.execute(store.sql[statement], parameters).fetchone()

    # Who was accepted is said only where not everybody was, or where the statement says it always.
    assert [[job, token]] in list(again) or again[0] == 1
    assert left(db) == end


def test_a_heartbeat_loses_no_row_that_was_written_after_it_began(
    dsn: str, db: psycopg.Connection[Any], store: Store
) -> None:
    """Its snapshot has the version before. Such a claim is answered as its own and not renewed, to be asked for again."""
    job = running_job(db, 7)
    parameters = {"ids": [job], "tokens": [7]}
    # It has begun, and comes to the rows when it has this lock.
    late = store.sql["heartbeat"].replace("from unnest(", "from (select pg_advisory_lock(5)) l, unnest(")
    assert late != store.sql["heartbeat"]
    late = late.replace("select * from (select pg", "select g.* from (select pg")
    answers: list[Any] = []
    with psycopg.connect(dsn) as other, store.connect() as connection:
        other.execute("select pg_advisory_xact_lock(5)")
        worker = threading.Thread(
            target=lambda: answers.append(connection.execute(late, parameters).fetchall())
        )
        worker.start()
        waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        eventually(lambda: db.execute(waiting).fetchone() == (1,), describe="the heartbeat to have begun")
        other.execute("update pgscheduler_jobs set cancel_requested = true where id = %s", [job])
        other.commit()
        worker.join(10)
        again = connection.execute(store.sql["heartbeat"], parameters).fetchall()
    assert answers == [[(job, 7, False, False)]]
    assert again == [(job, 7, True, True)]


def test_plain_completions_wait_for_a_row_and_not_for_long(
    dsn: str, db: psycopg.Connection[Any], store: Store
) -> None:
    """Who holds a row for a moment costs no second try, and who keeps it only this: nothing is written, and it says so."""
    job, patient = running_job(db, 7), store.sql["complete"].replace("'250ms'", "'1min'")
    parameters = {"ids": f"{{{job}}}", "tokens": "{7}", "started": "{0}", "ended": "{1}"}
    answers: list[Any] = []
    with psycopg.connect(dsn) as other, store.connect() as connection:
        other.execute("update pgscheduler_jobs set heartbeat_at = now() where id = %s", [job])
        before = connection.execute("show lock_timeout").fetchone()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute(store.sql["complete"], parameters)
        assert connection.execute("show lock_timeout").fetchone() == before
        assert left(db) == ([("running", None, False)], 0)

        worker = threading.Thread(
            target=lambda: answers.append(connection.execute(patient, parameters).fetchone())
        )
        worker.start()
        commit_once_waited_for(db, other)
        worker.join(10)
    assert answers == [(1, None)]
    assert left(db) == ([], 1)
