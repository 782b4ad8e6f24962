"""The schema: made by many at once, by a DBA's script, or refused with a reason and nothing changed."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgscheduler import JobConfig, JobState, Scheduler, SchedulerConfig, SchemaError, _migrate
from pgscheduler._sql import Names
from tests.engine.conftest import Call, Quiet
from tests.support.postgres import Server, database_dsn, execute

SHAPE = """
select 'column', table_name || '.' || column_name,
       concat_ws(' ', data_type, is_nullable, column_default, is_identity, ordinal_position)
from information_schema.columns where table_schema = %(schema)s
union all
select 'index', indexname, indexdef from pg_indexes where schemaname = %(schema)s
union all
select 'constraint', conname || ' ' || conrelid::regclass, pg_get_constraintdef(c.oid)
from pg_constraint c where connamespace = %(schema)s::regnamespace
union all
select 'function', proname, pg_get_functiondef(p.oid) from pg_proc p where pronamespace = %(schema)s::regnamespace
union all
select 'table', relname, concat_ws(' ', relkind, reloptions, pg_get_expr(relpartbound, oid))
from pg_class where relnamespace = %(schema)s::regnamespace and relkind in ('r', 'p', 'v')
order by 1, 2, 3
"""


def shape(dsn: str, schema: str = "public") -> list[tuple[Any, ...]]:
    """Everything that is in a schema, as text."""
    return execute(dsn, SHAPE, {"schema": schema})


def init(dsn: str, **settings: Any) -> None:
    """What a program does at its start."""
    scheduler = Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet(), **settings))
    try:
        scheduler.init()
    finally:
        scheduler.shutdown()


MANY = """
import sys
from pgscheduler import Scheduler, SchedulerConfig
from tests.support.processes import commands, emit

