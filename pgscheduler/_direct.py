"""The statements that every job needs, said to libpq itself: prepared under our own names, answered without cursors.

Their connections are psycopg's too, and either it or the user's code may drop what we have prepared there: psycopg says
DEALLOCATE ALL after a rollback, somebody else DISCARD ALL. Such a statement is prepared and sent once more.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg import Connection, postgres, pq
from psycopg.adapt import Transformer

__all__ = ["Direct", "one_line", "rows_of"]

#: Prepared all at once: an outcome shall need one round trip, also the first one.
OUTCOMES = ("complete", "finish", "note")
UNKNOWN_STATEMENT = b"26000"  # SQLSTATE: no such name is prepared in this session; nothing was executed

BIGINT, TIMESTAMPTZ = (postgres.types[name].oid for name in ("bigint", "timestamptz"))

Rows = list[tuple[Any, ...]]


class Direct:
    """Statements on connections that are at rest and autocommit. `text` gives one by its name, as `positional` does."""

    def __init__(self, text: Callable[[str], tuple[bytes, tuple[str, ...]]]) -> None:
        self._text = text
        # Which statements are prepared on which connection, as far as we know.
        self._ready: WeakKeyDictionary[Connection[Any], set[str]] = WeakKeyDictionary()

    def ask(
        self,
        connection: Connection[Any],
        name: str,
        parameters: Mapping[str, Any],
        *,
        prepared: bool,
        times: bool = True,
    ) -> Rows:
        """One statement, sent and answered in one call into libpq that does not hold the GIL; `times` as in `rows_of`.

        psycopg's own way comes back to Python for every piece of the answer. Under load the slots hold the GIL, and
        each coming back then costs up to 5 ms of waiting for it, which took as long as the database's own work.
        """
        raw = connection.pgconn
        statement, order = self._text(name)
        given = [parameters[each] for each in order]
        formats = [pq.Format.BINARY if isinstance(value, bytes) else pq.Format.TEXT for value in given]
        values = _as_texts(given)

        def send(title: bytes) -> pq.abc.PGresult:
            return raw.exec_prepared(title, values, formats, pq.Format.BINARY)

        if prepared:
            result = self._send(connection, name, send)
        else:
            result = raw.exec_params(statement, values, None, formats, pq.Format.BINARY)
        return rows_of(connection, result, times=times)

    def ask_patiently(self, connection: Connection[Any], name: str, parameters: Mapping[str, Any]) -> Rows:
        """The same for a caller's thread: it waits in Python, not in libpq, so that Ctrl-C ends it."""
        raw = connection.pgconn
        _, order = self._text(name)
        values = _as_texts(parameters[each] for each in order)

        def send(title: bytes) -> pq.abc.PGresult:
            raw.send_query_prepared(title, values, result_format=pq.Format.BINARY)
            return _answer(raw)

        return rows_of(connection, self._send(connection, name, send))

    def prepare_outcomes(self, connection: Connection[Any]) -> None:
        """Have the statements that record outcomes ready, before the first of them is needed."""
        self._prepare(connection, OUTCOMES[0])

    def _send(
        self, connection: Connection[Any], name: str, send: Callable[[bytes], pq.abc.PGresult]
    ) -> pq.abc.PGresult:
        """Send a statement under the name that it is prepared under."""
        self._prepare(connection, name)
        result = send(_title(name))
        if (
            result.status == pq.ExecStatus.FATAL_ERROR
            and result.error_field(pq.DiagnosticField.SQLSTATE) == UNKNOWN_STATEMENT
        ):
            self._ready[connection].discard(
                name
            )  # the others are asked for themselves: perhaps they are still there
            self._prepare(connection, name)
            result = send(_title(name))
        return result

    def _prepare(self, connection: Connection[Any], name: str) -> None:
        """Prepare a statement under our own name, unless it is."""
        ready = self._ready.get(connection)
        if ready is None:
            ready = self._ready[connection] = set()
        if name in ready:
            return
        for each in OUTCOMES if name in OUTCOMES else (name,):
            if each not in ready:
                text, _ = self._text(each)
                _require(connection, connection.pgconn.prepare(_title(each), text), pq.ExecStatus.COMMAND_OK)
                ready.add(each)


def one_line(error: Exception) -> str:
    """libpq's text, which may have several lines, as one."""
    return " ".join(str(error).split())[:400]


def _title(name: str) -> bytes:
    """Under which name a statement is prepared; psycopg's own begin with an underscore."""
    return b"pgscheduler_" + name.encode()


def _require(connection: Connection[Any], result: pq.abc.PGresult, status: pq.ExecStatus) -> None:
    """Raise what psycopg would raise, unless the server answered as expected."""
    if result.status == status:
        return
    error = psycopg.errors.error_from_result(result, encoding=connection.info.encoding)
    if error.sqlstate is None:  # libpq's own word: the connection is gone
        raise psycopg.OperationalError(one_line(error)) from None
    raise error


def _answer(raw: pq.abc.PGconn) -> pq.abc.PGresult:
    """The answer to what was sent; read to its end, so that the connection is at rest after an error too."""
    results = []
    while (result := _next_result(raw)) is not None:
        results.append(result)
    return results[0]


def _next_result(raw: pq.abc.PGconn) -> pq.abc.PGresult | None:
    """The next answer to what was sent, None after the last one; waits for the socket, where a signal can interrupt."""
    poll = select.poll()
    poll.register(raw.socket, select.POLLIN)
    while raw.flush():
        poll.modify(raw.socket, select.POLLIN | select.POLLOUT)
        poll.poll()
        raw.consume_input()
        poll.modify(raw.socket, select.POLLIN)
    while raw.is_busy():
        poll.poll()
        raw.consume_input()
    return raw.get_result()


def rows_of(connection: Connection[Any], result: pq.abc.PGresult, *, times: bool = True) -> Rows:
    """What a binary answer holds; without `times` the moments in it as PostgreSQL has them: whole microseconds since
    2000, UTC."""
    _require(connection, result, pq.ExecStatus.TUPLES_OK)
    loader = Transformer(connection)
    if times:
        loader.set_pgresult(result)
    else:
        loader.set_pgresult(result, set_loaders=False)
        kinds = (result.ftype(column) for column in range(result.nfields))
        loader.set_loader_types([BIGINT if kind == TIMESTAMPTZ else kind for kind in kinds], pq.Format.BINARY)
    return loader.load_rows(0, result.ntuples, tuple)


def _as_texts(values: Iterable[Any]) -> list[bytes]:
    # psycopg takes None for NULL, as its own cursors give it; its annotation leaves that out.
    return cast("list[bytes]", [_as_text(value) for value in values])


def _as_text(value: Any) -> bytes | None:
    """A parameter in PostgreSQL's text format, whatever its type there; bytes are in its binary format already."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return value  # an array in the binary format
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if isinstance(value, list):
        return b"{" + b",".join(_quoted(each) for each in value) + b"}"
    return str(value).encode()


def _quoted(value: Any) -> bytes:
    """An array's element; datetimes as psycopg's own text would be, in ISO 8601."""
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return b'"' + text.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'
