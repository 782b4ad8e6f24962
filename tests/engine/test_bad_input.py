"""Whatever wrong thing is handed in: a typed error that names it, nothing written, and all goes on.

One table; a row is a wrong call, the builtin that a Python user would catch, and what the text must say.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgscheduler import (
    Backoff,
    Cron,
    Every,
    Job,
    JobConfig,
    JobState,
    PgSchedulerError,
    Retry,
    RunContext,
    Scheduler,
    SchedulerConfig,
    Snooze,
    _migrate,
)
from tests.support.postgres import database_dsn

SECRET = "hunter2"


class Plain(Job):
    def run(self, ctx: RunContext) -> None:
        if ctx.parameters == "fail":
            raise RuntimeError("as it was told")


class Abstract(Job):
    pass


class Stranger:
    def run(self, ctx: RunContext) -> None:
        raise NotImplementedError


class Silent:
    """Throws away what it is told, as a logger."""

    def debug(self, event: str, **fields: object) -> None:
        pass

    info = warning = error = debug


@dataclass
class Play:
    """An initialized scheduler, and eyes on its tables."""

    dsn: str
    scheduler: Scheduler
    db: psycopg.Connection[tuple[Any, ...]]
    direct_dsn: str  # past the pooler, if there is one: it knows no `options`
    given: dict[str, Any] = field(default_factory=dict)

    def count(self) -> list[tuple[str, int]]:
        """Every table of the database with its number of rows."""
        tables = self.db.execute(
            "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = relnamespace"
            " where relkind in ('r', 'p', 'v') and nspname !~ '^pg_' and nspname <> 'information_schema'"
        ).fetchall()
        return sorted(
            (name, self.db.execute(sql.SQL("select count(*) from {}").format(sql.SQL(name))).fetchall()[0][0])
            for (name,) in tables
        )

    def config(self, **settings: Any) -> SchedulerConfig:
        return SchedulerConfig(**{"dsn": self.dsn, "logger": Silent(), **settings})

    def one(self, **policies: Any) -> Job:
        return Plain(JobConfig.one_time("plain", **policies))

    def store(self, **policies: Any) -> Any:
        """Schedule a one-time job: the way of most rows."""
        return self.scheduler.schedule(self.one(**policies))

    def again(self, **policies: Any) -> Any:
        return self.scheduler.schedule(Plain(JobConfig.recurring("often", "@hourly", **policies)))

    def init(self, dsn: str, **settings: Any) -> None:
        """What `init()` says to this database."""
        scheduler = Scheduler(self.config(dsn=dsn, **settings))
        try:
            scheduler.init()
        finally:
            scheduler.shutdown()


@pytest.fixture
def play(dsn: str, direct_dsn: str, db: psycopg.Connection[tuple[Any, ...]]) -> Iterator[Play]:
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as scheduler:
        yield Play(dsn, scheduler, db, direct_dsn)


def unprepared(play: Play) -> None:
    """Before the call there is nothing to do."""


@dataclass(frozen=True)
class Row:
    id: str
    call: Callable[[Play], Any]
    error: type[Exception]
    pattern: str
    prepare: Callable[[Play], Any] = unprepared


V, T, L, R, C = ValueError, TypeError, LookupError, RuntimeError, ConnectionError


def cfg(id_: str, error: type[Exception], pattern: str, **settings: Any) -> Row:
    return Row(f"config-{id_}", lambda p: p.config(**settings), error, pattern)


def job(id_: str, error: type[Exception], pattern: str, **policies: Any) -> Row:
    return Row(f"job-{id_}", lambda p: p.store(**policies), error, pattern)


def params(id_: str, error: type[Exception], pattern: str, make: Callable[[], Any]) -> Row:
    return Row(f"parameters-{id_}", lambda p: p.store(parameters=make()), error, pattern)


def cron(id_: str, expression: Any, error: type[Exception], pattern: str, **more: Any) -> Row:
    def call(p: Play) -> Any:
        return p.scheduler.schedule(Plain(JobConfig.recurring("often", expression, **more)))

    return Row(f"cron-{id_}", call, error, pattern)


def name(id_: str, value: Any, error: type[Exception], pattern: str) -> Row:
    return Row(f"name-{id_}", lambda p: p.scheduler.enqueue(value), error, pattern)


def verb(id_: str, call: Callable[[Play], Any], error: type[Exception], pattern: str, **more: Any) -> Row:
    return Row(f"verb-{id_}", call, error, pattern, **more)


def dsn_row(id_: str, value: Any, error: type[Exception], pattern: str) -> Row:
    return Row(f"dsn-{id_}", lambda p: SchedulerConfig(dsn=value), error, pattern)


def circular() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["self"] = found
    return found


def deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def closed(p: Play) -> psycopg.Connection[Any]:
    connection = psycopg.connect(p.dsn)
    connection.close()
    return connection


def fail_transaction(p: Play) -> None:
    p.given["connection"] = connection = psycopg.connect(p.dsn)
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("select 1 / 0")


def use_failed(p: Play) -> None:
    try:
        p.scheduler.schedule(p.one(), connection=p.given["connection"])
    finally:
        p.given["connection"].close()


def finish(p: Play, parameters: Any = None) -> None:
    """A job that has ended; `given["done"]` is its id."""
    p.given["done"] = p.store(parameters=parameters).id
    p.scheduler.run_pending()


def hold(p: Play) -> None:
    """A job that another node runs."""
    p.given["held"] = p.store(key="held").id
    p.db.execute(
        "update pgscheduler_jobs set state = 'running', token = 1, claimed_at = now(), node_id = gen_random_uuid()"
    )


def stop(p: Play) -> Scheduler:
    scheduler = Scheduler(p.config())
    scheduler.init()
    scheduler.shutdown()
    return scheduler


recurring = JobConfig.recurring
one_time = JobConfig.one_time
naive = datetime(2030, 1, 1)

ROWS = [
    # --- settings
    Row("config-no-database", lambda p: SchedulerConfig(), V, r"exactly one of.*(pool|dsn)"),
    Row(
        "config-two-databases",
        lambda p: p.config(pool=ConnectionPool(p.dsn, open=False)),
        V,
        r"exactly one of.*(pool|dsn)",
    ),
    Row("config-pool-is-text", lambda p: p.config(dsn=None, pool="x"), T, r"pool.*ConnectionPool.*got str"),
    Row(
        "config-pool-is-a-connection",
        lambda p: p.config(dsn=None, pool=p.db),
        T,
        r"pool.*ConnectionPool.*got Connection",
    ),
    Row(
        "config-pool-is-async",
        lambda p: p.config(dsn=None, pool=AsyncConnectionPool(p.dsn, open=False)),
        T,
        r"pool.*ConnectionPool.*got AsyncConnectionPool",
    ),
    Row("config-pool-is-closed", lambda p: p.config(dsn=None, pool=p.given["pool"]), V, r"pool.*closed",
        lambda p: p.given.update(pool=closed_pool(p))),
    dsn_row("empty", "", V, r"dsn.*empty"),
    dsn_row("blank", " \t", V, r"dsn.*empty"),
    dsn_row("number", 5, T, r"dsn.*str.*int"),
    dsn_row("no-dsn", "not a dsn", V, r"dsn is invalid: missing '='"),
    dsn_row("unknown-parameter", f"postgresql://u:{SECRET}@h/db?bogus=1", V, r"dsn.*bogus"),
    dsn_row("unknown-keyword", f"host=h password={SECRET} bogus=1", V, r"dsn.*bogus"),
    dsn_row("driver-in-scheme", f"postgresql+psycopg://u:{SECRET}@h/db", V, r"dsn.*scheme must be postgresql://"),
    dsn_row("other-database", f"mysql://u:{SECRET}@h/db", V, r"dsn.*scheme"),
    dsn_row("one-slash", f"postgres:/u:{SECRET}@h/db", V, r"dsn is invalid"),
    dsn_row("percent-in-password", f"postgresql://u:%{SECRET}@h/db", V, r"dsn.*percent-encoded"),
    dsn_row("slash-in-password", f"postgresql://u:{SECRET}/x@h/db", V, r"dsn.*%2F"),
    dsn_row("at-in-password", f"postgresql://u:x@{SECRET}@h/db", V, r"dsn.*%40"),
    dsn_row("blank-in-password", f"host=h password=x {SECRET}", V, r"dsn is invalid"),
    dsn_row("open-quote", f"host=h password='{SECRET}", V, r"dsn.*unterminated"),
    dsn_row("nul", f"host=h\x00 password={SECRET}", V, r"dsn.*NUL"),
    cfg("slots-0", V, r"max_concurrent_jobs.*>= 1.*got 0", max_concurrent_jobs=0),
    cfg("slots-negative", V, r"max_concurrent_jobs.*>= 1.*got -1", max_concurrent_jobs=-1),
    cfg("slots-float", T, r"max_concurrent_jobs.*int.*float", max_concurrent_jobs=2.5),
    cfg("slots-text", T, r"max_concurrent_jobs.*int.*str", max_concurrent_jobs="4"),
    cfg("slots-bool", T, r"max_concurrent_jobs.*int.*bool", max_concurrent_jobs=True),
    cfg("slots-many", V, r"max_concurrent_jobs.*<=", max_concurrent_jobs=10**9),
    cfg("check-0", V, r"job_check_interval.*> 0", job_check_interval=0),
    cfg("check-negative", V, r"job_check_interval.*> 0", job_check_interval=timedelta(seconds=-1)),
    cfg("check-nan", V, r"job_check_interval.*finite", job_check_interval=float("nan")),
    cfg("check-inf", V, r"job_check_interval.*finite", job_check_interval=float("inf")),
    cfg("check-text", T, r"job_check_interval.*(timedelta|seconds)", job_check_interval="5s"),
    cfg("check-none", T, r"job_check_interval.*(timedelta|seconds)", job_check_interval=None),
    cfg("check-list", T, r"job_check_interval.*(timedelta|seconds)", job_check_interval=[]),
    cfg("check-max", V, r"job_check_interval.*<=", job_check_interval=timedelta.max),
    cfg("check-huge-int", V, r"job_check_interval.*<=", job_check_interval=10**400),
    cfg(
        "heartbeat-too-long",
        V,
        r"no_heartbeat_timeout.*heartbeat_interval",
        heartbeat_interval=60,
        no_heartbeat_timeout=60,
    ),
    cfg("two-heartbeats", V, r"at least 3", heartbeat_interval=60, no_heartbeat_timeout=179),
    cfg("heartbeat-0", V, r"heartbeat_interval.*> 0", heartbeat_interval=0),
    cfg("orphan-too-short", V, r"orphaned_job_timeout.*no_heartbeat_timeout", orphaned_job_timeout=299),
    cfg("shutdown-negative", V, r"shutdown_timeout.*>= 0", shutdown_timeout=-1),
    cfg("remember-0", V, r"failed_and_completed_one_time_job_interval", failed_and_completed_one_time_job_interval=0),
    cfg("remember-negative", V, r"failed_and_completed_one_time_job_interval.*> 0.*got -1",
        failed_and_completed_one_time_job_interval=-1),
    cfg("retention-negative", V, r"history_retention", history_retention=timedelta(days=-1)),
    cfg("keep-negative", V, r"history_keep_completed.*non-negative", history_keep_completed=-1),
    cfg("keep-text", T, r"history_keep_failed.*int", history_keep_failed="10"),
    cfg("schema-flag-text", T, r"create_schema.*bool", create_schema="no"),
    cfg("immediately-1", T, r"run_immediately.*bool", run_immediately=1),
    cfg("listen-none", T, r"listen.*bool", listen=None),
    cfg("logger-text", T, r"logger", logger="root"),
    cfg("logger-poor", T, r"logger.*debug", logger=object()),
    cfg("prefix-blank-inside", V, r"table_prefix.*\[a-z_\]\[a-z0-9_\]\*", table_prefix="a b"),
    cfg("prefix-hyphen", V, r"table_prefix.*\[a-z_\]\[a-z0-9_\]\*", table_prefix="a-b"),
    cfg("prefix-umlaut", V, r"table_prefix.*\[a-z_\]\[a-z0-9_\]\*", table_prefix="ä"),
    cfg("prefix-digit", V, r"table_prefix.*\[a-z_\]\[a-z0-9_\]\*", table_prefix="1x"),
    cfg("prefix-newline", V, r"table_prefix.*\[a-z_\]\[a-z0-9_\]\*", table_prefix="x_\n"),
    cfg("prefix-injection", V, r"table_prefix", table_prefix='x"; DROP TABLE users; --'),
    cfg("prefix-upper", V, r"table_prefix.*lower", table_prefix="Upper"),
    cfg("prefix-long", V, r"table_prefix.*(long|characters)", table_prefix="x" * 60),
    cfg("prefix-pg", V, r"table_prefix.*pg_", table_prefix="pg_"),
    cfg("prefix-dot", V, r"table_prefix", table_prefix="public."),
    cfg("prefix-none", T, r"table_prefix.*str", table_prefix=None),
    cfg("schema-injection", V, r"schema", schema='public"; --'),
    cfg("schema-system", V, r"schema.*PostgreSQL's own", schema="pg_catalog"),
    cfg("pool-size-0", V, r"pool_size.*>= 1", pool_size=0),
    cfg("parameters-limit", V, r"max_parameters_bytes.*<=", max_parameters_bytes=10**12),
    Row("scheduler-config-dict", lambda p: Scheduler({"dsn": p.dsn}), T, r"config.*SchedulerConfig.*dict"),  # type: ignore[arg-type]
    # --- the database
    Row(
        "database-down",
        lambda p: p.init(f"postgresql://u:{SECRET}@127.0.0.1:1/db"),
        C,
        r"cannot connect.*host",
    ),
    Row(
        "database-read-only",
        lambda p: p.init(make_conninfo(p.direct_dsn, options="-c default_transaction_read_only=on"), create_schema=True,
                         table_prefix="other_"),
        R,
        r"read-only",
    ),
    Row("schema-missing", lambda p: p.init(p.dsn, table_prefix="absent_"), R, r"tables.*missing.*create_schema"),
    Row(
        "schema-newer",
        lambda p: p.init(p.dsn, create_schema=True),
        R,
        r"schema version.*newer",
        lambda p: p.db.execute("insert into pgscheduler_migrations (version, name) values (999, 'future')"),
    ),
    Row(
        "schema-no-permission",
        lambda p: p.init(make_conninfo(p.direct_dsn, options="-c role=pg_monitor"), create_schema=True, schema="other"),
        R,
        r"permission.*create_schema",
    ),
    Row(
        "schema-migrations-is-a-view",
        lambda p: p.init(p.dsn, create_schema=True, table_prefix="view_"),
        R,
        r"not a table",
        lambda p: p.db.execute("create view view_migrations as select 1 as version"),
    ),
    Row(
        "schema-jobs-is-a-view",
        lambda p: p.init(p.dsn, create_schema=True, table_prefix="view_"),
        R,
        r"view_jobs.*not a table|not a table.*view_jobs",
        lambda p: p.db.execute("create view view_jobs as select 1 as id"),
    ),
    Row(
        "database-turns-read-only",
        lambda p: on_read_only_server(p),
        C,
        r"read-only",
    ),
    # --- job classes
    Row("class-foreign", lambda p: p.scheduler.register(Stranger), T, r"must.*subclass.*Job"),  # type: ignore[arg-type]
    Row("class-foreign-instance", lambda p: p.scheduler.schedule(Stranger()), T, r"must.*subclass.*Job"),  # type: ignore[arg-type]
    Row("class-text", lambda p: p.scheduler.schedule("plain"), T, r"must.*subclass.*Job"),  # type: ignore[arg-type]
    Row("class-abstract", lambda p: p.scheduler.register(Abstract), T, r"abstract.*run"),
    Row("class-config-dict", lambda p: p.scheduler.schedule(Plain({"name": "x"})), T, r"config.*JobConfig.*dict"),  # type: ignore[arg-type]
    Row("class-config-replaced", lambda p: p.scheduler.schedule(misconfigured()), T, r"config.*JobConfig"),
    name("empty", "", V, r"name.*empty"),
    name("blank", "   ", V, r"name.*empty"),
    name("none", None, T, r"name.*str"),
    name("number", 5, T, r"name.*str"),
    name("bytes", b"x", T, r"name.*str"),
    name("long", "n" * 10_000, V, r"name.*(255|long)"),
    name("nul", "a\x00b", V, r"name.*NUL"),
    name("newline", "a\nb", V, r"name.*(control|printable)"),
    name("escape", "a\x1b[31m", V, r"name.*(control|printable)"),
    name("right-to-left", "a\u202eb", V, r"name.*(control|printable)"),
    name("surrogate", "a\ud800", V, r"name.*(unicode|surrogate)"),
    Row(
        "class-same-name",
        lambda p: p.scheduler.register(renamed("shared")),
        V,
        r"already registered",
        lambda p: p.scheduler.register(renamed("shared")),
    ),
    Row(
        "class-same-name-other-spelling",
        lambda p: p.scheduler.register(renamed("cafe\u0301")),
        V,
        r"already registered",
        lambda p: p.scheduler.register(renamed("caf\u00e9")),
    ),
    Row("one-time-with-cron", lambda p: one_time("x", schedule=Cron("@daily")), V, r"(cron|recurring).*one-time"),
    Row("config-job-name-number", lambda p: JobConfig(name=5), T, r"name.*str"),  # type: ignore[arg-type]
    # --- cron lines, as far as they pass through the engine (their own tests are elsewhere)
    cron("none", None, T, r"cron.*str"),
    cron("number", 5, T, r"cron.*str"),
    cron("empty", "", V, r"cron.*empty"),
    cron("four-fields", "* * * *", V, r"cron.*5 fields.*got 4"),
    cron("seven-fields", "* * * * * * *", V, r"cron.*5 fields.*got 7"),
    cron("eight-fields", "* * * * * * * *", V, r"cron.*5 fields.*got 8"),
    cron("minute-60", "60 * * * *", V, r"cron.*minute.*60"),
    cron("hour-24", "* 24 * * *", V, r"cron.*hour.*24"),
    cron("step-0", "*/0 * * * *", V, r"cron.*step.*0"),
    cron("step-huge", "*/99999 * * * *", V, r"cron.*step"),
    cron("reversed", "5-1 * * * *", V, r"cron.*range|cron.*5-1"),
    cron("never", "0 0 30 2 *", V, r"cron.*never"),
    cron("random", "R R * * *", V, r"cron"),
    cron("reboot", "@reboot", V, r"cron.*@"),
    cron("injection", "* * * * *; drop table x", V, r"cron"),
    cron("long", ",".join(["0"] * 20_000) + " * * * *", V, r"cron.*(long|characters)"),
    cron("digits", "\u0663 * * * *", V, r"cron"),
    cron("zone-unknown", "@daily", V, r"time ?zone.*Nope", timezone="Nope/Nope"),
    cron("zone-path", "@daily", V, r"time ?zone", timezone="../../etc/passwd"),
    cron("zone-number", "@daily", T, r"time ?zone.*str", timezone=5),
    cron("zone-with-interval", Every(timedelta(hours=1)), V, r"timezone", timezone="Europe/Berlin"),
    Row("every-0", lambda p: Every(timedelta(0)), V, r"interval"),
    Row("every-number", lambda p: Every(60), T, r"interval.*timedelta"),  # type: ignore[arg-type]
    cron("no-schedule", object(), T, r"cron.*str|schedule.*next_after"),
    Row("schedule-over", lambda p: p.scheduler.schedule(Plain(recurring("often", Over()))), V, r"schedule.*no occurrence"),
    # --- policies
    job("run-at-naive", V, r"run_at.*time ?zone", run_at=naive),
    job("run-at-text", T, r"run_at.*datetime", run_at="2030-01-01"),
    job("run-at-number", T, r"run_at.*datetime", run_at=5),
    job("run-at-date", T, r"run_at.*datetime", run_at=date(2030, 1, 1)),
    job("run-at-max", V, r"run_at", run_at=datetime.max.replace(tzinfo=UTC)),
    job("run-at-1900", V, r"run_at", run_at=datetime(1900, 1, 1, tzinfo=UTC)),
    job("delay-negative", V, r"delay", delay=-1),
    job("delay-nan", V, r"delay.*finite", delay=float("nan")),
    job("delay-max", V, r"delay.*<=", delay=timedelta.max),
    job("delay-and-run-at", V, r"delay.*run_at", delay=1, run_at=datetime(2030, 1, 1, tzinfo=UTC)),
    job("retries-negative", V, r"retries.*non-negative", retries=-1),
    job("retries-float", T, r"retries.*int", retries=2.5),
    job("retries-bool", T, r"retries.*int.*bool", retries=True),
    job("retries-huge", V, r"retries.*<=", retries=10**9),
    job("retries-beyond-text", V, r"retries.*<=", retries=10**5000),
    job("timeout-0", V, r"timeout.*> 0", timeout=0),
    job("timeout-text", T, r"timeout.*(timedelta|seconds)", timeout="5s"),
    job("expires-negative", V, r"expires_in.*> 0", expires_in=-1),
    job("priority-negative", V, r"priority.*>= 0", priority=-1),
    job("priority-huge", V, r"priority.*<=", priority=40_000),
    job("backoff-text", T, r"backoff", backoff="exponential"),
    Row("backoff-number", lambda p: Backoff(initial=5), T, r"backoff.initial.*timedelta"),  # type: ignore[arg-type]
    Row("backoff-shrinks", lambda p: Backoff(factor=0.5), V, r"backoff.factor.*between"),
    job("misfire", V, r"misfire.*run_once", misfire="never"),
    job("isolation", V, r"isolation.*process", isolation="greenlet"),
    job("isolation-number", T, r"isolation.*str", isolation=5),
    job("max-stalls-0", V, r"max_stalls.*>= 1", max_stalls=0),
    job("catchup-0", V, r"catchup.*>= 1", catchup=0),
    job("key-empty", V, r"key.*empty", key=""),
    job("key-long", V, r"key.*long", key="k" * 10_000),
    job("key-number", T, r"key.*str", key=5),
    job("metadata-text", T, r"metadata.*mapping", metadata="x"),
    job("metadata-object", T, r"metadata.*not JSON", metadata={"a": object()}),
    job("metadata-number-key", T, r"metadata.*key.*str", metadata={1: "x"}),
    job("metadata-large", V, r"metadata.*(size|bytes)", metadata={"a": "x" * 1_000_000}),
    job("schema-number", T, r"parameters_schema", parameters_schema=5),
    job("schema-wrong", V, r"parameters_schema.*JSON Schema", parameters_schema={"type": 5}),
    Row("recurring-with-run-at", lambda p: p.again(run_at=datetime(2030, 1, 1, tzinfo=UTC)), V, r"run_at.*one-time"),
    Row("recurring-with-expiry", lambda p: p.again(expires_in=5), V, r"expires_in.*one-time"),
    Row("snooze-text", lambda p: Snooze("5s"), T, r"after.*timedelta"),  # type: ignore[arg-type]
    Row("retry-negative", lambda p: Retry(-1), V, r"after.*between"),
    # --- parameters
    params("set", T, r"parameters.*not JSON.*path \$\.a\[1\]", lambda: {"a": [1, {2}]}),
    params("bytes", T, r"parameters.*not JSON.*path", lambda: {"a": b"x"}),
    params("datetime", T, r"parameters.*not JSON.*path", lambda: {"a": datetime.now(UTC)}),
    params("decimal", T, r"parameters.*not JSON.*path", lambda: {"a": Decimal(1)}),
    params("object", T, r"parameters.*not JSON.*path", lambda: {"a": object()}),
    params("tuple", T, r"parameters.*not JSON.*path", lambda: {"a": (1, 2)}),
    params("object-far-down", T, r"parameters.*not JSON.*path", lambda: {"k" * 5000: object()}),
    params("nan", V, r"parameters.*(NaN|finite)", lambda: {"a": float("nan")}),
    params("inf", V, r"parameters.*(NaN|finite)", lambda: {"a": float("-inf")}),
    params("nul", V, r"parameters.*NUL", lambda: {"a": "x\x00"}),
    params("nul-in-key", V, r"parameters.*NUL", lambda: {"x\x00": 1}),
    params("surrogate", V, r"parameters.*surrogate", lambda: {"a": "\ud800"}),
    params("surrogate-in-key", V, r"parameters.*surrogate", lambda: {"x\ud800": 1}),
    params("number-key", T, r"parameters.*key.*str", lambda: {1: "x"}),
    params("circular", V, r"parameters.*circular", circular),
    params("deep", V, r"parameters.*deep", lambda: deep(100_000)),
    params("large", V, r"parameters.*(size|bytes).*limit", lambda: {"a": "x" * 1_000_000}),
    params("huge-integer", V, r"parameters.*(integer|range)", lambda: {"a": 10**5000}),
    Row(
        "parameters-against-schema",
        lambda p: p.store(parameters={"user": "x", "password": SECRET}, parameters_schema=OnlyUser),
        V,
        r"parameters do not fit OnlyUser.*password",
    ),
    Row(
        "parameters-against-json-schema",
        lambda p: p.store(parameters={"age": SECRET}, parameters_schema={"properties": {"age": {"type": "integer"}}}),
        V,
        r"parameters do not fit their schema.*age",
    ),
    # --- verbs
    verb("before-init", lambda p: Scheduler(p.config()).schedule(p.one()), R, r"not initialized.*init\(\).*schedule"),
    verb("register-before-init", lambda p: Scheduler(p.config()).register(Plain), R, r"not initialized"),
    verb("start-before-init", lambda p: Scheduler(p.config()).start(), R, r"not initialized"),
    verb("init-twice", lambda p: p.scheduler.init(), R, r"already initialized"),
    verb("after-shutdown", lambda p: p.given["stopped"].schedule(p.one()), R, r"shut ?down",
         prepare=lambda p: p.given.update(stopped=stop(p))),
    verb("start-after-shutdown", lambda p: p.given["stopped"].start(), R, r"shut ?down",
         prepare=lambda p: p.given.update(stopped=stop(p))),
    verb("init-after-shutdown", lambda p: p.given["stopped"].init(), R, r"shut ?down",
         prepare=lambda p: p.given.update(stopped=stop(p))),
    verb("connection-text", lambda p: p.scheduler.schedule(p.one(), connection="x"), T, r"connection.*psycopg"),
    verb("connection-closed", lambda p: p.scheduler.schedule(p.one(), connection=closed(p)), R, r"connection.*closed"),
    verb("connection-failed", use_failed, R, r"connection.*transaction", prepare=fail_transaction),
    verb("many-connection-text", lambda p: p.scheduler.schedule_many([p.one()], connection="x"), T, r"connection.*psycopg"),  # type: ignore[arg-type]
    verb("many-one-is-bad", lambda p: p.scheduler.schedule_many([p.one(), p.one(parameters={1: 2})]), T, r"parameters.*key"),
    verb("many-not-a-job", lambda p: p.scheduler.schedule_many([p.one(), 5]), T, r"subclass.*Job"),  # type: ignore[list-item]
    verb("many-key-twice", lambda p: p.scheduler.schedule_many([p.one(key="k"), p.one(key="k")]), V, r"plain.*'k'.*twice"),
    verb("many-two-classes", lambda p: p.scheduler.schedule_many([p.one(), Other(one_time("plain"))]), V,
         r"does not match.*plain"),
    verb("many-two-kinds", lambda p: p.scheduler.schedule_many([Plain(one_time("often")), Plain(recurring("often", "@daily"))]),
         V, r"often.*recurring.*one-time"),
    verb("enqueue-many-text", lambda p: p.scheduler.enqueue_many("x", "abc"), T, r"parameters.*iterable"),
    verb("enqueue-many-one-object", lambda p: p.scheduler.enqueue_many("x", {"a": 1}), T, r"parameters.*iterable"),
    verb("enqueue-many-number", lambda p: p.scheduler.enqueue_many("x", 5), T, r"parameters.*iterable"),  # type: ignore[arg-type]
    verb("enqueue-many-one-is-bad", lambda p: p.scheduler.enqueue_many("x", [{}, {1: 2}]), T, r"parameters.*key"),
    verb("enqueue-many-nan", lambda p: p.scheduler.enqueue_many("x", [{"a": float("nan")}]), V, r"parameters.*NaN"),
    verb("enqueue-many-nul", lambda p: p.scheduler.enqueue_many("x", [{"a": "\0"}]), V, r"parameters.*NUL"),
    verb("enqueue-many-surrogate", lambda p: p.scheduler.enqueue_many("x", [{"a": "\ud800"}]), V, r"parameters.*surrogate"),
    verb("enqueue-many-tuple", lambda p: p.scheduler.enqueue_many("x", [{"a": (1, 2)}]), T, r"parameters.*\$\.a"),
    verb("enqueue-many-no-name", lambda p: p.scheduler.enqueue_many(None, [{}]), T, r"name.*str"),  # type: ignore[arg-type]
    verb("enqueue-many-two-times",
         lambda p: p.scheduler.enqueue_many("x", [{}], delay=timedelta(1), run_at=datetime.now(UTC)), V, r"delay.*run_at"),
    verb("enqueue-many-priority", lambda p: p.scheduler.enqueue_many("x", [{}], priority=-1), V, r"priority.*>= 0"),
    verb("enqueue-many-connection-text", lambda p: p.scheduler.enqueue_many("x", [{}], connection="x"), T,  # type: ignore[arg-type]
         r"connection.*psycopg"),
    verb("enqueue-recurring", lambda p: p.scheduler.enqueue("x", schedule=Cron("@daily")), V, r"schedule.*one-time"),
    verb("recurring-twice", lambda p: p.again(), V, r"already exists", prepare=lambda p: p.again()),
    verb("one-time-under-recurring", lambda p: p.scheduler.enqueue("often"), V, r"often.*recurring",
         prepare=lambda p: p.again()),
    verb("one-time-under-recurring-class", lambda p: p.scheduler.schedule(Plain(one_time("often"))), V, r"often.*recurring",
         prepare=lambda p: p.again()),
    verb("many-under-recurring", lambda p: p.scheduler.schedule_many([Plain(one_time("often"))]), V, r"often.*recurring",
         prepare=lambda p: p.again()),
    verb("recurring-under-one-time", lambda p: p.again(), V, r"often.*one-time",
         prepare=lambda p: p.scheduler.enqueue("often", key="often", delay=timedelta(hours=1))),
    verb("other-class", lambda p: p.scheduler.schedule(Other(one_time("plain"))), V, r"does not match.*plain",
         prepare=lambda p: p.store()),
    verb("schedule-running", lambda p: p.store(key="held"), R, r"currently running.*held", prepare=hold),
    verb("reschedule-running", lambda p: p.scheduler.reschedule(p.given["held"], delay=timedelta(1)), R, r"currently running",
         prepare=hold),
    verb("trigger-running", lambda p: p.scheduler.trigger(p.given["held"]), R, r"currently running", prepare=hold),
    verb("cancel-unknown", lambda p: p.scheduler.cancel(999_999), L, r"job not found.*999999"),
    verb("cancel-negative", lambda p: p.scheduler.cancel(-1), L, r"job not found"),
    verb("cancel-huge", lambda p: p.scheduler.cancel(10**30), L, r"job not found"),
    verb("cancel-unknown-name", lambda p: p.scheduler.cancel("abc"), L, r"job not found.*abc"),
    verb("cancel-unknown-key", lambda p: p.scheduler.cancel(("abc", "k")), L, r"job not found.*abc"),
    verb("cancel-bool", lambda p: p.scheduler.cancel(True), T, r"job.*id"),
    verb("cancel-bytes", lambda p: p.scheduler.cancel(b"abc"), T, r"job.*id"),  # type: ignore[arg-type]
    verb("cancel-none", lambda p: p.scheduler.cancel(None), T, r"job.*id"),  # type: ignore[arg-type]
    verb("cancel-completed", lambda p: p.scheduler.cancel(p.given["done"]), R, r"already completed", prepare=finish),
    verb("cancel-failed", lambda p: p.scheduler.cancel(p.given["done"]), R, r"already failed",
         prepare=lambda p: finish(p, "fail")),
    verb("cancel-idle-recurring", lambda p: p.scheduler.cancel("often"), R, r"recurring.*(pause|delete)",
         prepare=lambda p: p.again()),
    verb("get-unknown", lambda p: p.scheduler.get_job(5_000), L, r"job not found"),
    verb("get-triple", lambda p: p.scheduler.get_job(("a", "b", "c")), T, r"job.*\(name, key\)"),  # type: ignore[arg-type]
    verb("get-long-name", lambda p: p.scheduler.get_job("x" * 10_000), V, r"job.*long"),
    verb("pause-unknown", lambda p: p.scheduler.pause("abc"), L, r"job not found"),
    verb("resume-unknown", lambda p: p.scheduler.resume("abc"), L, r"job not found"),
    verb("delete-unknown", lambda p: p.scheduler.delete("abc"), L, r"job not found"),
    verb("trigger-unknown", lambda p: p.scheduler.trigger("abc"), L, r"job not found"),
    verb("trigger-completed", lambda p: p.scheduler.trigger(p.given["done"]), R, r"already completed", prepare=finish),
    verb("reschedule-nothing", lambda p: p.scheduler.reschedule(p.given["id"]), V, r"run_at.*delay",
         prepare=lambda p: p.given.update(id=p.store().id)),
    verb("reschedule-both", lambda p: p.scheduler.reschedule(p.given["id"], run_at=datetime.now(UTC), delay=timedelta(1)), V,
         r"run_at.*delay", prepare=lambda p: p.given.update(id=p.store().id)),
    verb("reschedule-naive", lambda p: p.scheduler.reschedule(p.given["id"], run_at=naive), V, r"run_at.*time ?zone",
         prepare=lambda p: p.given.update(id=p.store().id)),
    verb("reschedule-one-time-as-cron", lambda p: p.scheduler.reschedule(p.given["id"], schedule="@daily"), V, r"one-time",
         prepare=lambda p: p.given.update(id=p.store().id)),
    verb("reschedule-recurring-once", lambda p: p.scheduler.reschedule("often", delay=timedelta(1)), V, r"recurring",
         prepare=lambda p: p.again()),
    verb("reschedule-bad-cron", lambda p: p.scheduler.reschedule("often", schedule="61 * * * *"), V, r"cron.*minute.*61",
         prepare=lambda p: p.again()),
    verb("reschedule-no-schedule", lambda p: p.scheduler.reschedule("often", schedule=5), T, r"schedule.*next_after",  # type: ignore[arg-type]
         prepare=lambda p: p.again()),
    verb("retry-nonsense", lambda p: p.scheduler.retry("zzz"), V, r"run.*job-token"),
    verb("retry-number", lambda p: p.scheduler.retry(5), V, r"run.*job-token"),  # type: ignore[arg-type]
    verb("retry-unknown", lambda p: p.scheduler.retry("5-00000000000000ff"), L, r"not found"),
    verb("logs-huge-id", lambda p: p.scheduler.logs("9" * 40 + "-1"), L, r"not found"),
    verb("logs-huge-token", lambda p: p.scheduler.logs("5-" + "f" * 40), L, r"not found"),
    verb("jobs-state", lambda p: p.scheduler.jobs(state="sleeping"), V, r"state.*pending.*sleeping"),
    verb("jobs-state-number", lambda p: p.scheduler.jobs(state=5), T, r"state"),  # type: ignore[arg-type]
    verb("jobs-name-number", lambda p: p.scheduler.jobs(name=5), T, r"name.*str"),  # type: ignore[arg-type]
    verb("jobs-name-nul", lambda p: p.scheduler.jobs(name="a\x00"), V, r"name.*NUL"),
    verb("jobs-recurring-text", lambda p: p.scheduler.jobs(recurring="no"), T, r"recurring.*bool"),  # type: ignore[arg-type]
    verb("jobs-limit-0", lambda p: p.scheduler.jobs(limit=0), V, r"limit.*>= 1"),
    verb("jobs-limit-huge", lambda p: p.scheduler.jobs(limit=10**9), V, r"limit.*<="),
    verb("jobs-offset", lambda p: p.scheduler.jobs(offset=-1), V, r"offset"),
    verb("runs-outcome", lambda p: p.scheduler.runs(outcome="good"), V, r"outcome.*completed.*good"),
    verb("runs-key-number", lambda p: p.scheduler.runs(key=5), T, r"key.*str"),  # type: ignore[arg-type]
    verb("runs-since-naive", lambda p: p.scheduler.runs(since=naive), V, r"since.*time ?zone"),
    verb("wait-negative", lambda p: p.scheduler.wait(5, timeout=-1), V, r"timeout.*>= 0"),
    verb("wait-unknown", lambda p: p.scheduler.wait(5, timeout=1), L, r"job not found"),
    verb("wait-in-vain", lambda p: p.scheduler.wait(p.given["id"], timeout=0), TimeoutError, r"still pending",
         prepare=lambda p: p.given.update(id=p.store().id)),
    verb("shutdown-text", lambda p: p.scheduler.shutdown("5s"), T, r"timeout.*(timedelta|seconds)"),  # type: ignore[arg-type]
    verb("subscribe-text", lambda p: p.scheduler.subscribe("x"), T, r"callback.*callable"),  # type: ignore[arg-type]
    verb("run-pending-0", lambda p: p.scheduler.run_pending(0), V, r"limit.*>= 1"),
    verb("run-pending-float", lambda p: p.scheduler.run_pending(1.5), T, r"limit.*int"),  # type: ignore[arg-type]
]  # fmt: skip


class Other(Job):
    def run(self, ctx: RunContext) -> None:
        pass


class Over:
    """A schedule that has ended."""

    def next_after(self, instant: datetime) -> datetime | None:
        return None


@dataclass
class OnlyUser:
    user: str


def renamed(text: str) -> Job:
    return Plain(JobConfig(name=text))


def misconfigured() -> Job:
    found = Plain()
    found.config = None  # type: ignore[assignment]
    return found


def closed_pool(p: Play) -> ConnectionPool[Any]:
    pool = ConnectionPool(p.dsn, min_size=0, max_size=1, open=True)
    pool.close()
    return pool


def on_read_only_server(p: Play) -> None:
    """The server turns read-only (a failover) while the scheduler lives."""
    with Scheduler(
        p.config(dsn=make_conninfo(p.direct_dsn, options="-c default_transaction_read_only=on"))
    ) as scheduler:
        scheduler.schedule(p.one())


def test_ids_are_unique() -> None:
    """A row of the table can be named in a report."""
    ids = [row.id for row in ROWS]
    assert len(set(ids)) == len(ids) >= 60


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_refused(row: Row, play: Play) -> None:
    """A wrong call raises what the table says, writes nothing, tells no secret, and harms nothing after it."""
    row.prepare(play)
    before = play.count()

    with pytest.raises(row.error) as caught:
        row.call(play)

    text = str(caught.value)
    assert isinstance(caught.value, PgSchedulerError), repr(caught.value)
    assert re.search(row.pattern, text, re.IGNORECASE), text
    assert len(text) <= 500, text
    assert not re.search(r"(.)\1{80}", text), "more than 80 characters of the value are shown"
    assert "\n" not in text
    assert SECRET not in text
    assert play.count() == before
    # A valid call works right afterwards, on the scheduler that refused.
    stored = play.scheduler.enqueue("welcome", {"user": 1}, delay=timedelta(hours=1))
    assert play.scheduler.get_job(stored).state is JobState.PENDING
    assert play.scheduler.cancel(stored) == "cancelled"


def test_old_server_is_refused(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PostgreSQL that is too old is named as such, before anything is created."""
    monkeypatch.setattr(_migrate, "MINIMUM_SERVER", 990000)
    before = play.count()
    with pytest.raises(RuntimeError, match=r"PostgreSQL version \d+ is too old.*requires"):
        play.init(play.dsn, create_schema=True, table_prefix="late_")
    assert play.count() == before


