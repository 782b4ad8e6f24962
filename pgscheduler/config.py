"""Every setting of a scheduler, its default and the reason for it, checked once and together."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from . import _check as check
from . import _settings
from ._store import conninfo_of
from .errors import InvalidTypeError, InvalidValueError

__all__ = ["SchedulerConfig"]

_PREFIX = re.compile(r"[a-z_][a-z0-9_]*\Z")
_MAX_PREFIX = 40  # characters; the longest name we append has 20, and PostgreSQL cuts at 63 without a word
_MAX_SLOTS = 10_000
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]{0,40})://")
_UNKNOWN_PARAMETER = re.compile(r'invalid (?:URI query parameter: |connection option )"[a-z_]{1,40}"')

_DURATIONS = (
    "job_check_interval",
    "orphaned_job_timeout",
    "heartbeat_interval",
    "no_heartbeat_timeout",
    "failed_and_completed_one_time_job_interval",
    "history_retention",
    "notification_debounce_interval",
    "connect_timeout",
)


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How one scheduler behaves. Frozen: what was checked is what runs.

    Durations are `timedelta`; a number is taken as seconds. Exactly one of `dsn` and `pool` says where the
    database is. `SchedulerConfig.from_env()` reads variables and a TOML file.
    """

    #: A libpq URL, keyword string, `service=…` or several hosts. Never shown in a log or a repr.
    dsn: str | None = field(default=None, repr=False)
    #: Your own `psycopg_pool.ConnectionPool`, used for short statements. The dispatcher, the recorder, the heartbeat, the
    #: listener, the notifier and each open `ctx.transaction()` still have a connection each, by the pool's conninfo and
    #: what its kwargs say of the connection; where either is a function, it is called for each.
    pool: ConnectionPool[Any] | None = field(default=None, repr=False)
    #: Connections for short statements, when `dsn` is given; opened as needed.
    pool_size: int = 4
    #: Runs of all kinds at the same time on this node, a hard limit.
    max_concurrent_jobs: int = 10
    #: 60 s: only a fallback. Nodes wake at the next due time and on notification.
    job_check_interval: timedelta = timedelta(seconds=60)
    #: 14 days: a name that no living node has registered for so long belongs to code that is gone.
    orphaned_job_timeout: timedelta = timedelta(days=14)
    #: 30 s between proofs of life.
    heartbeat_interval: timedelta = timedelta(seconds=30)
    #: 5 min without one and a job is given to another node. At least three heartbeats: fewer would call a
    #: slow network, or one job that holds the GIL, a death.
    no_heartbeat_timeout: timedelta = timedelta(minutes=5)
    #: Create or upgrade the tables in `init()`. Off by default: a library changes no schema unasked; then
    #: `pgscheduler migrate` does it, or a DBA applies what `pgscheduler migrate --print` prints.
    create_schema: bool = False
    #: A structlog-like logger (debug, info, warning, error with keywords). None: structlog's.
    logger: Any = field(default=None, repr=False)
    #: Look for due jobs at `start()`. Off: at the first notification or due time, or one `job_check_interval`
    #: later, so that the nodes of a deploy do not all start with a burst.
    run_immediately: bool = False
    #: Before every table, index and function. Lower case letters, digits and underscores.
    table_prefix: str = "pgscheduler_"
    #: The PostgreSQL schema that holds them.
    schema: str = "public"
    #: 30 s for running jobs to end at `shutdown()`, which never takes longer than this plus a second.
    shutdown_timeout: timedelta = timedelta(seconds=30)
    #: 1 h: for so long a finished one-time job still answers to `get_job()` by its key. Its runs stay in
    #: history until `history_retention`.
    failed_and_completed_one_time_job_interval: timedelta = timedelta(hours=1)
    #: 30 days of history; whole days are dropped as partitions.
    history_retention: timedelta = timedelta(days=30)
    #: None: no limit but `history_retention`, for dropping a day costs nothing. Else only the newest so many completed
    #: runs of each recurring job, and of all one-time jobs of a name together, are kept. Every ten minutes the others
    #: are deleted, if they ended more than `failed_and_completed_one_time_job_interval` ago.
    history_keep_completed: int | None = None
    #: The same for runs that failed, timed out or stalled. Those that were cancelled, interrupted, skipped or orphaned
    #: stay until `history_retention`.
    history_keep_failed: int | None = None
    #: 5 ms: notifications of this process are at most one per this interval, and one in four intervals while it
    #: schedules faster than that.
    notification_debounce_interval: timedelta = timedelta(milliseconds=5)
    #: Listen for notifications. Turn it off behind a pooler in transaction mode, where LISTEN cannot work, unless
    #: `listen_dsn` leads past it.
    listen: bool = True
    #: Where to listen, if not at `dsn`: a direct connection, when `dsn` leads through a pooler in transaction mode.
    listen_dsn: str | None = field(default=None, repr=False)
    #: Use server-side prepared statements and session settings. A pooler is noticed, and then they are not used.
    prepared_statements: bool = True
    #: 5 s for a new connection (psycopg's default is 130).
    connect_timeout: timedelta = timedelta(seconds=5)
    #: 64 KiB of JSON per job; larger things belong elsewhere, with a reference in the parameters.
    max_parameters_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        self._check_database()
        check.integer("max_concurrent_jobs", self.max_concurrent_jobs, 1, _MAX_SLOTS)
        check.integer("pool_size", self.pool_size, 1, 1000)
        for name in _DURATIONS:
            put(name, check.duration(name, getattr(self, name)))
        put("shutdown_timeout", check.duration("shutdown_timeout", self.shutdown_timeout, zero=True))
        for name in ("create_schema", "run_immediately", "listen", "prepared_statements"):
            check.boolean(name, getattr(self, name))
        for name in ("history_keep_completed", "history_keep_failed"):
            if getattr(self, name) is not None:
                check.integer(name, getattr(self, name), 0, 2**31 - 1)
        check.integer("max_parameters_bytes", self.max_parameters_bytes, 16, 64 * 1024 * 1024)
        self._check_logger()
        self._check_identifiers()
        self._check_pairs()

    def _check_database(self) -> None:
        if (self.dsn is None) == (self.pool is None):
            given = "both" if self.dsn is not None else "neither"
            rule = "is missing: a database connection is required, exactly one of dsn and pool"
            raise InvalidValueError("dsn", given, rule)
        if self.listen_dsn is not None:
            _check_dsn("listen_dsn", self.listen_dsn)
        if self.pool is not None:
            if not isinstance(self.pool, ConnectionPool):
                raise InvalidTypeError("pool", self.pool, "must be a psycopg_pool.ConnectionPool")
            if self.pool.closed and getattr(self.pool, "_opened", False):
                raise InvalidValueError("pool", "a closed pool", "must not be closed")
            return
        _check_dsn("dsn", self.dsn)

    def _check_logger(self) -> None:
        if self.logger is None:
            return
        for method in ("debug", "info", "warning", "error"):
            if not callable(getattr(self.logger, method, None)):
                raise InvalidTypeError(
                    "logger", self.logger, f"must have debug, info, warning and error ({method} is missing)"
                )

    def _check_identifiers(self) -> None:
        prefix = self.table_prefix
        if not isinstance(prefix, str):
            raise InvalidTypeError("table_prefix", prefix, "must be a str")
        if prefix and not _PREFIX.match(prefix):
            raise InvalidValueError(
                "table_prefix", prefix, "must match [a-z_][a-z0-9_]* (lower case) or be empty"
            )
        if len(prefix) > _MAX_PREFIX:
            raise InvalidValueError(
                "table_prefix", prefix, f"must not be longer than {_MAX_PREFIX} characters (too long)"
            )
        if prefix.startswith("pg_"):
            raise InvalidValueError("table_prefix", prefix, "must not start with pg_ (PostgreSQL's own)")
        schema = self.schema
        if not isinstance(schema, str):
            raise InvalidTypeError("schema", schema, "must be a str")
        if not _PREFIX.match(schema) or len(schema) > 63:
            raise InvalidValueError("schema", schema, "must match [a-z_][a-z0-9_]*, at most 63 characters")
        if schema.startswith("pg_") or schema == "information_schema":
            raise InvalidValueError("schema", schema, "must not be one of PostgreSQL's own")

    def _check_pairs(self) -> None:
        if self.no_heartbeat_timeout <= self.heartbeat_interval:
            rule = f"must be longer than heartbeat_interval ({self.heartbeat_interval}), at least 3 times"
            raise InvalidValueError("no_heartbeat_timeout", self.no_heartbeat_timeout, rule)
        if self.no_heartbeat_timeout < 3 * self.heartbeat_interval:
            rule = f"must be at least 3 times heartbeat_interval ({self.heartbeat_interval})"
            raise InvalidValueError("no_heartbeat_timeout", self.no_heartbeat_timeout, rule)
        if self.orphaned_job_timeout < self.no_heartbeat_timeout:
            rule = f"must not be shorter than no_heartbeat_timeout ({self.no_heartbeat_timeout})"
            raise InvalidValueError("orphaned_job_timeout", self.orphaned_job_timeout, rule)

    @property
    def conninfo(self) -> str:
        """The DSN, or where the pool connects to."""
        if self.pool is not None:
            return conninfo_of(self.pool)
        assert self.dsn is not None
        return self.dsn

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        file: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> SchedulerConfig:
        """Settings from the environment and a TOML file: arguments win, then variables, then the file.

        A setting's variable is `PGSCHEDULER_<FIELD>`: durations are seconds, booleans `true`/`false`. The
        database may also be in `DATABASE_URL`, or in `DB_USER` (needed), `DB_PASSWORD`, `DB_HOST`, `DB_PORT` and
        `DB_DATABASE`; `max_concurrent_jobs` in `WORKER_COUNT`. An unknown `PGSCHEDULER_` variable is left alone.

        `file` (default: what `PGSCHEDULER_SETTINGS` names, else none) has the fields' names as keys, and durations
        as seconds; a key that is no field is refused. Raises InvalidValueError and InvalidTypeError, which say
        where the value came from.
        """
        environ = os.environ if environ is None else environ
        found, origins = _settings.collect(dataclasses.fields(cls), environ, file)
        if "pool" in overrides:
            found.pop("dsn", None)
        for name in overrides:
            origins.pop(name, None)
        try:
            return cls(**{**found, **overrides})
        except (InvalidValueError, InvalidTypeError) as error:
            _settings.locate(error, origins)
            raise


