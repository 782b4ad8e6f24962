"""The doctor: each finding is made to arise in a real database, and a healthy one has none."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgscheduler import (
    DatabaseUnavailableError,
    InvalidTypeError,
    JobConfig,
    Scheduler,
    SchedulerConfig,
)
from pgscheduler._sql import Names
from pgscheduler._store import Store
from pgscheduler.cli import main
from pgscheduler.doctor import (
    CHECKS,
    Finding,
    Severity,
    _facts,
    _jobs,
    _server,
    _tables,
    examine,
    gather,
    judge,
)
from pgscheduler.doctor._check import Check
from tests.support import eventually, reserved_port
from tests.support.postgres import PrivateServer, Server, apply_schema

OK, WARNING, PROBLEM = Severity.OK, Severity.WARNING, Severity.PROBLEM
NODE = "11111111-1111-1111-1111-111111111111"
#: A node that no shift of the clock by less than a day makes look dead.
PATIENT: dict[str, Any] = {"heartbeat_interval": 3600, "no_heartbeat_timeout": 86400}

Look = Callable[..., dict[str, Finding]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with settings as in real life: the one that other tests share has fsync off."""
    with PrivateServer(settings={"max_prepared_transactions": "2"}) as own:
        yield Server(own.dsn)


@pytest.fixture(scope="module")
def template(server: Server) -> Iterator[str]:
    with server.template(apply_schema) as name:
        yield name


@pytest.fixture(scope="module")
def pgbouncer() -> None:
    """The doctor examines a server directly; what it finds through a pooler has tests of its own."""


@pytest.fixture
def look(dsn: str) -> Look:
    """What the doctor finds, by check."""

    def ask(target: Any = dsn) -> dict[str, Finding]:
        return {finding.check: finding for finding in examine(target)}

    return ask


@pytest.fixture
def node(dsn: str, scheduler_on: Callable[..., Scheduler]) -> Callable[..., Scheduler]:
    """`node(*jobs, **settings)`: a node that works, and whose first round of maintenance is over."""

    def start(*jobs: Any, **settings: Any) -> Scheduler:
        scheduler = scheduler_on(dsn, start=True, register=jobs, **{**PATIENT, **settings})
        with psycopg.connect(dsn, autocommit=True) as connection:
            made = "select count(*) >= 5 from pg_inherits where inhparent = 'pgscheduler_run_logs'::regclass"  # the last
            eventually(lambda: connection.execute(made).fetchone() == (True,), 30, "partitions")
        return scheduler

    return start


@pytest.fixture
def role(dsn: str, server: Server) -> Iterator[Callable[..., str]]:
    """`role(*grants, limit=-1)`: a dsn for a new role without any right but those."""
    made: list[sql.Identifier] = []

    def make(*grants: str, limit: int = -1) -> str:
        name = f"visitor_{os.getpid()}_{len(made)}"
        identifier = sql.Identifier(name)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("create role {} login connection limit {}").format(identifier, limit))
            made.append(identifier)
            for grant in grants:
                connection.execute(sql.SQL("grant " + grant + " to {}").format(identifier))
        return make_conninfo(dsn, user=name)

    yield make
    with psycopg.connect(dsn, autocommit=True) as connection:
        for identifier in made:
            connection.execute(sql.SQL("drop owned by {}").format(identifier))
            connection.execute(sql.SQL("drop role {}").format(identifier))


@contextmanager
def setting(db: psycopg.Connection[Any], name: str, value: str) -> Iterator[None]:
    """A setting of the whole server, for a while."""

    def change(text: str) -> None:
        db.execute(f"alter system {text}")
        db.execute("select pg_reload_conf()")

    before = db.execute("select current_setting(%s)", [name]).fetchone()
    change(f"set {name} = '{value}'")
    try:
        eventually(lambda: db.execute("select current_setting(%s)", [name]).fetchone() == (value,))
        yield
    finally:
        change(f"reset {name}")
        eventually(lambda: db.execute("select current_setting(%s)", [name]).fetchone() == before)


def insert(db: psycopg.Connection[Any], **columns: str) -> int:
    """A row of jobs; the values are SQL."""
    values = {"name": "'x'", "run_at": "now()", "scheduled_at": "now()", "created_at": "now()", **columns}
    statement = f"insert into pgscheduler_jobs ({', '.join(values)}) values ({', '.join(values.values())}) returning id"
    row = db.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