def test_unknown_keywords_are_refused(play: Play) -> None:
    """A misspelt setting or policy is an error, never ignored."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_jobs'"):
        SchedulerConfig(dsn=play.dsn, max_jobs=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'retires'"):
        play.store(retires=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'retires'"):
        play.scheduler.enqueue("plain", retires=3)
    assert play.scheduler.jobs() == []


def test_a_hostile_repr_does_not_hide_the_error(play: Play) -> None:
    """A value whose repr() raises is refused like any other."""

    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("boo")

    with pytest.raises(TypeError, match="retries must be an int, got Hostile"):
        play.store(retries=Hostile())


ACCEPTED = {
    "markup-in-name": lambda p: p.scheduler.enqueue("<script>alert(1)</script>"),
    "quotes-in-name": lambda p: p.scheduler.enqueue("'; drop table pgscheduler_jobs; --"),
    "unknown-name": lambda p: p.scheduler.enqueue("known_to_another_node"),
    "list-parameters": lambda p: p.scheduler.enqueue("plain", [1, "two", None]),
    "no-parameters": lambda p: p.scheduler.enqueue("plain", None),
    "big-integer": lambda p: p.scheduler.enqueue("plain", {"a": 10**400, "b": 2**63 + 1}),
    "unicode": lambda p: p.scheduler.enqueue("plain", {"\u00e4\U0001f600": "\t\\ \u2028 e\u0301"}),
    "run-at-past": lambda p: p.store(run_at=datetime(2001, 1, 1, tzinfo=UTC)),
    "no-delay": lambda p: p.store(delay=0),
    "recurring-with-parameters": lambda p: p.again(parameters={"a": 1}),
    "rare-cron": lambda p: p.scheduler.schedule(Plain(recurring("leap", "0 0 29 2 *"))),
    "six-fields": lambda p: p.scheduler.schedule(Plain(recurring("seconds", "*/10 * * * * *"))),
    "spaces-round-cron": lambda p: p.scheduler.schedule(Plain(recurring("spaces", " @hourly \t"))),
    "longest-name": lambda p: p.scheduler.enqueue("n" * 255, key="\U0001f600" * 255),
}


@pytest.mark.parametrize("call", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted(call: Callable[[Play], Any], play: Play) -> None:
    """What only looks wrong is stored as it was given."""
    tables = [table for table, _ in play.count()]
    record = call(play)
    read = play.scheduler.get_job(record.id)
    assert (read.name, read.key, read.parameters) == (record.name, record.key, record.parameters)
    assert [table for table, _ in play.count()] == tables


def test_parameters_arrive_as_given(play: Play) -> None:
    """Any JSON comes back with equal value and type; None is no parameters."""
    assert play.scheduler.enqueue("plain", None).parameters == {}
    for given in (
        [1, "two", None],
        {"a": 10**400, "b": 2**63 + 1},
        {"\u00e4": "\t\\ \u2028"},
        1.5,
        "x",
        False,
    ):
        read = play.scheduler.get_job(play.scheduler.enqueue("plain", given)).parameters
        assert read == given
        assert type(read) is type(given)


def test_empty_table_prefix(play: Play, empty_dsn: str) -> None:
    """An empty prefix is allowed: plain names, in a schema of one's own."""
    with Scheduler(
        play.config(dsn=empty_dsn, table_prefix="", schema="jobs", create_schema=True)
    ) as scheduler:
        assert scheduler.enqueue("plain").state is JobState.PENDING
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("select count(*) from jobs.jobs").fetchone() == (1,)


