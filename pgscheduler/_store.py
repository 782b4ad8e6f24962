"""Connections, and every statement as one method. The only module that talks SQL to PostgreSQL at run time.

Connections are autocommit: one statement is one transaction, and statements sent in one pipeline share an
implicit one, which costs no round trip for BEGIN and COMMIT.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, TupleRow, dict_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from ._sql import Names, Statements
from .clock import elapsed, monotonic
from .errors import DatabaseUnavailableError, SchemaError
from .states import Claim, Ended

__all__ = ["ClaimRequest", "Cycle", "Store", "bigints"]

T = TypeVar("T")

#: On a direct connection the planner is told what we know: every statement here walks an index. A generic plan
#: made while the tables were empty would else scan them whole when they are not.
_SESSION = """
select set_config('timezone', 'UTC', false), set_config('enable_seqscan', 'off', false),
       set_config('enable_hashjoin', 'off', false), set_config('enable_mergejoin', 'off', false),
       set_config('jit', 'off', false), set_config('search_path', 'pg_catalog', false),
       set_config('lock_timeout', '5s', false)
"""


@dataclass(slots=True)
class ClaimRequest:
    """What a claim asks for. `marks` by priority say where the last one ended; `everything` ignores them."""

    slots: int
    names: list[str]
    marks: dict[int, datetime]
    everything: bool


@dataclass(slots=True)
class Cycle:
    """The answer of one cycle."""

    refused: list[tuple[int, int]]  # (id, token) of outcomes and notes that lost their claim
    claims: list[Claim]


def bigints(values: Iterable[int]) -> str:
    """An array literal: three times cheaper than handing psycopg a list."""
    return "{" + ",".join(map(str, values)) + "}"


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
    ) -> None:
        self.names = names
        self.sql = Statements(names)
        self.conninfo = _with_defaults(conninfo, application, connect_timeout, tcp_user_timeout)
        self._prepared = prepared
        self._connect_timeout = connect_timeout
        self._foreign_pool = pool
        self._pool_size = pool_size
        self._pool: ConnectionPool[Any] | None = None

    # --- connections ------------------------------------------------------------------------------

    def connect(self) -> Connection[TupleRow]:
        """A connection of one's own, for a loop. Its statements are prepared at their first use."""
        try:
            connection = Connection.connect(self.conninfo, autocommit=True)
        except psycopg.OperationalError as error:
            raise unavailable(error) from error
        try:
            connection.prepare_threshold = 0 if self._prepared else None
            if self._prepared:
                connection.execute(_SESSION)
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
                own_mode = connection.autocommit
                if not own_mode:
                    connection.autocommit = True
                try:
                    return work(connection)
                finally:
                    if not own_mode and not connection.closed:
                        connection.autocommit = False
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if not connection.broken and not connection.closed:
                    raise refused(error) from error  # disk full, lock timeout, too many connections, …
                if not retry or monotonic() > deadline:
                    raise unavailable(error) from error
                self.pool.check()
            except psycopg.errors.UndefinedTable as error:
                raise SchemaError(
                    "tables are missing: set create_schema=True, or run `pgscheduler migrate`"
                ) from error
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction) as error:
                raise SchemaError(
                    f"the tables are not as this version needs them, or not ours to use: {error}"
                ) from error
            except psycopg.errors.ReadOnlySqlTransaction as error:
                raise refused(error) from error
            finally:
                self.pool.putconn(connection)

    def rows(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[DictRow]:
        """Rows of a read, as dictionaries."""

        def read(connection: Connection[Any]) -> list[DictRow]:
            with connection.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(self.sql[statement], parameters).fetchall()

        return self.using(read)

    def row(
        self, statement: str, parameters: Mapping[str, Any] | None = None, *, retry: bool = False
    ) -> DictRow | None:
        """The first row of a statement that may write."""

        def write(connection: Connection[Any]) -> DictRow | None:
            with connection.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(self.sql[statement], parameters).fetchone()

        return self.using(write, retry=retry)

    def now(self) -> datetime:
        """The time, by the clock that decides."""
        moment: datetime = self.using(lambda c: c.execute(self.sql["now"]).fetchone()[0])  # type: ignore[index]
        return moment.astimezone(UTC)

    def notify(self, connection: Connection[Any], hint: str) -> None:
        connection.execute(self.sql["notify"], {"hint": hint})

    # --- the cycle --------------------------------------------------------------------------------

    def cycle(
        self,
        connection: Connection[TupleRow],
        node: str,
        completed: Sequence[tuple[Claim, float, float]],
        finished: Sequence[Ended],
        notes: Sequence[Mapping[str, Any]],
        request: ClaimRequest | None,
        token: int,
    ) -> Cycle:
        """Record outcomes and claim, in one transaction and one round trip."""
        done = final = noted = taken = None
        sent = elapsed()
        with connection.pipeline():
            if not completed and not finished:
                # A claim or a note that a crash forgets only means that the job runs again, or says it again.
                connection.execute("select set_config('synchronous_commit', 'off', true)")
            if completed:
                done = connection.execute(self.sql["complete"], _completed_parameters(completed))
            if finished:
                final = connection.execute(
                    self.sql["finish"], {"outcomes": dump([e.to_json() for e in finished])}
                )
            if notes:
                noted = connection.execute(self.sql["note"], {"notes": dump(notes)})
            if request is not None:
                taken = connection.cursor(binary=True).execute(
                    self.sql["claim"], _claim_parameters(request, node, token)
                )
        received = monotonic()
        refused: list[tuple[int, int]] = []
        if done is not None:
            count, accepted = done.fetchone()  # type: ignore[misc]
            if count < len(completed):
                refused += _missing(((c.id, c.token) for c, _, _ in completed), accepted)
        if final is not None:
            (accepted,) = final.fetchone()  # type: ignore[misc]
            refused += _missing(((e.claim.id, e.claim.token) for e in finished), accepted)
        if noted is not None:
            (accepted,) = noted.fetchone()  # type: ignore[misc]
            refused += _missing(((n["id"], n["token"]) for n in notes), accepted)
        claims = [] if taken is None else [Claim(row, token, sent, received) for row in taken.fetchall()]
        return Cycle(refused, claims)

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
    ) -> dict[int, tuple[int, bool]]:
        """Say that this node and its claims are alive; (token, cancel requested) by id of those still its own."""
        alive = None
        with connection.pipeline():
            connection.execute("select set_config('synchronous_commit', 'off', true)")
            connection.execute(self.sql["node_beat"], node)
            if claims:
                alive = connection.execute(
                    self.sql["heartbeat"],
                    {"ids": bigints(c.id for c in claims), "tokens": bigints(c.token for c in claims)},
                )
        return {} if alive is None else {id_: (token, cancel) for id_, token, cancel in alive.fetchall()}

    def written(self, connection: Connection[TupleRow], claims: Sequence[Claim]) -> set[int]:
        """Ids of those whose outcome is in history, although the answer of the write was lost."""
        parameters = {"ids": bigints(c.id for c in claims), "tokens": bigints(c.token for c in claims)}
        return {row[0] for row in connection.execute(self.sql["written"], parameters).fetchall()}