def dead_rows(db: psycopg.Connection[Any], count: int) -> None:
    """So many rows that are gone and not vacuumed, and statistics that know it."""
    db.execute("alter table pgscheduler_jobs set (autovacuum_enabled = off)")
    db.execute(
        "insert into pgscheduler_jobs (name, run_at, scheduled_at, created_at)"
        " select 'x', now(), now(), now() from generate_series(1, %s)",
        [count],
    )
    db.execute("delete from pgscheduler_jobs")
    known = "select n_dead_tup >= %s from pg_stat_all_tables where relid = 'pgscheduler_jobs'::regclass"
    eventually(lambda: db.execute(known, [count]).fetchone() == (True,), 30, "the statistics")
    db.execute("alter table pgscheduler_jobs set (autovacuum_vacuum_threshold = 1000)")


# --- a healthy database -----------------------------------------------------------------------------------


def test_a_healthy_database_has_no_findings(
    look: Look, node: Callable[..., Scheduler], call: Any, gate: Any, db: psycopg.Connection[Any]
) -> None:
    """With a node that runs, has run and will run jobs, every check looks and says ok."""
    held = call(JobConfig(name="held"), gate)
    scheduler = node(held, call(JobConfig(name="quick"), lambda ctx: ctx.log.info("done")))
    scheduler.schedule(call(JobConfig.recurring("nightly", "0 3 * * *", timezone="Europe/Berlin")))
    scheduler.schedule(call(JobConfig.recurring("prefixed", "CRON_TZ=Asia/Tokyo 0 3 * * *")))
    scheduler.schedule(call(JobConfig.recurring("hourly", "@every 1h")))
    scheduler.enqueue("held")
    gate.wait_for(1)
    scheduler.wait(scheduler.enqueue("quick"), 30)
    scheduler.enqueue("quick", delay=timedelta(days=3))

    found = look()
    assert [f for f in found.values() if f.severity is not OK] == []
    assert list(found) == [check.name for check in CHECKS]
    assert all(f.what and not f.advice for f in found.values())
    assert found["schedules"].evidence == {"schedules": 3}
    assert found["time_zones"].evidence["zones"] == 3  # Berlin, Tokyo, UTC


def test_an_empty_database_with_a_schema_only_lacks_partitions(look: Look) -> None:
    """Before the first node and the first job, only the partitions that a node will make are missing."""
    assert {name for name, f in look().items() if f.severity is not OK} == {"partitions"}


def test_every_check_is_made() -> None:
    """A check that was written but not listed would never be made."""
    written = [
        v for module in (_server, _jobs, _tables) for v in vars(module).values() if isinstance(v, Check)
    ]
    assert written == list(CHECKS)


# --- the server -------------------------------------------------------------------------------------------


def test_missing_tables(empty_dsn: str, look: Look) -> None:
    """Without tables there is a problem, and only what needs none is looked at."""
    found = look(empty_dsn)
    assert found["schema_version"].severity is PROBLEM
    assert "migrate" in found["schema_version"].advice
    assert set(found) == {
        "schema_version",
        "writable",
        "durability",
        "connections",
        "certificate",
        "notifications",
    }


@pytest.mark.parametrize(("version", "words"), [(0, "needs"), (999, "knows only")])
def test_another_schema_version(db: psycopg.Connection[Any], look: Look, version: int, words: str) -> None:
    """Tables that are older or newer than this version are a problem."""
    db.execute("delete from pgscheduler_migrations")
    db.execute("insert into pgscheduler_migrations (version, name) values (%s, 'x')", [version])

    found = look()["schema_version"]
    assert (found.severity, found.evidence["version"]) == (PROBLEM, version)
    assert words in found.what


def test_a_standby(own_server: Callable[..., PrivateServer], look: Look) -> None:
    """A server in recovery is a problem: no node can work there."""
    server = own_server()
    apply_schema(server.dsn)
    server.down("fast")
    (server.data / "standby.signal").touch()
    server.start()

    found = look(server.dsn)
    assert (found["writable"].severity, found["writable"].evidence["standby"]) == (PROBLEM, True)
    assert found["notifications"].severity is WARNING


def test_a_read_only_database(db: psycopg.Connection[Any], look: Look) -> None:
    """Transactions that are read-only by default are a problem."""
    set_here(db, "default_transaction_read_only", "on")
    assert look()["writable"].severity is PROBLEM


def set_here(db: psycopg.Connection[Any], name: str, value: str) -> None:
    """A setting for all new sessions of the test's database."""
    db.execute(sql.SQL("alter database {} set {} = {}").format(
        sql.Identifier(db.info.dbname), sql.Identifier(name), sql.Literal(value)))  # fmt: skip


def test_durability(db: psycopg.Connection[Any], look: Look) -> None:
    """What would lose acknowledged work in a crash is a problem, what may is a warning."""
    with setting(db, "fsync", "off"):
        assert look()["durability"].severity is PROBLEM
    with setting(db, "full_page_writes", "off"):
        assert look()["durability"].severity is WARNING
    set_here(db, "synchronous_commit", "local")
    assert look()["durability"].severity is OK
    with setting(db, "synchronous_standby_names", "nobody"):
        assert look()["durability"].severity is WARNING
    set_here(db, "synchronous_commit", "off")
    found = look()["durability"]
    assert (found.severity, found.evidence["synchronous_commit"]) == (PROBLEM, "off")


