"""Connections, and every statement as one method. The only module that talks SQL to PostgreSQL at run time.

Connections are autocommit: one statement is one transaction, and statements sent in one pipeline share an
implicit one, which costs no round trip for BEGIN and COMMIT.
"""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar, cast

import psycopg
from psycopg import Connection, pq
from psycopg.abc import Buffer
from psycopg.adapt import Transformer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, TupleRow, dict_row, tuple_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import set_json_loads
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from . import states
from ._direct import Direct, one_line, rows_of
from ._json import read_json
from ._sql import Names, Statements, positional
from .clock import elapsed, monotonic
from .errors import DatabaseUnavailableError, InvalidValueError, SchemaError
from .states import Claim, Ended, Outcome

__all__ = [
    "ClaimRequest",
    "Refused",
    "Store",
    "bigints",
    "conninfo_of",
    "dicts",
    "is_connection_error",
    "tuples",
    "unavailable",
]

T = TypeVar("T")

#: On a direct connection the planner is told what we know: every statement here walks an index, in its order. A plan
#: made while the tables were empty would else read them whole when they are not; and a bitmap collects and sorts all
#: that is due before the first job is claimed.
_SESSION = """
select set_config('timezone', 'UTC', false), set_config('enable_seqscan', 'off', false),
       set_config('enable_bitmapscan', 'off', false), set_config('enable_hashjoin', 'off', false),
       set_config('enable_mergejoin', 'off', false),
       set_config('jit', 'off', false), set_config('search_path', 'pg_catalog', false),
       set_config('lock_timeout', '5s', false)
where pg_backend_pid() = %s
"""

MANY = 1_000_000  # more than one claim ever brings
#: The types that `_packed` makes arrays of, by their numbers in PostgreSQL.
_ARRAY_OF = {"q": 20, "d": 701}
#: What `insert.sql` answers, but for the hint.
_INSERTED = ("id", "run_at", "scheduled_at", "created_at", "transaction")


@dataclass(slots=True)
class ClaimRequest:
    """What a claim asks for. `marks` by priority say where the last one ended; `everything` ignores them.

    `once` and `often`: how many it may bring of those whose node died under them once, and more often. `until`: only
    what was due by then.
    """

    slots: int
    names: list[str]
    marks: dict[int, datetime]
    everything: bool
    once: int = MANY
    often: int = MANY
    until: datetime | None = None


class Refused(NamedTuple):
    """What a commit did not write, as (id, token) of the claims: those that are lost, and those that are still ours
    while somebody else has their rows locked."""

    lost: list[tuple[int, int]]
    locked: list[tuple[int, int]]


def bigints(values: Iterable[int]) -> str:
    """An array literal: three times cheaper than handing psycopg a list."""
    return "{" + ",".join(map(str, values)) + "}"


def tuples(connection: Connection[Any]) -> psycopg.Cursor[TupleRow]:
    """A cursor whose rows are tuples: a pool or a connection that somebody else made may answer rows of any kind."""
    return psycopg.Cursor(connection, row_factory=tuple_row)


def dicts(connection: Connection[Any]) -> psycopg.Cursor[DictRow]:
    """The same with dictionaries, to be read once: the first row, or all. Times that Python cannot hold are clamped."""
    return _Dicts(connection, row_factory=dict_row)


class _Clamped(TimestamptzLoader):
    """A time, as near as Python's datetime comes to it: `infinity` and the year 300000 are its last moment."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            text = bytes(data)
            past = text.startswith(b"-") or text.endswith(b"BC")
            return datetime.min.replace(tzinfo=UTC) if past else datetime.max.replace(tzinfo=UTC)


class _Dicts(psycopg.Cursor[DictRow]):
    """Psycopg's own loader of times is the fastest; what it refuses is read once more from the same answer."""

    def fetchall(self) -> list[DictRow]:
        try:
            return super().fetchall()
        except psycopg.DataError:
            return self._again()

    def fetchone(self) -> DictRow | None:
        try:
            return super().fetchone()
        except psycopg.DataError:
            return self._again()[0]

    def _again(self) -> list[DictRow]:
        result = self.pgresult
        assert result is not None  # it was read before
        self.adapters.register_loader("timestamptz", _Clamped)
        loader = Transformer(self)
        loader.set_pgresult(result)
        return loader.load_rows(0, result.ntuples, self.row_factory(self))


