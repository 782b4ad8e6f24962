"""How fast is this database, for jobs? What `pgbench` is for PostgreSQL, this is for the scheduler on it.

It stores jobs one by one and in bulk, drains them with one node, and measures how soon an idle node starts a job;
beside it, where the program is at hand, pgbench runs the scheduler's own SQL. The difference is what Python costs.
It works under a prefix of its own and leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import structlog
from psycopg import conninfo

from . import _check as check
from ._migrate import remove
from ._sql import Names, Statements
from ._store import Store
from .config import SchedulerConfig
from .errors import InvalidValueError, PgSchedulerError, SchemaError, WaitTimeoutError
from .job import Job, JobConfig
from .scheduler import Scheduler

__all__ = ["PREFIX", "Measured", "Report", "measure", "pgbench_drain", "pgbench_enqueue", "same_sql_drain"]

PREFIX = "pgscheduler_bench_"  # the default: tables of its own, made and removed by each benchmark
NAME = "pgscheduler_bench"  # of its jobs
BATCH = 500  # jobs per claim in pgbench; a node under load takes as many
ONE_BY_ONE = 1_000  # jobs, or as many as are stored in `ONE_SECONDS`
ONE_SECONDS = 5.0
PATIENCE = 600.0  # seconds for a drain; a database that needs more has told all there is to tell


@dataclasses.dataclass(frozen=True)
class Measured:
    """One figure, and what pgbench did with the same SQL; None where pgbench is not at hand, or has no such thing."""

    what: str
    unit: str
    value: float
    pgbench: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if not self.pgbench else self.value / self.pgbench


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured, and the facts without which the figures mean nothing."""

    facts: dict[str, Any]
    measured: list[Measured]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "facts": self.facts,
            "measured": [{**dataclasses.asdict(one), "ratio": one.ratio} for one in self.measured],
        }