@pytest.mark.parametrize(("limit", "severity"), [(2, PROBLEM), (5, WARNING), (20, OK)])
def test_connection_headroom(role: Callable[..., str], look: Look, limit: int, severity: Severity) -> None:
    """Too few free connections for a node are a warning; fewer than it needs to come back, a problem."""
    found = look(role("select on all tables in schema public", limit=limit))["connections"]
    assert (found.severity, found.evidence["free"]["role"]) == (severity, limit - 1)


# --- nodes and jobs ---------------------------------------------------------------------------------------


def test_no_node(db: psycopg.Connection[Any], look: Look, clock: Any) -> None:
    """Jobs that wait while no node lives are a warning, and a problem once they are late."""
    insert(db)
    assert look()["nodes"].severity is WARNING
    clock(by=timedelta(minutes=5))
    assert look()["nodes"].severity is PROBLEM


def test_a_claim_without_a_living_node(
    look: Look, node: Callable[..., Scheduler], call: Any, gate: Any, db: psycopg.Connection[Any]
) -> None:
    """A claim of a node that is gone is a warning while others will take it over, and a problem when nobody does."""
    job = call(JobConfig(name="held"), gate)
    gone = node(job, heartbeat_interval=1000, no_heartbeat_timeout=3000)
    node(job)
    gone.enqueue("held")
    gate.wait_for(1)
    assert look()["claims"].severity is OK

    owner = "(select node_id from pgscheduler_jobs where state = 'running')"
    db.execute(f"update pgscheduler_nodes set stopped_at = now() where id = {owner}")
    db.execute("update pgscheduler_nodes set no_heartbeat_timeout = '50 minutes'")
    found = look()["claims"]
    assert (found.severity, found.evidence["jobs"], found.evidence["stuck"]) == (WARNING, 1, 0)

    db.execute("update pgscheduler_nodes set stopped_at = now()")  # nobody is left
    found = look()["claims"]
    assert (found.severity, found.evidence["stuck"]) == (PROBLEM, 0)

    # The other lives, and leaves alone for hours what is not its own.
    db.execute(f"update pgscheduler_nodes set stopped_at = null where id <> {owner}")
    db.execute(
        "update pgscheduler_jobs set claimed_at = claimed_at - interval '2 hours' where state = 'running'"
    )
    found = look()["claims"]
    assert (found.severity, found.evidence["jobs"], found.evidence["stuck"]) == (PROBLEM, 1, 1)
    assert found.evidence["examples"][0]["seconds"] >= 7200


def test_overdue(look: Look, node: Callable[..., Scheduler], call: Any, gate: Any, clock: Any) -> None:
    """What waits for minutes because all slots are taken is a warning, after a quarter of an hour a problem."""
    held = call(JobConfig(name="held"), gate)
    scheduler = node(held, max_concurrent_jobs=1)
    scheduler.enqueue("held")
    gate.wait_for(1)
    scheduler.enqueue("held")
    scheduler.schedule(call(JobConfig.recurring("often", "* * * * * *")))
    assert look()["overdue_jobs"].severity is OK

    for minutes, severity in ((5, WARNING), (20, PROBLEM)):
        clock(by=timedelta(minutes=minutes))
        found = look()
        for name in ("overdue_jobs", "overdue_schedules"):
            assert (found[name].severity, found[name].evidence["jobs"]) == (severity, 1), name
            assert 60 * minutes - 10 < found[name].evidence["oldest_seconds"] < 60 * minutes + 60
        assert found["unknown_names"].severity is OK


def test_names_that_no_living_node_knows(
    look: Look, node: Callable[..., Scheduler], call: Any, clock: Any
) -> None:
    """A backlog that nobody can run is a warning, and a problem once it is due for long; it is not overdue as well."""
    scheduler = node(call(JobConfig(name="known")))
    for _ in range(3):
        scheduler.enqueue("stranger")
    scheduler.enqueue("guest", key="k", delay=timedelta(days=3))
    found = look()["unknown_names"]
    assert found.severity is WARNING
    assert {n["name"]: (n["jobs"], n["due"]) for n in found.evidence["names"]} == {
        "stranger": (3, 3),
        "guest": (1, 0),
    }

    clock(by=timedelta(minutes=20))
    found = look()
    assert (found["unknown_names"].severity, found["overdue_jobs"].severity) == (PROBLEM, OK)


# --- rows -------------------------------------------------------------------------------------------------