class Store:
    """One (database, schema, prefix), and the statements bound to it."""

    def __init__(
        self,
        conninfo: str,
        names: Names,
        *,
        application: str = "pgscheduler",
        pool: ConnectionPool[Any] | None = None,
        pool_size: int = 4,
        prepared: bool = True,
        connect_timeout: float = 5.0,
        tcp_user_timeout: float = 10.0,
        listen_conninfo: str | None = None,
    ) -> None:
        self.names = names
        self.sql = Statements(names)
        self._conninfo, self._listen_conninfo = conninfo, listen_conninfo
        self._defaults = (application, connect_timeout, tcp_user_timeout)
        # False also once a connection has led to a pooler: what is prepared or set there may be somebody else's next.
        self._prepared = prepared
        self._connect_timeout = connect_timeout
        self._foreign_pool = pool
        self._pool_size = pool_size
        self._pool: ConnectionPool[Any] | None = None
        self._libpq = Direct(lambda name: positional(self.sql[name]))

    # --- connections ------------------------------------------------------------------------------

    @property
    def conninfo(self) -> str:
        """Where to connect to. A pool is asked each time: it may have a function for passwords that do not last."""
        given = self._conninfo if self._foreign_pool is None else conninfo_of(self._foreign_pool)
        return _with_defaults(given, *self._defaults)

    @property
    def listen_conninfo(self) -> str:
        """Where notifications are heard: past the pooler, if `conninfo` leads through one."""
        if self._listen_conninfo is None:
            return self.conninfo
        return _with_defaults(self._listen_conninfo, *self._defaults)

    def connect(self, conninfo: str | None = None) -> Connection[TupleRow]:
        """A connection of one's own, for a loop. Its statements are prepared at their first use."""
        try:
            connection = Connection.connect(conninfo or self.conninfo, autocommit=True)
        except psycopg.OperationalError as error:
            raise unavailable(error) from error
        try:
            if self._prepared:
                # A pooler gives its clients process ids of its own making.
                pid = connection.info.backend_pid
                direct = connection.execute(_SESSION, [pid], prepare=False).fetchone() is not None
                self._prepared = direct
            connection.prepare_threshold = 0 if self._prepared else None
        except BaseException:
            connection.close()
            raise
        return connection

    def open(self) -> None:
        """Open the pool for verbs and user code; connections are made when needed."""
        if self._foreign_pool is not None or self._pool is not None:
            return
        self._pool = ConnectionPool(
            self.conninfo,
            kwargs={"autocommit": True, "prepare_threshold": self.prepare_threshold},
            min_size=0,
            max_size=self._pool_size,
            open=False,
            name="pgscheduler",
            reconnect_timeout=5,  # its default, 300 s, costs seconds after an outage
            max_idle=60,
        )
        self._pool.open(wait=False)

    @property
    def prepared(self) -> bool:
        """Whether sessions are our own: statements are prepared, and settings last. Known after the first `connect`."""
        return self._prepared

    @property
    def prepare_threshold(self) -> int | None:
        """psycopg's setting for connections on which others' statements run."""
        return 5 if self._prepared else None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close(timeout=1.0)
            self._pool = None

    @property
    def pool(self) -> ConnectionPool[Any]:
        pool = self._foreign_pool or self._pool
        if pool is None:
            raise DatabaseUnavailableError("the scheduler's connection pool is not open")
        return pool

    def using(self, work: Callable[[Connection[Any]], T], *, retry: bool = True) -> T:
        """Run `work` on an autocommit connection of the pool.

        A connection that broke while it lay idle (the server restarted, say) fails the first statement that
        it is given; with `retry` that statement is tried once more on a fresh one. Only for work that may
        run twice.
        """
        deadline = monotonic() + self._connect_timeout
        while True:
            try:
                connection = self.pool.getconn(timeout=max(deadline - monotonic(), 0.1))
            except (PoolTimeout, TooManyRequests, PoolClosed, psycopg.OperationalError) as error:
                raise unavailable(error) from error
            try:
                own_mode, own_threshold = connection.autocommit, connection.prepare_threshold
                if not own_mode:
                    connection.autocommit = True
                if not self._prepared:
                    connection.prepare_threshold = None
                try:
                    return work(connection)
                finally:
                    connection.prepare_threshold = own_threshold
                    if not own_mode and not connection.closed:
                        connection.autocommit = False
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if not connection.broken and not connection.closed:
                    raise refused(error) from error  # disk full, lock timeout, too many connections, …
                if not retry or monotonic() > deadline:
                    raise unavailable(error) from error
                self.pool.check()
            except psycopg.errors.FeatureNotSupported as error:
                # The next version's migration has given a table more columns since this connection prepared a statement
                # that answers whole rows. Nothing was done; on this connection the statement would never work again.
                if error.diag.source_function != "RevalidateCachedQuery" or monotonic() > deadline:
                    raise
                connection.close()
            except psycopg.errors.UndefinedTable as error:
                raise SchemaError(
                    "tables are missing: set create_schema=True, or run `pgscheduler migrate`"
                ) from error
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction) as error:
                raise SchemaError(
                    f"the tables are not as this version needs them, or not ours to use: {error}"
                ) from error
            except psycopg.errors.ReadOnlySqlTransaction as error:
                # A standby, or a primary that became one. The next connection may find the right server.
                connection.close()
                raise refused(error) from error
            finally:
                self.pool.putconn(connection)

    def rows(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[DictRow]:
        """Rows of a read, as dictionaries."""

        def read(connection: Connection[Any]) -> list[DictRow]:
            cursor = dicts(connection)
            set_json_loads(read_json, cursor)
            return cursor.execute(self.sql[statement], parameters).fetchall()

        return self.using(read)

    def row(
        self, statement: str, parameters: Mapping[str, Any] | None = None, *, retry: bool = False
    ) -> DictRow | None:
        """The first row of a statement that may write."""

        def write(connection: Connection[Any]) -> DictRow | None:
            cursor = dicts(connection)
            set_json_loads(read_json, cursor)
            return cursor.execute(self.sql[statement], parameters).fetchone()

        return self.using(write, retry=retry)

    def now(self) -> datetime:
        """The time, by the clock that decides."""
        ((moment,),) = self.using(lambda c: tuples(c).execute(self.sql["now"]).fetchall())
        return cast(datetime, moment).astimezone(UTC)

    def notify(self, connection: Connection[Any], hint: str) -> None:
        self._direct(connection, "notify", {"hint": hint})

    # --- claims and outcomes ------------------------------------------------------------------------

    def claim(
        self, connection: Connection[TupleRow], node: str, request: ClaimRequest, token: int
    ) -> list[Claim]:
        """Claim what is due, under this token."""
        sent = elapsed()
        parameters = _claim_parameters(request, node, token)
        if self._prepared:
            rows = self._libpq.ask(connection, "claim", parameters, prepared=True, times=False)
        else:
            with connection.pipeline():  # one transaction, for which alone the planner can be told
                connection.execute("select set_config('enable_bitmapscan', 'off', true)")
                found = connection.execute(self.sql["claim"], parameters, binary=True)
            assert found.pgresult is not None
            rows = rows_of(connection, found.pgresult, times=False)
        received = monotonic()
        return [Claim(row, token, sent, received) for row in rows]

    def complete(
        self, connection: Connection[TupleRow], completed: Sequence[tuple[Claim, float, float]]
    ) -> Refused:
        """Record plain completions, as (claim, started, ended): no job of them twice."""
        completed = sorted(completed, key=_job_id)  # the statement finds a job's place by binary search
        parameters = {
            "ids": _packed("q", [c.id for c, _, _ in completed]),
            "tokens": _packed("q", [c.token for c, _, _ in completed]),
            "started": _packed("d", [started for _, started, _ in completed]),
            "ended": _packed("d", [ended for _, _, ended in completed]),
        }
        try:
            ((count, accepted),) = self._direct(connection, "complete", parameters)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            # Somebody keeps a row of these locked. Nothing is written yet; this passes over that one.
            ends = [states.ended(c, Outcome.COMPLETED, started, ended) for c, started, ended in completed]
            return self.finish(connection, ends)
        if count == len(completed):
            return Refused([], [])
        return _refused([(c.id, c.token) for c, _, _ in completed], accepted, None)

    def finish(
        self,
        connection: Connection[TupleRow],
        finished: Sequence[Ended],
        notes: Sequence[Mapping[str, Any]] = (),
    ) -> Refused:
        """Record all other outcomes, and what runs said, in one transaction."""
        statements: dict[str, dict[str, str]] = {}
        if finished:
            statements["finish"] = {"outcomes": dump([e.to_json() for e in finished])}
        if notes:
            statements["note"] = {"notes": dump(notes)}
        if len(statements) == 1:
            ((name, parameters),) = statements.items()
            answers = {name: self._direct(connection, name, parameters)}
        else:
            with connection.pipeline():
                cursors = {
                    name: connection.cursor(binary=True).execute(self.sql[name], parameters)
                    for name, parameters in statements.items()
                }
            answers = {name: cursor.fetchall() for name, cursor in cursors.items()}
        asked = {
            "finish": [(e.claim.id, e.claim.token) for e in finished],
            "note": [(note["id"], note["token"]) for note in notes],
        }
        parts = [_refused(asked[name], *answer) for name, (answer,) in answers.items()]
        return Refused([c for part in parts for c in part.lost], [c for part in parts for c in part.locked])

    def _direct(
        self, connection: Connection[TupleRow], name: str, parameters: Mapping[str, Any]
    ) -> list[tuple[Any, ...]]:
        return self._libpq.ask(connection, name, parameters, prepared=self._prepared)

    def insert(self, connection: Connection[Any], parameters: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """`insert.sql` for a fifth of what psycopg's cursors cost, where the connection is our own."""
        if not self._prepared or self._foreign_pool is not None:
            return dicts(connection).execute(self.sql["insert"], parameters).fetchone()
        rows = self._libpq.ask_patiently(connection, "insert", parameters)
        return dict(zip(_INSERTED, rows[0], strict=False)) if rows else None

    def prepare_outcomes(self, connection: Connection[Any]) -> None:
        """Have the statements that record outcomes ready, before the first of them is needed."""
        if self._prepared:
            self._libpq.prepare_outcomes(connection)

    def next_due(
        self, connection: Connection[TupleRow], since: datetime | None
    ) -> tuple[float | None, datetime]:
        """Seconds until the next pending job of any name that is due after `since`, None when there is none;
        and the time, for the next such question."""
        row = connection.execute(self.sql["next_due"], {"since": since}).fetchone()
        assert row is not None
        return row[0], row[1]

    def heartbeat(
        self, connection: Connection[TupleRow], node: Mapping[str, Any], claims: Sequence[Claim]
    ) -> dict[int, tuple[int, bool, bool]]:
        """Say that this node and its claims are alive; of those still its own: (token, cancel requested, renewed)
        by id. What somebody holds locked is its own and not renewed."""
        alive = None
        with connection.pipeline():
            connection.execute("select set_config('synchronous_commit', 'off', true)")
            connection.execute(self.sql["node_beat"], node)
            if claims:
                alive = connection.execute(
                    self.sql["heartbeat"],
                    {"ids": bigints(c.id for c in claims), "tokens": bigints(c.token for c in claims)},
                )
        if alive is None:
            return {}
        return {id_: (token, cancel, renewed) for id_, token, cancel, renewed in alive.fetchall()}

    def written(
        self, connection: Connection[TupleRow], claims: Sequence[Claim]
    ) -> dict[tuple[int, int], tuple[str | None, bool]]:
        """After a lost answer: (outcome in history, still ours) by (id, token)."""
        parameters = {"ids": bigints(c.id for c in claims), "tokens": bigints(c.token for c in claims)}
        rows = connection.execute(self.sql["written"], parameters).fetchall()
        return {(id_, token): (outcome, ours) for id_, token, outcome, ours in rows}


def new_token() -> int:
    """63 random bits. Not a counter: counters repeat after a crash with asynchronous commit, and after a failover."""
    return secrets.randbits(63)


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def is_connection_error(error: BaseException) -> bool:
    """True if the connection is gone, so that nobody knows what the server did."""
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate[:2] in ("08", "57") or error.sqlstate == "25006"
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | ConnectionError | OSError)


def unavailable(error: Exception) -> DatabaseUnavailableError:
    """Our own error for "cannot be reached". libpq's texts name host and port, never the password."""
    return DatabaseUnavailableError(f"cannot connect to PostgreSQL: {one_line(error)}")


def refused(error: Exception) -> DatabaseUnavailableError:
    """PostgreSQL answered, and cannot do it now; nothing was stored."""
    return DatabaseUnavailableError(f"PostgreSQL refused: {one_line(error)}")


def _refused(
    asked: Sequence[tuple[int, int]],
    accepted: Sequence[Sequence[int]] | None,
    ours: Sequence[Sequence[int]] | None,
) -> Refused:
    # By claim, not by job: an old claim of a job and its successor may be asked for together.
    done, held = ({(id_, token) for id_, token in claims or ()} for claims in (accepted, ours))
    left = [claim for claim in asked if claim not in done]
    return Refused([c for c in left if c not in held], [c for c in left if c in held])


def _job_id(outcome: tuple[Claim, float, float]) -> int:
    return outcome[0].id


def _packed(kind: str, values: Sequence[float]) -> bytes:
    """An array of bigint ("q") or double precision ("d") in PostgreSQL's binary format, at a third of the price of text:
    one dimension, no nulls, the element's type, how many, numbered from 1; then each with its length in bytes."""
    fields: list[float] = [8] * (2 * len(values))
    fields[1::2] = values
    return struct.pack(f"!5i{f'i{kind}' * len(values)}", 1, 0, _ARRAY_OF[kind], len(values), 1, *fields)


def _claim_parameters(request: ClaimRequest, node: str, token: int) -> dict[str, Any]:
    return {
        "everything": request.everything,
        "priorities": bigints(request.marks),
        "marks": list(request.marks.values()),
        "names": request.names,
        "slots": request.slots,
        "once": request.once,
        "often": request.often,
        "until": request.until,
        "token": token,
        "node": node,
    }


def conninfo_of(pool: ConnectionPool[Any]) -> str:
    """Where a pool connects to: its `conninfo`, and what its `kwargs` say over it. Either may be a function."""
    conninfo = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
    kwargs = pool.kwargs() if callable(pool.kwargs) else pool.kwargs
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}  # the others are psycopg's
    try:
        return make_conninfo(conninfo or "", **{k: v for k, v in (kwargs or {}).items() if k in known})
    except psycopg.ProgrammingError:
        # libpq quotes what it could not read: that may be the half of a password.
        raise InvalidValueError("pool", "(not shown)", "has a conninfo that libpq cannot read") from None


def _with_defaults(conninfo: str, application: str, connect_timeout: float, tcp_user_timeout: float) -> str:
    """Add what a scheduler's connection must have and the DSN does not say.

    Keepalives alone leave a silently cut connection hanging for 40 s and more; tcp_user_timeout ends it.
    """
    given = conninfo_to_dict(conninfo)
    wanted: dict[str, Any] = {
        "application_name": application[:63],
        "connect_timeout": max(int(connect_timeout), 2),  # libpq counts whole seconds and takes 1 for 2
        "tcp_user_timeout": int(tcp_user_timeout * 1000),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    if "," in f"{given.get('host') or given.get('hostaddr') or ''}":
        wanted["target_session_attrs"] = "read-write"  # of several servers the one that is not a standby
    return make_conninfo(conninfo, **{k: v for k, v in wanted.items() if k not in given})
