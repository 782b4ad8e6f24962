"""Statements on a connection that the caller owns: psycopg (sync and async), SQLAlchemy, Django.

The job becomes part of the caller's transaction. Nothing here commits, and nothing is retried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from .errors import InvalidTypeError, SchedulerStateError

__all__ = ["execute", "execute_async", "is_async"]

Row = Mapping[str, Any]


def is_async(connection: Any) -> bool:
    """Does a statement on it have to be awaited?"""
    return isinstance(connection, psycopg.AsyncConnection) or type(connection).__name__ in (
        "AsyncSession",
        "AsyncConnection",
    )


def execute(connection: Any, statement: str, parameters: Mapping[str, Any]) -> Row | None:
    """The first row of `statement`, as a mapping."""
    if isinstance(connection, psycopg.Connection):
        _usable(connection)
        with connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, parameters).fetchone()
    connection = _sqlalchemy_connection(connection)
    if hasattr(connection, "exec_driver_sql"):
        return connection.exec_driver_sql(statement, dict(parameters)).mappings().first()  # type: ignore[no-any-return]
    if hasattr(connection, "cursor") and getattr(connection, "vendor", None) == "postgresql":  # Django
        with connection.cursor() as cursor:
            cursor.execute(statement, dict(parameters))
            row = cursor.fetchone()
            return None if row is None else dict(zip((c[0] for c in cursor.description), row, strict=True))
    raise InvalidTypeError(
        "connection",
        connection,
        "must be a psycopg Connection or AsyncConnection, a SQLAlchemy Connection or Session, or Django's",
    )


async def execute_async(connection: Any, statement: str, parameters: Mapping[str, Any]) -> Row | None:
    """The same, awaited."""
    if isinstance(connection, psycopg.AsyncConnection):
        _usable(connection)
        async with connection.cursor(row_factory=dict_row) as cursor:
            return await (await cursor.execute(statement, parameters)).fetchone()
    if type(connection).__name__ == "AsyncSession":
        connection = await connection.connection()
    result = await connection.exec_driver_sql(statement, dict(parameters))
    return result.mappings().first()  # type: ignore[no-any-return]


def _usable(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    if connection.closed:
        raise SchedulerStateError("connection is closed")
    if connection.info.transaction_status == TransactionStatus.INERROR:
        raise SchedulerStateError("connection is in a failed transaction: roll it back first")


def _sqlalchemy_connection(connection: Any) -> Any:
    """A Session's or scoped_session's Connection; anything else as it is."""
    if (
        not hasattr(connection, "exec_driver_sql")
        and callable(getattr(connection, "connection", None))
        and hasattr(connection, "execute")
    ):
        return connection.connection()
    return connection