def test_a_pool_of_one_connection_is_enough(play: Play) -> None:
    """Claims, heartbeats and `ctx.transaction()` have connections of their own: a tiny pool cannot block them."""

    class Own(Job):
        def run(self, ctx: RunContext) -> None:
            with ctx.transaction() as connection:
                connection.execute("select 1")

    with (
        ConnectionPool(play.dsn, min_size=1, max_size=1, open=True) as pool,
        Scheduler(SchedulerConfig(pool=pool, logger=Silent(), max_concurrent_jobs=10)) as scheduler,
    ):
        scheduler.register(Own)
        scheduler.start()
        jobs = [scheduler.enqueue("own") for _ in range(20)]
        assert {scheduler.wait(item, timeout=30).state for item in jobs} == {JobState.COMPLETED}


def test_no_prepared_statements_anywhere(play: Play) -> None:
    """With `prepared_statements=False` a job's own transaction prepares nothing either: poolers mix sessions."""
    found: list[Any] = []

    class Loops(Job):
        def run(self, ctx: RunContext) -> None:
            with ctx.transaction() as connection:
                for number in range(20):
                    connection.execute("select %s::int", [number])
                found.extend(connection.execute("select statement from pg_prepared_statements").fetchall())

    with Scheduler(play.config(prepared_statements=False, listen=False)) as scheduler:
        scheduler.register(Loops)
        job_id = scheduler.enqueue("loops").id
        assert scheduler.run_pending().completed == 1
        assert scheduler.get_job(job_id).state is JobState.COMPLETED
    assert found == []