scheduler = Scheduler(SchedulerConfig(dsn=sys.argv[1], schema=sys.argv[2], create_schema=True))
emit("ready")
next(commands())
scheduler.init()
emit("initialized", jobs=len(scheduler.jobs()))
scheduler.shutdown()
"""


@pytest.mark.parametrize("schema", ["public", "own"])
def test_eight_processes_create_the_schema_at_once(empty_dsn: str, nodes: Any, schema: str) -> None:
    """Eight programs that start together with create_schema=True all succeed, and there is one schema."""
    processes = [nodes(MANY, empty_dsn, schema) for _ in range(8)]
    for process in processes:
        process.wait_for("ready", timeout=60)
    for process in processes:
        process.send({"go": True})
    for process in processes:
        process.wait_for("initialized", timeout=60)
        assert process.wait() == 0
    assert execute(empty_dsn, f"select version from {schema}.pgscheduler_migrations order by 1") == [
        (number,) for number, _, _ in _migrate.migrations()
    ]


def test_init_again_changes_nothing(dsn: str) -> None:
    """create_schema=True on a schema that is there already changes nothing."""
    before = shape(dsn)
    init(dsn, create_schema=True)
    init(dsn)
    assert shape(dsn) == before


@pytest.mark.parametrize("tool", ["psql", "psycopg"])
def test_printed_script_is_what_migrate_does(server: Server, dsn: str, empty_dsn: str, tool: str) -> None:
    """The script for a DBA makes the same schema; applied twice it changes nothing the second time."""
    script = _migrate.script(Names("public", "pgscheduler_"))
    if tool == "psql" and shutil.which("psql") is None:
        pytest.skip("psql is not installed")

    def apply() -> bool:
        if tool == "psql":
            done = subprocess.run(
                ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", empty_dsn],
                input=script,
                text=True,
                capture_output=True,
                check=False,
            )
            return done.returncode == 0
        with psycopg.connect(empty_dsn, autocommit=True) as connection:
            try:
                connection.execute(script)
            except psycopg.Error:
                return False
            return True

    assert apply()
    assert shape(empty_dsn) == shape(dsn)
    init(empty_dsn)
    apply()  # whether it complains or not
    assert shape(empty_dsn) == shape(dsn)
    assert execute(empty_dsn, "select count(*) from pgscheduler_migrations") == [
        (len(_migrate.migrations()),)
    ]
    assert _migrate.script(Names("public", "x_"), current=_migrate.migrations()[-1][0]).count("create") == 0


def test_a_schema_and_a_prefix_of_ones_own(empty_dsn: str, scheduler_on: Any) -> None:
    """Another schema and prefix hold all objects, and everything works in them; public stays as it was."""
    before = shape(empty_dsn)
    scheduler = scheduler_on(empty_dsn, create_schema=True, schema="work", table_prefix="")
    assert shape(empty_dsn) == before
    names = {name for kind, name, _ in shape(empty_dsn, "work") if kind == "table"}
    assert {"jobs", "runs", "run_logs", "nodes", "migrations"} <= names
    record = scheduler.schedule(Call(JobConfig.one_time("job")))
    assert scheduler.run_pending().completed == 1
    assert scheduler.get_job(record).state is JobState.COMPLETED
    assert execute(empty_dsn, "select work.enqueue('job') > 0") == [(True,)]


def test_longest_prefix_fits(empty_dsn: str) -> None:
    """With the longest prefix that is allowed no name is cut and none collides."""
    for prefix in ("p" * 40, "p" * 39 + "q"):
        init(empty_dsn, create_schema=True, table_prefix=prefix)
    for prefix in ("p" * 40, "p" * 39 + "q"):
        for name in (
            "jobs_pending",
            "jobs_running",
            "jobs_key",
            "runs_finished",
            "run_logs_default",
            "migrations",
        ):
            assert execute(empty_dsn, "select to_regclass(%s) is not null", [f"public.{prefix}{name}"]) == [
                (True,)
            ]


# --- refusals ---------------------------------------------------------------------------------------------


def test_missing(empty_dsn: str) -> None:
    """Without tables and without create_schema the error says what is missing and what to do."""
    with pytest.raises(SchemaError, match=r"missing.*create_schema=True.*pgscheduler migrate"):
        init(empty_dsn)
    assert shape(empty_dsn) == []


@pytest.mark.parametrize("create_schema", [True, False])
def test_too_new(dsn: str, create_schema: bool) -> None:
    """A schema of a newer version is left alone, and the text says which versions they are."""
    newest = _migrate.migrations()[-1][0]
    execute(dsn, "insert into pgscheduler_migrations (version, name) values (%s, 'future')", [newest + 7])
    before = shape(dsn)
    with pytest.raises(SchemaError, match=rf"version .*is {newest + 7}, newer than .*\({newest}\).*upgrade"):
        init(dsn, create_schema=create_schema)
    assert shape(dsn) == before


def test_too_old(dsn: str) -> None:
    """A schema of an older version is not touched unasked; the text says what to do."""
    execute(dsn, "update pgscheduler_migrations set version = version - 1")
    before = shape(dsn)
    with pytest.raises(SchemaError, match=r"older than this pgscheduler needs.*pgscheduler migrate"):
        init(dsn)
    assert shape(dsn) == before


@pytest.mark.parametrize(
    "name", ["pgscheduler_jobs", "pgscheduler_migrations", "pgscheduler_runs", "pgscheduler_jobs_pending"]
)
@pytest.mark.parametrize("create_schema", [True, False])
def test_somebody_elses_view_of_the_same_name(empty_dsn: str, name: str, create_schema: bool) -> None:
    """A view under one of our names is not ours: a clear error, and it is all that is there afterwards."""
    execute(empty_dsn, f"create view {name} as select 1 as version")
    before = shape(empty_dsn)
    with pytest.raises(SchemaError):
        init(empty_dsn, create_schema=create_schema)
    assert shape(empty_dsn) == before


def test_jobs_replaced_by_a_view(dsn: str) -> None:
    """Bookkeeping alone does not convince: jobs must be a table."""
    execute(dsn, "alter table pgscheduler_jobs rename to elsewhere")
    execute(dsn, "create view pgscheduler_jobs as select * from elsewhere")
    with pytest.raises(SchemaError, match="not a table"):
        init(dsn)


@pytest.fixture
def role(server: Server) -> Iterator[tuple[str, str]]:
    """A login role that may do nothing of its own: (name, password)."""
    name, password = f"pgscheduler_test_{secrets.token_hex(4)}", secrets.token_hex(8)
    execute(
        server.dsn,
        sql.SQL("create role {} login password {}").format(sql.Identifier(name), sql.Literal(password)),
    )
    yield name, password
    execute(server.dsn, sql.SQL("drop role {}").format(sql.Identifier(name)))


def test_role_without_create(empty_dsn: str, role: tuple[str, str]) -> None:
    """Without the right to create, the error names the right and the way around it, and nothing was made."""
    execute(empty_dsn, "revoke create on schema public from public")
    user = make_conninfo(empty_dsn, user=role[0], password=role[1])
    for schema in ("public", "another"):
        with pytest.raises(SchemaError, match=r"(?s)permission denied.*grant CREATE.*migrate --print"):
            init(user, create_schema=True, schema=schema)
    assert shape(empty_dsn) == []
    assert execute(empty_dsn, "select to_regnamespace('another') is null") == [(True,)]


def test_role_without_any_right_on_the_tables(dsn: str, role: tuple[str, str]) -> None:
    """A role that may not even read the tables is told so by a SchemaError."""
    user = make_conninfo(dsn, user=role[0], password=role[1])
    for create_schema in (False, True):
        with pytest.raises(SchemaError, match="permission denied"):
            init(user, create_schema=create_schema)


def test_role_that_may_only_use_the_tables(dsn: str, role: tuple[str, str], scheduler_on: Any) -> None:
    """A role that may use the tables and create nothing can run everything but the making of partitions."""
    name = sql.Identifier(role[0])
    execute(
        dsn, sql.SQL("grant select, insert, update, delete on all tables in schema public to {}").format(name)
    )
    execute(dsn, sql.SQL("grant usage on all sequences in schema public to {}").format(name))
    scheduler = scheduler_on(make_conninfo(dsn, user=role[0], password=role[1]), create_schema=True)
    record = scheduler.schedule(Call(JobConfig.one_time("job")))
    scheduler.start()
    assert scheduler.wait(record, 15).state is JobState.COMPLETED
    scheduler.shutdown()
    execute(dsn, sql.SQL("drop owned by {}").format(name))


def test_tables_dropped_later(dsn: str, scheduler_on: Any) -> None:
    """When the tables vanish under a running program, verbs raise SchemaError and not a driver's error."""
    scheduler = scheduler_on(dsn)
    execute(dsn, "drop table pgscheduler_jobs cascade")
    with pytest.raises(SchemaError, match="missing"):
        scheduler.jobs()


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("LATIN1", "r\u00e9sum\u00e9"), ("EUC_JP", "\u65e5\u672c"), ("SQL_ASCII", "r\u00e9sum\u00e9")],
)
def test_a_database_of_another_encoding(server: Server, scheduler_on: Any, encoding: str, name: str) -> None:
    """The tables can be made in it, and names from Python and from SQL are one; without any encoding the DSN must say
    one, and the refusal tells how."""
    database = server.create()
    try:
        server.drop(database)
        execute(
            server.dsn,
            sql.SQL("create database {} encoding {} locale 'C' template template0").format(
                sql.Identifier(database), sql.Literal(encoding)
            ),
        )
        dsn = database_dsn(server.dsn, database)
        if encoding == "SQL_ASCII":
            with pytest.raises(SchemaError, match=r"SQL_ASCII.*client_encoding=utf8"):
                scheduler_on(dsn, create_schema=True)
            dsn = make_conninfo(dsn, client_encoding="utf8")
        client = scheduler_on(dsn, create_schema=True)
        job = client.enqueue(name, key=name, delay=60)
        call = "select pgscheduler_enqueue(%s, key => %s, run_at => '2100-01-01Z')"
        assert execute(dsn, call, [name, name]) == [(job.id,)]
        assert [found.name for found in client.jobs()] == [name]
        client.shutdown()
    finally:
        server.drop(database)
