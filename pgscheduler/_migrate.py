"""Bring the schema to this version: numbered `.sql` files, under one advisory lock, or only printed."""

from __future__ import annotations

from time import sleep

import psycopg
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from ._sql import Names, migrations
from .clock import monotonic, uniform
from .errors import SchemaError

__all__ = ["check", "migrate", "remove", "script"]

LOCK_MIGRATION = 0
MINIMUM_SERVER = 140000
# Seconds; while a migration waits for a table, everybody else waits behind it. Less than PostgreSQL's deadlock_timeout,
# so that it is the migration that gives way, and not a job's statement.
LOCK_TIMEOUT = 0.5
LOCK_PAUSE = 1.0  # seconds between two tries, in which they go on; up to twice that, by chance
LOCK_PATIENCE = 60.0  # seconds of trying; who starts a node wants to hear of a transaction that stays open


def migrate(connection: Connection[TupleRow], names: Names) -> int:
    """Apply what is missing; returns how many migrations that was. Safe when eight nodes start at once.

    One transaction: either the schema is as this version needs it, or nothing changed. Nodes that are running go on:
    a lock that somebody's long transaction holds is waited for in short tries, and for a minute at most.
    """
    _check_server(connection)
    deadline = monotonic() + LOCK_PATIENCE
    while True:
        try:
            return _apply(connection, names)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if monotonic() >= deadline:
                raise SchemaError(
                    f"the tables are in use by a long transaction, so they could not be changed ({error}); "
                    "nothing was changed: end that transaction, or try again later"
                ) from error
            sleep(LOCK_PAUSE * uniform(1.0, 2.0))


def _apply(connection: Connection[TupleRow], names: Names) -> int:
    if _current(connection, names) == _latest():
        return 0
    try:
        with connection.transaction():
            # Whoever comes second waits here, then finds nothing left to do.
            connection.execute("select pg_advisory_xact_lock(%s)", [names.lock_key(LOCK_MIGRATION)])
            current = _current(connection, names)
            _refuse_newer(current, names)
            if current is None:
                _create_schema(connection, names)
                connection.execute(names.render(_BOOKKEEPING))
            todo = [m for m in migrations() if m[0] > (current or 0)]
            connection.execute(
                "select set_config('lock_timeout', %s, true)", [f"{LOCK_TIMEOUT * 1000:.0f}ms"]
            )
            for number, label, text in todo:
                connection.execute(names.render(text))
                connection.execute(names.render(_RECORD), [number, label])
        return len(todo)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(
            f"permission denied while creating the tables ({error}); grant CREATE, or set create_schema=False and let "
            "a DBA apply `pgscheduler migrate --print`"
        ) from error
    except (
        psycopg.errors.DuplicateTable,
        psycopg.errors.DuplicateObject,
        psycopg.errors.DuplicateFunction,
    ) as error:
        raise SchemaError(
            f"the schema holds an object of the same name that is not a table or function of ours: {error}"
        ) from error
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise SchemaError(f"the server is read-only (a standby?): {error}") from error


def check(connection: Connection[TupleRow], names: Names) -> None:
    """Raise SchemaError unless the tables are there and of this version."""
    _check_server(connection)
    current = _current(connection, names)
    _refuse_newer(current, names)
    if current is None:
        raise SchemaError(
            f"the tables {names.table('jobs')} … are missing: set create_schema=True, or run `pgscheduler migrate`"
        )
    if current < _latest():
        raise SchemaError(
            f"the schema version is {current}, older than this pgscheduler needs ({_latest()}): set create_schema=True, "
            "or run `pgscheduler migrate`"
        )
    kind = connection.execute(
        "select relkind from pg_class where oid = to_regclass(%s)", [names.table("jobs")]
    ).fetchone()
    if kind is None or kind[0] not in ("r", "p", b"r", b"p"):
        raise SchemaError(f"{names.table('jobs')} is missing or not a table")


