"""Bring the schema to this version: numbered `.sql` files, under one advisory lock, or only printed."""

from __future__ import annotations

import psycopg
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from ._sql import Names, migrations
from .errors import SchemaError

__all__ = ["check", "migrate", "script"]

LOCK_MIGRATION = 0
MINIMUM_SERVER = 140000


def migrate(connection: Connection[TupleRow], names: Names) -> int:
    """Apply what is missing; returns how many migrations that was. Safe when eight nodes start at once.

    One transaction: either the schema is as this version needs it, or nothing changed.
    """
    _check_server(connection)
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
        raise SchemaError(f"the schema holds an object of the same name that is not ours: {error}") from error
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
    """The migrations after `current` as one SQL script, for a DBA."""
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
            parts += [names.render(text), record.as_string(None)]
    return "\n\n".join([*parts, "commit;"]) + "\n"


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


def _create_schema(connection: Connection[TupleRow], names: Names) -> None:
    # Looked up first: CREATE SCHEMA IF NOT EXISTS asks for the right to create even where it exists.
    if connection.execute("select to_regnamespace(%s)", [names.schema]).fetchone() == (None,):
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(names.schema)))


_BOOKKEEPING = """create table if not exists {migrations} (
    version    integer primary key,
    name       text not null,
    applied_at timestamptz not null default clock_timestamp()
);"""
_RECORD = "insert into {migrations} (version, name) values (%s, %s)"
_RECORD_LITERAL = "insert into {migrations} (version, name) values ({number}, {name});"