def test_rows_that_break_a_rule(db: psycopg.Connection[Any], look: Look) -> None:
    """Each kind of broken row is found and named, with the ids."""
    claim = {"state": "'running'", "token": "7", "node_id": f"'{NODE}'", "claimed_at": "now()"}
    ids = {
        "a running job without token, node or time of its claim": insert(db, **{**claim, "node_id": "null"}),
        "a running job whose claim has its outcome in history already": insert(db, **{**claim, "token": "8"}),
        "a waiting job with a claim": insert(db, node_id=f"'{NODE}'"),
        "a recurring job without a key": insert(db, schedule="""'{"every": 60}'"""),
    }
    recorded = ids["a running job whose claim has its outcome in history already"]
    for number, token, outcome, started, ended, rule in (
        (recorded, 8, "completed", "now()", "now() + interval '1 second'", None),
        (1001, 1, "vanished", "now()", "now()", "a run whose outcome is none"),
        (1002, 1, "failed", "now()", "now() - interval '1 second'", "a run that ended before it started"),
        (1003, 1, "failed", "now()", "now() + interval '1 hour'", "a run that ended in the future"),
    ):
        db.execute(
            "insert into pgscheduler_runs (job_id, token, scheduled_at, started_at, finished_at, attempt, outcome, name)"
            f" values (%s, %s, now(), {started}, {ended}, 1, %s, 'x')",
            [number, token, outcome],
        )
        if rule:
            ids[rule] = number

    found = look()["rows"]
    assert found.severity is PROBLEM
    assert all(rule in found.what for rule in ids)
    facts = gather(Store(db.info.dsn, Names("public", "pgscheduler_"), prepared=False), listen=False)
    assert {row["rule"]: row["ids"] for row in facts.rows["doctor_rows"]} == {
        rule: [id_] for rule, id_ in ids.items()
    }


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("alter table pgscheduler_jobs drop constraint pgscheduler_jobs_claimed", "constraint pgscheduler_jobs_claimed"),
        ("drop index pgscheduler_jobs_running", "index pgscheduler_jobs_running"),
        ("drop index pgscheduler_runs_finished", "index pgscheduler_runs_finished"),
        (
            "update pg_index set indisvalid = false where indexrelid = 'pgscheduler_jobs_key'::regclass",
            "index pgscheduler_jobs_key",
        ),
    ],
)  # fmt: skip
def test_missing_guards(db: psycopg.Connection[Any], look: Look, statement: str, name: str) -> None:
    """A constraint or index that is missing or not valid is a problem, and named."""
    db.execute(statement)
    found = look()["guards"]
    assert (found.severity, found.what) == (PROBLEM, f"missing or not valid: {name}")


def test_a_table_that_is_gone(db: psycopg.Connection[Any], look: Look) -> None:
    """Without the table of jobs there is a problem, and the rest is still looked at."""
    db.execute("drop table pgscheduler_jobs cascade")
    found = look()
    assert found["guards"].severity is PROBLEM
    assert found["space"].what == "could not be looked at: it is not there"
    assert found["default_partition"].severity is OK


@pytest.mark.parametrize(
    "text", ["{", '{"cron": "61 * * * *", "timezone": "UTC"}', '{"cron": "@daily", "timezone": "No/Where"}']
)
def test_schedules_that_cannot_be_read(db: psycopg.Connection[Any], look: Look, text: str) -> None:
    """A stored schedule that no node can compute is a problem."""
    id_ = insert(db, key="'x'", schedule=f"'{text}'")
    found = look()["schedules"]
    assert (found.severity, found.evidence["examples"][0]["id"]) == (PROBLEM, id_)


# --- time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "severity"), [(0.5, OK), (-30, WARNING), (30, WARNING), (3600, PROBLEM)])
def test_clocks_that_differ(look: Look, clock: Any, seconds: float, severity: Severity) -> None:
    """This machine's clock against the database's: seconds are a warning, a minute is a problem."""
    clock(by=timedelta(seconds=seconds))
    found = look()["clock"]
    assert found.severity is severity
    assert abs(found.evidence["ahead_seconds"] + seconds) <= found.evidence["doubt_seconds"] + 0.05