def script(names: Names, current: int = 0) -> str:
    """The migrations after `current` as one SQL script, for a DBA. What is recorded as applied is left out by itself."""
    parts = ["begin;", f"select pg_advisory_xact_lock({names.lock_key(LOCK_MIGRATION)});"]
    if current == 0:
        parts += [
            f"create schema if not exists {sql.Identifier(names.schema).as_string(None)};",
            names.render(_BOOKKEEPING),
        ]
    for number, label, text in migrations():
        if number > current:
            record = sql.SQL(_RECORD_LITERAL).format(
                migrations=names.identifier("migrations"), number=sql.Literal(number), name=sql.Literal(label)
            )
            known = (
                sql.SQL(_KNOWN)
                .format(migrations=names.identifier("migrations"), number=sql.Literal(number))
                .as_string(None)
            )
            parts.append(_ONCE.format(known=known, text=names.render(text), record=record.as_string(None)))
    return "\n\n".join([*parts, "commit;"]) + "\n"


def remove(connection: Connection[TupleRow], names: Names) -> None:
    """Drop every table and function of this schema and prefix, and all that is in them."""
    connection.execute(names.render(_REMOVE))


def _latest() -> int:
    return migrations()[-1][0]


def _current(connection: Connection[TupleRow], names: Names) -> int | None:
    """The schema's version; None when there is none."""
    try:
        return _version(connection, names)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(f"permission denied while reading the schema's version: {error}") from error


def _version(connection: Connection[TupleRow], names: Names) -> int | None:
    table = names.table("migrations")
    found = connection.execute(
        "select relkind::text from pg_class where oid = to_regclass(%s)", [table]
    ).fetchone()
    if found is None:
        return None
    if found[0] not in ("r", "p"):
        raise SchemaError(f"{table} exists but is not a table")
    row = connection.execute(names.render("select max(version) from {migrations}")).fetchone()
    return int(row[0]) if row is not None and row[0] is not None else None


def _refuse_newer(current: int | None, names: Names) -> None:
    if current is not None and current > _latest():
        raise SchemaError(
            f"the schema version of {names.table('jobs')} is {current}, newer than this pgscheduler knows ({_latest()}): "
            "upgrade pgscheduler on this node; nothing was changed"
        )


def _check_server(connection: Connection[TupleRow]) -> None:
    version = connection.info.server_version
    if version < MINIMUM_SERVER:
        raise SchemaError(
            f"PostgreSQL version {version // 10000} is too old: pgscheduler requires 14 or newer"
        )
    if (
        connection.info.parameter_status("client_encoding") == "SQL_ASCII"
    ):  # psycopg then answers bytes for text
        raise SchemaError(
            "the connection's encoding is SQL_ASCII, in which text is only bytes: create the database with encoding "
            "UTF8, or say client_encoding=utf8 in the DSN"
        )


def _create_schema(connection: Connection[TupleRow], names: Names) -> None:
    # Looked up first: CREATE SCHEMA IF NOT EXISTS asks for the right to create even where it exists.
    if connection.execute("select to_regnamespace(%s)", [names.schema]).fetchone() == (None,):
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(names.schema)))


_BOOKKEEPING = """create table if not exists {migrations} (
    version    integer primary key,
    name       text not null,
    applied_at timestamptz not null default clock_timestamp()
);"""
_REMOVE = """
drop table if exists {jobs}, {runs}, {run_logs}, {nodes}, {templates}, {migrations};
drop function if exists {enqueue};
drop function if exists {now}
"""
_RECORD = "insert into {migrations} (version, name) values (%s, %s)"
_RECORD_LITERAL = "insert into {migrations} (version, name) values ({number}, {name});"
_KNOWN = "exists (select from {migrations} where version >= {number})"
# Nothing but a function can skip statements, whatever program runs the script.
_ONCE = """do $pgscheduler$ begin
if {known} then return; end if;
execute $pgscheduler_sql$

{text}

$pgscheduler_sql$;
{record}
end $pgscheduler$;"""
