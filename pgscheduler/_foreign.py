"""Statements on a connection that the caller owns: psycopg (sync and async), SQLAlchemy, Django.

The job becomes part of the caller's transaction. Nothing here commits, and nothing is retried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from .errors import InvalidTypeError, SchedulerStateError

__all__ = ["execute", "execute_async", "is_async", "require_usable"]

Row = Mapping[str, Any]

CLOSED = "connection is closed"
FAILED = "connection is in a failed transaction: roll it back first"


def is_async(connection: Any) -> bool:
    """Does a statement on it have to be awaited?"""
    return isinstance(connection, psycopg.AsyncConnection) or type(connection).__name__ in (
        "AsyncSession",
        "AsyncConnection",
    )


def execute(connection: Any, statement: str, parameters: Mapping[str, Any]) -> Row | None:
    """The first row of `statement`, as a mapping."""
    if _is_session(connection):
        with _words_of_sessions():
            connection = connection.connection()
    require_usable(connection)
    if isinstance(connection, psycopg.Connection):
        with connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, parameters).fetchone()
    if hasattr(connection, "exec_driver_sql"):
        return connection.exec_driver_sql(statement, dict(parameters)).mappings().first()  # type: ignore[no-any-return]
    if _is_djangos(connection):
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
    if type(connection).__name__ == "AsyncSession":
        with _words_of_sessions():
            connection = await connection.connection()
    require_usable(connection)
    if isinstance(connection, psycopg.AsyncConnection):
        async with connection.cursor(row_factory=dict_row) as cursor:
            return await (await cursor.execute(statement, parameters)).fetchone()
    result = await connection.exec_driver_sql(statement, dict(parameters))
    return result.mappings().first()  # type: ignore[no-any-return]


def require_usable(connection: Any) -> None:
    """Raise SchedulerStateError if a statement cannot be sent: the connection is closed, or its transaction has failed.

    Asked beforehand, because each library has its own error for it, and says it in its own words.
    """
    driver = connection
    if hasattr(connection, "exec_driver_sql"):
        driver = _under_sqlalchemy(connection)
    elif _is_djangos(connection):
        driver = _under_django(connection)
    if getattr(driver, "closed", False):
        raise SchedulerStateError(CLOSED)
    if getattr(getattr(driver, "info", None), "transaction_status", None) == TransactionStatus.INERROR:
        raise SchedulerStateError(FAILED)


def _under_sqlalchemy(connection: Any) -> Any:
    """The driver's connection; None if it is to be made anew."""
    if connection.closed:
        raise SchedulerStateError(CLOSED)
    nested = connection.get_nested_transaction()
    transactions = [each for each in (connection.get_transaction(), nested) if each is not None]
    if not all(each.is_active for each in transactions) or (transactions and connection.invalidated):
        raise SchedulerStateError(FAILED)
    if connection.invalidated:
        return None
    return getattr(connection, "sync_connection", connection).connection.driver_connection


def _under_django(connection: Any) -> Any:
    """The same of Django's."""
    if connection.connection is None and connection.in_atomic_block:
        raise SchedulerStateError(CLOSED)
    if connection.needs_rollback:
        raise SchedulerStateError(FAILED)
    connection.close_if_health_check_failed()  # as its cursor will do first
    return connection.connection


def _is_djangos(connection: Any) -> bool:
    return hasattr(connection, "cursor") and getattr(connection, "vendor", None) == "postgresql"


def _is_session(connection: Any) -> bool:
    """SQLAlchemy's Session or scoped_session?"""
    return (
        not hasattr(connection, "exec_driver_sql")
        and callable(getattr(connection, "connection", None))
        and hasattr(connection, "execute")
    )


@contextlib.contextmanager
def _words_of_sessions() -> Iterator[None]:
    """Our words for why a Session gives no connection: a flush has failed, or it, or what it is bound to, is closed."""
    try:
        yield
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "PendingRollbackError" in kinds:
            raise SchedulerStateError(FAILED) from error
        if "InvalidRequestError" in kinds and "closed" in str(error):
            raise SchedulerStateError(CLOSED) from error
        raise