def measure(
    config: SchedulerConfig,
    *,
    jobs: int = 20_000,
    pickups: int = 200,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure on the database of `config`, with its `max_concurrent_jobs`; takes ten to thirty seconds.

    `jobs` are stored in bulk and drained, `pickups` are stored one at a time for an idle node. `say` hears what is
    being done. Raises InvalidValueError if there are jobs or history under the table prefix.
    """
    check.integer("jobs", jobs, 1_000, 10_000_000)
    check.integer("pickups", pickups, 10, 100_000)
    quiet = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
    config = dataclasses.replace(config, create_schema=True, run_immediately=True, logger=quiet)
    if config.dsn is None:
        raise InvalidValueError(
            "pool", config.pool, "must not be given for a benchmark: pgbench needs the dsn"
        )
    store = Store(config.dsn, Names(config.schema, config.table_prefix))
    with _tables(store, config), psycopg.connect(store.conninfo, autocommit=True) as connection:
        facts = _facts(connection, config)
        with Scheduler(config) as scheduler:
            say("storing jobs one by one")
            one = _enqueue_one(scheduler)
            _clean(connection, store)
            say(f"storing {jobs:,} jobs at once")
            bulk = _enqueue_bulk(scheduler, jobs)
            say("running them")
            drained = _drain(scheduler, jobs)
            say(f"starting {pickups} jobs on an idle node")
            waits = _pickups(connection, store, pickups)
        program = _pgbench_program()
        facts["pgbench"] = program
        one_sql = drain_sql = None
        if program is not None:
            say("the same SQL in pgbench")
            one_sql = pgbench_enqueue(program, store.conninfo, store.sql)
            _clean(connection, store)
            drain_sql = pgbench_drain(program, store, jobs)
    return Report(
        facts,
        [
            Measured("enqueue, one commit each", "jobs/s", round(one), one_sql and round(one_sql)),
            Measured("enqueue in bulk", "jobs/s", round(bulk)),
            Measured("drain, claim to history", "jobs/s", round(drained), drain_sql and round(drain_sql)),
            Measured("enqueue to start, half of the jobs", "ms", round(_share(waits, 0.5), 2)),
            Measured("enqueue to start, 99 of 100", "ms", round(_share(waits, 0.99), 2)),
        ],
    )


# --- the tables -------------------------------------------------------------------------------------------------


@contextmanager
def _tables(store: Store, config: SchedulerConfig) -> Iterator[None]:
    """Tables without a job in them; afterwards they are as they were, or gone if they were not there."""
    store.open()
    try:
        occupied = _occupied(store)
        if occupied:
            raise InvalidValueError(
                "table_prefix",
                config.table_prefix,
                "must hold no jobs and no history, for the benchmark would run beside them and be mixed with them",
            )
        try:
            yield
        finally:
            with psycopg.connect(store.conninfo, autocommit=True) as connection:
                if occupied is None:
                    remove(connection, store.names)
                else:
                    _clean(connection, store)
    finally:
        store.close()


def _occupied(store: Store) -> bool | None:
    """Whether the tables hold anything; None if there are none."""
    try:
        row = store.row("bench_occupied")
    except SchemaError:
        return None
    assert row is not None
    return bool(next(iter(row.values())))


def _clean(connection: psycopg.Connection[Any], store: Store) -> None:
    connection.execute(store.sql["bench_clean"], {"name": NAME})


def _facts(connection: psycopg.Connection[Any], config: SchedulerConfig) -> dict[str, Any]:
    row = connection.execute(
        "select current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')"
    ).fetchone()
    assert row is not None
    trips = []
    for _ in range(50):
        begun = time.perf_counter()
        connection.execute("select 1")
        trips.append((time.perf_counter() - begun) * 1000)
    return {
        "postgresql": row[0],
        "fsync": row[1],
        "synchronous_commit": row[2],
        "round_trip_ms": round(_share(trips, 0.5), 2),
        "psycopg": psycopg.pq.__impl__,
        "max_concurrent_jobs": config.max_concurrent_jobs,
    }


# --- the scheduler ------------------------------------------------------------------------------------------------


class _Noop(Job):
    """Does nothing; the last one tells."""

    config = JobConfig(name=NAME)
    lock: ClassVar[threading.Lock] = threading.Lock()
    ran: ClassVar[int] = 0
    first: ClassVar[float] = 0.0
    started: ClassVar[threading.Event] = threading.Event()

    def run(self, ctx: Any) -> None:  # noqa: ARG002
        at = time.perf_counter()
        with _Noop.lock:
            if _Noop.ran == 0:
                _Noop.first = at
            _Noop.ran += 1
        _Noop.started.set()


def _enqueue_one(scheduler: Scheduler) -> float:
    begun, stored = time.perf_counter(), 0
    while stored < ONE_BY_ONE and time.perf_counter() - begun < ONE_SECONDS:
        scheduler.enqueue(NAME)
        stored += 1
    return stored / (time.perf_counter() - begun)


def _enqueue_bulk(scheduler: Scheduler, jobs: int) -> float:
    begun = time.perf_counter()
    scheduler.enqueue_many(NAME, [{}] * jobs)
    return jobs / (time.perf_counter() - begun)


def _drain(scheduler: Scheduler, jobs: int) -> float:
    _Noop.ran = 0
    scheduler.register(_Noop)
    scheduler.start()
    deadline = time.monotonic() + PATIENCE
    while _Noop.ran < jobs or scheduler.node_stats()["held"]:
        if time.monotonic() > deadline:
            raise WaitTimeoutError(f"{_Noop.ran} of {jobs} jobs ran in {PATIENCE:.0f} s")
        time.sleep(0.002)  # until the last outcome is in history, and the node holds nothing
    return jobs / (time.perf_counter() - _Noop.first)


def _pickups(connection: psycopg.Connection[Any], store: Store, count: int) -> list[float]:
    """Milliseconds from just before a job is stored, on another connection, to its first line.

    Not from the answer of the commit: the job's thread may be running before this one has heard it.
    """
    statement = f"select {store.names.identifier('enqueue').as_string(None)}(%s)"
    waits = []
    for _ in range(count):
        _Noop.ran = 0
        _Noop.started.clear()
        asked = time.perf_counter()
        connection.execute(statement, [NAME])
        if not _Noop.started.wait(60):
            raise WaitTimeoutError(
                "a job was not started within 60 s: does another node take this prefix's jobs?"
            )
        waits.append((_Noop.first - asked) * 1000)
        time.sleep(0.01)  # the node shall be idle again
    return waits


def _share(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


# --- pgbench ------------------------------------------------------------------------------------------------------


def pgbench_enqueue(program: str, dsn: str, statements: Statements) -> float:
    """Jobs a second that pgbench stores on one connection with `insert.sql`, one commit each."""
    script = _filled(
        statements["insert"], name=f"'{NAME}'", priority="5", run_at="null", delay="null", parameters="null",
        options="null", notify="false",
    )  # fmt: skip
    return _pgbench(program, dsn, script, ONE_BY_ONE)


def pgbench_drain(program: str, store: Store, jobs: int, clients: int = 1) -> float:
    """Jobs a second that pgbench claims and completes with `claim.sql` and `complete.sql`, `BATCH` at a time."""
    rounds = jobs // BATCH // clients
    with psycopg.connect(store.conninfo, autocommit=True) as connection:
        connection.execute(store.sql["bench_fill"], {"name": NAME, "count": rounds * clients * BATCH})
    return same_sql_drain(program, store.conninfo, store.sql, NAME, rounds, clients)


def same_sql_drain(
    program: str, dsn: str, statements: Statements, name: str, rounds: int, clients: int
) -> float:
    """The same for jobs that are there; the claim hands on ids instead of whole rows."""
    claim, _, _ = statements["claim"].rpartition("\nselect t.id")
    claim = _filled(
        claim, everything="true", priorities="'{}'", marks="'{}'", names=f"'{{{name}}}'", slots=str(BATCH),
        once="0", often="0", until="null",
        token="7",  # noqa: S106 - no secret
        node="'00000000-0000-0000-0000-000000000007'",
    )  # fmt: skip
    zeros = f"array_fill(0.0::float8, array[{BATCH}])"
    complete = _filled(
        statements["complete"], ids=":ids", tokens=f"array_fill(7::bigint, array[{BATCH}])", started=zeros, ended=zeros
    )  # fmt: skip
    script = f"{claim}\nselect array_agg(t.id order by t.id)::text as ids from taken t \\gset\n{complete};\n"
    return BATCH * _pgbench(program, dsn, script, rounds, clients)


def _filled(statement: str, **values: str) -> str:
    """A statement with these values, and without comments, which pgbench would search for its variables."""
    bare = re.sub(r"--.*", "", statement)
    return re.sub(r"%\((\w+)\)s", lambda found: values[found.group(1)], bare)


def _pgbench(program: str, dsn: str, script: str, rounds: int, clients: int = 1) -> float:
    """Transactions a second, connections not counted. A password travels in the environment, not in the arguments."""
    given = conninfo.conninfo_to_dict(dsn)
    environment = dict(os.environ)
    if (password := given.pop("password", None)) is not None:
        environment["PGPASSWORD"] = str(password)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "script.sql"
        file.write_text(script, encoding="utf-8")
        done = subprocess.run(  # noqa: S603 - our own arguments
            [program, "-n", "-M", "prepared", "-c", str(clients), "-j", str(clients), "-t", str(rounds), "-f", file,
             conninfo.make_conninfo("", **given)],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if done.returncode != 0 or found is None or "aborted" in done.stderr:
        raise PgSchedulerError(f"pgbench failed: {' '.join(done.stderr.split())[-500:]}")
    return float(found.group(1))


def _pgbench_program() -> str | None:
    """The path of a pgbench: the PATH's, the distribution's newest, or that of the `embedded` extra."""
    found = shutil.which("pgbench")
    if found is not None:
        return found
    places = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/pgbench"), key=lambda p: int(p.parts[4]), reverse=True
    )
    try:
        from .embedded import _binaries

        places.append(_binaries(None) / "pgbench")
    except PgSchedulerError:
        pass
    return next((str(place) for place in places if place.exists()), None)
