"""`ctx.transaction()`: the user's own SQL and the run's completion in one commit, under the claim's token."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import psycopg

from ._context import RunContext
from ._json import dump_json
from ._store import Store, unavailable
from .errors import RunLostError, SchedulerStateError

__all__ = ["RunTransaction", "assert_owner"]


class RunTransaction:
    """A context manager, sync and async. Holds a connection only while its block runs."""

    def __init__(self, store: Store, context: RunContext, result: Any) -> None:
        self._store = store
        self._context = context
        self._result = None if result is None else dump_json("result", result, 1 << 20)
        self._connection: psycopg.Connection[Any] | None = None
        self._async: psycopg.AsyncConnection[Any] | None = None

    def __enter__(self) -> psycopg.Connection[Any]:
        self._refuse_second()
        self._context.check()
        # A connection of its own: a pool shared with other jobs could be exhausted by them for ever.
        try:
            self._connection = psycopg.Connection.connect(
                self._store.conninfo, prepare_threshold=self._store.prepare_threshold
            )
        except psycopg.OperationalError as error:
            raise unavailable(error) from error
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        try:
            if kind is not None:
                return
            found = connection.execute(self._store.sql["mark_completed"], self._parameters()).fetchone()
            self._require(found)
            connection.commit()
            self._context._completed = True
        finally:
            connection.close()  # rolls back what is not committed

    async def __aenter__(self) -> psycopg.AsyncConnection[Any]:
        self._refuse_second()
        self._context.check()
        try:
            self._async = await psycopg.AsyncConnection.connect(
                self._store.conninfo, prepare_threshold=self._store.prepare_threshold
            )
        except psycopg.OperationalError as error:
            raise unavailable(error) from error
        return self._async

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, self._async = self._async, None
        assert connection is not None
        try:
            if kind is not None:
                return
            cursor = await connection.execute(self._store.sql["mark_completed"], self._parameters())
            self._require(await cursor.fetchone())
            await connection.commit()
            self._context._completed = True
        finally:
            await connection.close()

    def _parameters(self) -> dict[str, Any]:
        context = self._context
        return {"id": context.job_id, "token": context.token, "result": self._result}

    def _require(self, found: Any) -> None:
        if found is None:
            self._context._stop("lost")
            raise RunLostError(self._context.job_id)

    def _refuse_second(self) -> None:
        if self._context._completed:
            raise SchedulerStateError("ctx.transaction() completed this run already; it works once per run")


def assert_owner(store: Store, context: RunContext, connection: Any) -> None:
    """Lock the claim on the caller's connection (psycopg's, or anything with `execute`), or raise."""
    parameters = {"id": context.job_id, "token": context.token}
    if hasattr(connection, "exec_driver_sql"):  # SQLAlchemy
        found = connection.exec_driver_sql(store.sql["assert_owner"], parameters).fetchone()
    else:
        found = connection.execute(store.sql["assert_owner"], parameters).fetchone()
    if found is None:
        context._stop("lost")
        raise RunLostError(context.job_id)