def _check_dsn(name: str, dsn: object) -> None:
    if not isinstance(dsn, str):
        raise InvalidTypeError(name, type(dsn), "must be a str (its value is not shown)")
    if not dsn.strip():
        # libpq would take the empty string as "the local socket, as me".
        raise InvalidValueError(name, dsn, "cannot be empty")
    fault = _dsn_fault(dsn)
    if fault is not None:
        raise InvalidValueError(name, "(not shown)", f"is invalid: {fault}")


def _dsn_fault(dsn: str) -> str | None:
    """What is wrong with a DSN, without repeating any of it: a wrong one may hold its password anywhere."""
    scheme = _SCHEME.match(dsn)
    if scheme is not None and scheme[1] not in ("postgresql", "postgres"):
        return "its scheme must be postgresql:// (without a driver's name)"
    if "\x00" in dsn:
        return "it must not hold NUL"
    try:
        found = conninfo_to_dict(dsn)
    except (psycopg.ProgrammingError, UnicodeError, ValueError) as error:
        text = str(error).strip()
        unknown = _UNKNOWN_PARAMETER.match(text)
        if unknown is not None:
            return unknown[0]
        # libpq quotes what it could not read: that may be the half of a password after its `@` or blank.
        return text.replace('"="', "'='").partition('"')[0].strip(" :")
    port = str(found.get("port") or "")
    if "@" in str(found.get("host") or "") or not all(p.isdigit() for p in port.split(",") if p):
        return "in a URL, write @ / : ? # and % in a user's name or password as %40 %2F %3A %3F %23 and %25"
    return None