def test_time_zone_rules_that_differ(
    look: Look, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules here that are not the server's, for a zone in use, are a warning that says where and how much."""
    insert(db, key="'x'", schedule="""'{"cron": "0 3 * * *", "timezone": "Europe/Berlin"}'""")
    assert look()["time_zones"].severity is OK
    monkeypatch.setattr(
        _server, "zone", lambda key: ZoneInfo("Etc/GMT-1")
    )  # as if it had abolished summer time
    found = look()["time_zones"]
    assert found.severity is WARNING
    assert found.evidence["differing"]["Europe/Berlin"]["here"] == "1:00:00"
    assert found.evidence["differing"]["Europe/Berlin"]["postgresql"] == "2:00:00"


def test_time_zones_that_the_server_does_not_know(dsn: str, db: psycopg.Connection[Any]) -> None:
    """A zone in use that PostgreSQL has not heard of is a warning: one of the two is old."""
    insert(db, key="'x'", schedule="""'{"cron": "0 3 * * *", "timezone": "Europe/Berlin"}'""")
    store = Store(dsn, Names("public", "pgscheduler_"), prepared=False)
    zones = {"zones": ["Europe/Berlin", "Not/There"], "instants": ["2026-07-01T00:00Z"]}
    assert db.execute(store.sql["doctor_offsets"], zones).fetchall()[1][2] is None
    facts = gather(store, listen=False)
    unknown = [{**row, "offset": None} for row in facts.rows["doctor_offsets"]]
    facts = dataclasses.replace(facts, rows={**facts.rows, "doctor_offsets": unknown})
    found = {f.check: f for f in judge(facts)}["time_zones"]
    assert (found.severity, found.evidence["differing"]["Europe/Berlin"]["postgresql"]) == (WARNING, None)


def test_time_zone_rules_older_than_a_nodes(look: Look, db: psycopg.Connection[Any]) -> None:
    """A schedule that a node stored with newer rules than there are here is a warning."""
    insert(
        db, key="'x'", schedule="""'{"cron": "0 3 * * *", "timezone": "Europe/Berlin", "tzdata": "2999a"}'"""
    )
    found = look()["time_zones"]
    assert (found.severity, found.evidence["stored"]) == (WARNING, "2999a")


# --- notifications ----------------------------------------------------------------------------------------


@pytest.fixture
def pooler(dsn: str) -> Iterator[str]:
    """A dsn that leads through PgBouncer in transaction mode."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    given = conninfo_to_dict(dsn)
    with TemporaryDirectory(prefix="pgscheduler-pooler-") as directory, reserved_port() as port:
        home = Path(directory)
        home.chmod(0o755)
        (home / "pooler.ini").write_text(
            f"[databases]\n* = host={given['host']} port={given.get('port', 5432)} user={given['user']}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            "pool_mode = transaction\ndefault_pool_size = 5\n"
        )
        # It refuses to be root; the server's socket is open to root's other names only through its owner.
        owner = Path(given["host"]).owner() if os.getuid() == 0 else None
        command = [program, "-q", *(["-u", owner] if owner else []), str(home / "pooler.ini")]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        through = make_conninfo(dsn, host="127.0.0.1", port=port)
        try:
            eventually(lambda: answers(through), 30, "the pooler to answer")
            yield through
        finally:
            process.terminate()
            process.wait(30)


def answers(dsn: str) -> bool:
    try:
        with psycopg.connect(dsn, connect_timeout=5):
            return True
    except psycopg.OperationalError:
        return False


def test_notifications_through_a_pooler(pooler: str, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a pooler in transaction mode nothing is heard: a warning, unless nodes do not listen anyway."""
    monkeypatch.setattr(_facts, "HEARING", 1.0)
    found = look(pooler)["notifications"]
    assert (found.severity, found.evidence["heard_seconds"]) == (WARNING, None)
    assert "pooler" in found.what
    assert look(SchedulerConfig(dsn=pooler, listen=False))["notifications"].severity is OK


def test_a_node_behind_a_pooler_notices_that_it_is_deaf(
    pooler: str, scheduler_on: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node's listener that hears itself only because the pooler gave it the same session does not count as hearing."""
    monkeypatch.setattr("pgscheduler._listener.PROBE_PATIENCE", 1.0)
    scheduler = scheduler_on(pooler, start=True, prepared_statements=False)
    log = scheduler.config.logger
    eventually(
        lambda: any(event.startswith("notifications do not arrive") for event in log.events()),
        30,
        "the listener to say that it hears nothing",
    )


def test_notifications_that_may_not_be_sent(role: Callable[..., str], look: Look) -> None:
    """When the second connection is refused, that is the reason that the finding gives."""
    found = look(role("select on all tables in schema public", limit=1))
    assert found["notifications"].severity is WARNING
    assert "too many connections" in found["notifications"].what
    assert found["rows"].severity is OK


# --- the hot table ----------------------------------------------------------------------------------------


def test_autovacuum_turned_off(db: psycopg.Connection[Any], look: Look) -> None:
    """Autovacuum that is off for the server or for the table of jobs is a problem."""
    with setting(db, "autovacuum", "off"):
        found = look()["autovacuum"]
        assert (found.severity, found.evidence["server"]) == (PROBLEM, False)
    assert look()["autovacuum"].severity is OK
    db.execute("alter table pgscheduler_jobs set (autovacuum_enabled = off)")
    found = look()["autovacuum"]
    assert (found.severity, found.evidence["table"]) == (PROBLEM, False)


def test_a_snapshot_that_holds_back_vacuum(
    dsn: str, db: psycopg.Connection[Any], look: Look, clock: Any
) -> None:
    """Who holds a snapshot for ten minutes is named in a warning; for an hour, or while dead rows pile up, in a problem."""
    with psycopg.connect(dsn, application_name="reporting") as other:
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("select count(*) from pgscheduler_jobs")
        assert look()["vacuum_horizon"].severity is OK
        clock(by=timedelta(minutes=20))
        found = look()["vacuum_horizon"]
        assert found.severity is WARNING
        (holder,) = found.evidence["holders"]
        assert (holder["kind"], holder["state"]) == ("session", "idle in transaction")
        assert str(other.info.backend_pid) in holder["who"]
        assert "reporting" in holder["who"]
        assert 1200 <= holder["seconds"] < 1500

        clock(by=timedelta(hours=2))
        assert look()["vacuum_horizon"].severity is PROBLEM
        clock(by=timedelta(minutes=20))
        dead_rows(db, 12_000)
        found = look()["vacuum_horizon"]
        assert found.severity is PROBLEM
        assert "pile up" in found.what


def test_an_open_transaction_that_holds_back_vacuum(dsn: str, look: Look, clock: Any) -> None:
    """A transaction that wrote something and was left open holds back vacuum too, without any snapshot."""
    with psycopg.connect(dsn) as other:
        other.execute("create table t ()")
        clock(by=timedelta(minutes=20))
        found = look()["vacuum_horizon"]
    assert found.severity is WARNING
    assert found.evidence["holders"][0]["kind"] == "session"


def test_a_prepared_transaction_that_holds_back_vacuum(dsn: str, look: Look, clock: Any) -> None:
    """A prepared transaction that was forgotten holds back vacuum as a session does, and is named."""
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("begin; create table t (); prepare transaction 'forgotten'")
    clock(by=timedelta(minutes=20))
    try:
        found = look()["vacuum_horizon"]
    finally:
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("rollback prepared 'forgotten'")
    assert found.severity is WARNING
    assert "forgotten" in found.evidence["holders"][0]["who"]


def test_a_slot_that_holds_back_vacuum(dsn: str) -> None:
    """What tells no time, as slots and standbys, counts by its transactions."""
    facts = gather(Store(dsn, Names("public", "pgscheduler_"), prepared=False), listen=False)
    slot = {"kind": "replication slot", "who": "replica", "state": "inactive", "seconds": None}
    for transactions, severity in ((1000, OK), (2_000_000, WARNING)):
        rows = {**facts.rows, "doctor_horizon": [{**slot, "transactions": transactions}]}
        found = {f.check: f for f in judge(dataclasses.replace(facts, rows=rows))}["vacuum_horizon"]
        assert found.severity is severity


def test_sessions_that_do_not_show_themselves(
    dsn: str, db: psycopg.Connection[Any], role: Callable[..., str], look: Look
) -> None:
    """A role that may not see others' sessions is told so when dead rows pile up, and sees them with pg_monitor."""
    visitor = role("select on all tables in schema public")
    monitor = role("select on all tables in schema public", "pg_monitor")
    dead_rows(db, 12_000)
    found = look(visitor)["vacuum_horizon"]
    assert found.severity is WARNING
    assert found.evidence["hidden_sessions"] >= 1
    assert look(monitor)["vacuum_horizon"].evidence["hidden_sessions"] == 0


def test_dead_rows(db: psycopg.Connection[Any], look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead rows that vacuum does not come for are a warning, very many a problem; vacuum ends it."""
    dead_rows(db, 12_000)
    found = look()["dead_rows"]
    assert found.severity is WARNING
    assert found.evidence["dead"] >= 12_000
    monkeypatch.setattr(_tables, "DEAD_PILE", 10_000)
    assert look()["dead_rows"].severity is PROBLEM
    db.execute("vacuum pgscheduler_jobs")
    eventually(lambda: look(SchedulerConfig(dsn=db.info.dsn, listen=False))["dead_rows"].severity is OK)


def test_space(db: psycopg.Connection[Any], look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is mostly air is a warning, once it is big enough to matter."""
    dead_rows(db, 20_000)
    db.execute("vacuum pgscheduler_jobs")
    assert look()["space"].severity is OK
    monkeypatch.setattr(_tables, "SPACE", 1 << 20)
    found = look()["space"]
    assert found.severity is WARNING
    assert found.evidence["table_bytes"] > 1 << 20


# --- history ----------------------------------------------------------------------------------------------


def test_missing_partitions(
    look: Look, node: Callable[..., Scheduler], clock: Any, db: psycopg.Connection[Any]
) -> None:
    """A partition of today or tomorrow that is missing is a warning that names the day."""
    node().shutdown()
    assert look()["partitions"].severity is OK
    clock(by=timedelta(days=3))
    ((tomorrow,),) = db.execute(
        "select to_char(pgscheduler_now() at time zone 'UTC' + interval '1 day', 'YYYY-MM-DD')"
    )
    found = look()["partitions"]
    assert (found.severity, found.evidence["missing"]) == (
        WARNING,
        {"runs": [tomorrow], "run_logs": [tomorrow]},
    )


@pytest.mark.parametrize("table", ["runs", "run_logs"])
def test_rows_in_the_default_partition(db: psycopg.Connection[Any], look: Look, table: str) -> None:
    """History outside its days' partitions is a warning."""
    columns, values = {
        "runs": ("scheduled_at, finished_at, attempt, outcome, name", "now(), now(), 1, 'failed', 'x'"),
        "run_logs": ("token, at, level, event", "1, now(), 'info', 'x'"),
    }[table]
    db.execute(f"insert into pgscheduler_{table} (job_id, {columns}) values (1, {values})")
    found = look()["default_partition"]
    assert (found.severity, set(found.evidence["rows"])) == (WARNING, {table})


# --- how it looks -----------------------------------------------------------------------------------------


def test_any_reader_may_ask(role: Callable[..., str], look: Look, node: Callable[..., Scheduler]) -> None:
    """A role that may only read the tables gets every check answered."""
    node()
    found = look(role("select on all tables in schema public"))
    assert [f for f in found.values() if f.severity is not OK] == []
    assert list(found) == [check.name for check in CHECKS]


def test_what_may_not_be_read_costs_its_own_checks_only(
    role: Callable[..., str], look: Look, db: psycopg.Connection[Any]
) -> None:
    """A table that is closed to the role is a warning in the checks that need it; without any, the schema is a problem."""
    tables = ("migrations", "jobs", "runs", "runs_default", "run_logs_default")
    visitor = role(f"select on {', '.join('pgscheduler_' + table for table in tables)}")
    found = look(visitor)
    closed = {name for name, f in found.items() if "permission denied" in f.what}
    assert closed == {"nodes", "claims", "overdue_schedules", "overdue_jobs", "unknown_names"}
    assert {found[name].severity for name in closed} == {WARNING}
    assert found["rows"].severity is OK

    assert look(role())["schema_version"].severity is PROBLEM


def test_a_statement_that_is_too_slow_costs_its_own_checks_only(
    dsn: str, db: psycopg.Connection[Any], look: Look
) -> None:
    """A lock that somebody else holds delays the doctor by a second, not for ever, and nothing else is lost."""
    with psycopg.connect(dsn) as other:
        other.execute("lock table pgscheduler_run_logs_default in access exclusive mode")
        found = look()
    assert found["partitions"].severity is WARNING
    assert "lock timeout" in found["partitions"].what
    assert found["rows"].severity is OK


def test_it_changes_nothing(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction is read-only: a statement that writes is refused."""
    seen: list[str] = []

    def meddle(eye: Any, timeout: float) -> None:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), eye.connection.transaction():
            eye.connection.execute("delete from public.pgscheduler_jobs")
        seen.append("refused")

    monkeypatch.setattr(_facts, "_look_at_tables", meddle)
    gather(Store(dsn, Names("public", "pgscheduler_"), prepared=False), listen=False)
    assert seen == ["refused"]


ROWS = 50_000
BIG = {"pgscheduler_jobs", "pgscheduler_runs_default", "pgscheduler_run_logs_default"}


@pytest.mark.parametrize("analyzed", [False, True])
def test_no_big_table_is_read_whole(dsn: str, db: psycopg.Connection[Any], analyzed: bool) -> None:
    """With a big backlog and history each statement touches few rows, whether the planner knows the tables or not."""
    db.execute("alter table pgscheduler_jobs set (autovacuum_enabled = off)")
    db.execute("alter table pgscheduler_runs_default set (autovacuum_enabled = off)")
    db.execute(
        "insert into pgscheduler_jobs (name, key, run_at, scheduled_at, created_at, priority, state, token, claimed_at, node_id)"
        " select 'job' || n %% 3, case when n %% 2 = 0 then n::text end, now() + (n - 25000) * interval '1 second', now(), now(),"
        " n %% 3, case when n <= 3000 then 'running' when n <= 20000 then 'paused' else 'pending' end,"
        " case when n <= 3000 then n end, case when n <= 3000 then now() end, case when n <= 3000 then %s::uuid end"
        " from generate_series(1, %s) n",
        [NODE, ROWS],
    )
    db.execute(
        "insert into pgscheduler_runs (job_id, token, scheduled_at, started_at, finished_at, attempt, outcome, name)"
        " select n, -n, now(), now(), now() - n * interval '1 second', 1, 'completed', 'x' from generate_series(1, %s) n",
        [ROWS],
    )
    if analyzed:
        db.execute("analyze")
    asked: list[str] = []

    class Explaining(_facts._Eye):
        """Also asks for the plan, as it really ran."""

        def look(self, statement: str, **parameters: Any) -> None:
            super().look(statement, **parameters)
            text = "explain (analyze, format json) " + self.store.sql[statement]
            (document,) = self.connection.execute(text, parameters).fetchone()  # type: ignore[misc]
            asked.append(statement)
            for plan in nodes_of(document[0]["Plan"]):
                if plan.get("Relation Name") in BIG:
                    assert plan["Node Type"] in {"Index Scan", "Index Only Scan"}, (statement, plan)
                    touched = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan[
                        "Actual Loops"
                    ]
                    assert touched <= 3 * _facts.SAMPLE + 10, (statement, plan)

    store = Store(dsn, Names("public", "pgscheduler_"), prepared=False)
    with store.connect() as connection, connection.transaction():
        connection.execute(store.sql["doctor_session"])
        eye = Explaining(store, connection)
        _facts._look_at_tables(eye, 300.0)
    assert eye.failed == {}
    written = {path.stem for path in Path(_facts.__file__).parents[1].glob("sql/doctor_*.sql")}
    assert set(asked) == written - {"doctor_session", "doctor_schema", "doctor_server", "doctor_notify"} | {
        "now"
    }
    assert len(eye.rows["doctor_claims"]) == _facts.SAMPLE


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes_of(child)


# --- from Python ------------------------------------------------------------------------------------------


def test_whom_it_can_examine(dsn: str, scheduler_on: Callable[..., Scheduler]) -> None:
    """A dsn, a configuration, a scheduler and a client lead to the same tables, whatever their prefix."""
    scheduler = scheduler_on(dsn, table_prefix="shop_", create_schema=True)
    scheduler.enqueue("x")

    def node_of(target: Any) -> Severity:
        return {f.check: f.severity for f in examine(target)}["nodes"]

    assert [node_of(target) for target in (scheduler, scheduler.config, scheduler._client)] == [WARNING] * 3
    assert node_of(dsn) is OK


def test_wrong_targets_are_refused() -> None:
    """What is no database is refused without showing it; one that does not answer is unavailable."""
    with pytest.raises(InvalidTypeError) as caught:
        examine({"password": "hunter2"})  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)
    with pytest.raises(DatabaseUnavailableError):
        examine("postgresql://me@127.0.0.1:1/x")


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_what_to_do(
    dsn: str, node: Callable[..., Scheduler], capsys: pytest.CaptureFixture[str]
) -> None:
    """All well: a line per check and status 0. With a warning: what to do and the figures below, still 0."""
    scheduler = node()
    assert main(["doctor", "--dsn", dsn]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert len(said.out.splitlines()) == 1 + len(CHECKS)

    scheduler.enqueue("stranger")
    assert main(["doctor", "--dsn", dsn]) == 0
    said = capsys.readouterr()
    assert re.search(r"^warning +unknown_names +no living node knows stranger", said.out, re.MULTILINE)
    assert re.search(r"^warning unknown_names: Start a node that", said.out, re.MULTILINE)
    assert '"jobs": 1' in said.out


def test_the_command_ends_with_1_on_a_problem(dsn: str, db: psycopg.Connection[Any]) -> None:
    """A problem gives status 1, as a process, with exactly one JSON document that says which."""
    insert(db, run_at="now() - interval '5 minutes'")
    process = subprocess.run(
        [sys.executable, "-m", "pgscheduler", "doctor", "--dsn", dsn, "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (1, "")
    document = json.loads(process.stdout)
    assert (document["status"], document["count"]["problem"]) == (1, 1)
    assert document["count"]["ok"] + document["count"]["warning"] + 1 == len(document["findings"])
    (problem,) = [f for f in document["findings"] if f["severity"] == "problem"]
    assert set(problem) == {"check", "severity", "what", "evidence", "advice"}
    assert (problem["check"], problem["evidence"]["alive"]) == ("nodes", 0)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--dsn", ""], 2),
        (["--dsn", "nonsense"], 2),
        (["--dsn", "host=x", "--table-prefix", "a-b"], 2),
        (["surplus"], 2),
        (["--dsn", "postgresql://me@127.0.0.1:1/x"], 1),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong usage ends with 2, a database that does not answer with 1; each is one line on stderr."""
    assert main(["doctor", *arguments, "--json"]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