def test_a_role_that_may_only_read_and_write(play: Play, eventually: Callable[..., Any]) -> None:
    """A service's role needs no right to create anything: jobs run, and housekeeping goes on without a failure."""
    role = f"pgscheduler_test_{secrets.token_hex(6)}"
    play.db.execute(f"create role {role}")
    try:
        play.db.execute(f"grant select, insert, update, delete on all tables in schema public to {role}")
        play.db.execute(f"revoke create on schema public from public, {role}")
        with Scheduler(
            play.config(dsn=make_conninfo(play.direct_dsn, options=f"-c role={role}"))
        ) as scheduler:
            scheduler.register(Plain)
            scheduler.start()
            assert scheduler.wait(scheduler.enqueue("plain"), timeout=30).state is JobState.COMPLETED
            loops = eventually(
                lambda: (
                    (found := scheduler.node_stats()["loops"])["maintenance"]["last_success_seconds"]
                    is not None
                    and found
                ),
                timeout=30,
            )
            assert {name: loop["failures"] for name, loop in loops.items() if loop["failures"]} == {}
            assert len(scheduler.runs(name="plain")) == 1
    finally:
        play.db.execute(f"drop owned by {role}")
        play.db.execute(f"drop role {role}")


def test_a_constructor_that_raises_stores_nothing(play: Play) -> None:
    """A class that cannot be instantiated is refused with its own error, at registration."""

    class Broken(Job):
        def __init__(self) -> None:
            raise OSError("no such file")

        def run(self, ctx: RunContext) -> None:
            pass

    with pytest.raises(OSError, match="no such file"):
        play.scheduler.schedule(Broken)  # type: ignore[arg-type]
    assert play.scheduler.jobs() == []


def test_wrong_database_is_named(play: Play) -> None:
    """A database that does not exist is reported as unreachable, with PostgreSQL's own words."""
    with pytest.raises(ConnectionError, match=r"cannot connect.*does not exist"):
        play.init(database_dsn(play.dsn, "no_such_database"))