def new_token() -> int:
    """63 random bits. Not a counter: counters repeat after a crash with asynchronous commit, and after a failover."""
    return secrets.randbits(63)


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def unavailable(error: Exception) -> DatabaseUnavailableError:
    """Our own error for "cannot be reached". libpq's texts name host and port, never the password."""
    return DatabaseUnavailableError(
        f"cannot connect to PostgreSQL (host unreachable or refused): {_line(error)}"
    )


def refused(error: Exception) -> DatabaseUnavailableError:
    """PostgreSQL answered, and cannot do it now; nothing was stored."""
    return DatabaseUnavailableError(f"PostgreSQL refused: {_line(error)}")


def _line(error: Exception) -> str:
    """libpq's text, which may have several lines, as one."""
    return " ".join(str(error).split())[:400]


def _missing(
    asked: Iterable[tuple[int, int]], accepted: Sequence[Sequence[int]] | None
) -> list[tuple[int, int]]:
    # By claim, not by job: an old claim of a job and its successor may be asked for together.
    known = {(id_, token) for id_, token in accepted or ()}
    return [claim for claim in asked if claim not in known]


def _job_id(outcome: tuple[Claim, float, float]) -> int:
    return outcome[0].id


def _completed_parameters(completed: Sequence[tuple[Claim, float, float]]) -> dict[str, str]:
    completed = sorted(completed, key=_job_id)
    return {
        "ids": bigints(c.id for c, _, _ in completed),
        "tokens": bigints(c.token for c, _, _ in completed),
        "started": "{" + ",".join([f"{s:.6f}" for _, s, _ in completed]) + "}",
        "ended": "{" + ",".join([f"{e:.6f}" for _, _, e in completed]) + "}",
    }


def _claim_parameters(request: ClaimRequest, node: str, token: int) -> dict[str, Any]:
    return {
        "everything": request.everything,
        "priorities": bigints(request.marks),
        "marks": list(request.marks.values()),
        "names": request.names,
        "slots": request.slots,
        "token": token,
        "node": node,
    }


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
    return make_conninfo(conninfo, **{k: v for k, v in wanted.items() if k not in given})
