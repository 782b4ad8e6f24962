"""Two versions of the schema side by side: nodes that run while the next migration comes, and those that start after it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgscheduler import JobConfig, PgSchedulerError, Scheduler, SchedulerConfig, SchemaError, _migrate
from pgscheduler._sql import migrations
from tests.engine.conftest import Call, Quiet
from tests.support import eventually
from tests.support.postgres import execute, terminate_backends

Migration = tuple[int, str, str]

SHIPPED = migrations()
#: What the next version may bring: more columns, with and without a default, more tables and indexes; nothing goes.
COMING: Migration = (
    SHIPPED[-1][0] + 1,
    "coming",
    """
    alter table {jobs} add column coming text;
    alter table {jobs} add column sooner integer not null default 7;
    alter table {runs} add column coming jsonb;
    alter table {nodes} add column coming text;
    alter table {templates} add column coming text;
    create index on {jobs} (coming) where coming is not null;
    create table {schema}.coming (id bigint primary key);
    """,
)

STEPS = {
    "next": (SHIPPED, [*SHIPPED, COMING]),
    **({"shipped": (SHIPPED[:-1], SHIPPED)} if len(SHIPPED) > 1 else {}),
}

UPGRADE = """
import json, sys
from pgscheduler import Job, Scheduler, SchedulerConfig, _migrate
from tests.support.processes import commands, emit

class Work(Job):
    def run(self, ctx):
        return "new"

class Quiet:
    def debug(self, event, **facts): ...
    info = warning = error = debug

known = [tuple(each) for each in json.loads(sys.argv[2])]
_migrate.migrations = lambda: known
config = SchedulerConfig(dsn=sys.argv[1], create_schema=True, logger=Quiet(), run_immediately=True,
                         heartbeat_interval=1, no_heartbeat_timeout=60)
scheduler = Scheduler(config)
emit("ready")
next(commands())
scheduler.init()
scheduler.register(Work)
scheduler.start()
emit("started")
for _ in commands():
    pass
emit("shut down", clean=scheduler.shutdown())
"""


class Load:
    """Stores jobs and asks about them, one call after the other, until it is told to stop."""

    def __init__(self, scheduler: Scheduler, templates: bool) -> None:
        self._scheduler = scheduler
        # A program's own connection, as its transactions have it: kept, and with what psycopg prepared on it.
        self._own = psycopg.connect(str(scheduler.config.dsn))
        self._templates = templates  # whether the schema has some already
        self._stopping = threading.Event()
        self.stored: list[int] = []
        self.errors: list[PgSchedulerError | psycopg.Error] = []
        self._threads = [
            threading.Thread(target=self._repeat, args=[act]) for act in (self._store, self._ask)
        ]
        for thread in self._threads:
            thread.start()

    def _repeat(self, act: Callable[[], None]) -> None:
        while not self._stopping.wait(0.005):
            try:
                act()
            except (PgSchedulerError, psycopg.Error) as error:
                self.errors.append(error)

    def _store(self) -> None:
        self.stored += [self._scheduler.enqueue("work", {"n": 1}).id for _ in range(5)]

    def _ask(self) -> None:
        """Every sort of statement that answers whole rows, often enough to be prepared."""
        scheduler = self._scheduler
        record = scheduler.enqueue("elsewhere", key="k", delay=3600)
        assert scheduler.get_job(record).id == record.id
        scheduler.jobs(limit=3)
        scheduler.runs(limit=3)
        scheduler.stats()
        scheduler.nodes()
        scheduler.pause(record)
        scheduler.resume(record)
        scheduler.cancel(record)
        scheduler.get_job(record)
        for if_exists in ("update", "keep"):
            with self._own.transaction():
                options = {"key": "own", "delay": 3600, "if_exists": if_exists}
                scheduler.enqueue("elsewhere", connection=self._own, **options)
        if self._templates:
            scheduler.templates.list()
            scheduler.templates.update("t", retries=1)
            scheduler.templates.get("t")

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        self._own.close()


@pytest.fixture
def load() -> Iterator[Callable[[Scheduler, bool], Load]]:
    made: list[Load] = []

    def make(scheduler: Scheduler, templates: bool) -> Load:
        made.append(Load(scheduler, templates))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.mark.timeout(400)  # eight processes are started
@pytest.mark.parametrize("step", STEPS)
def test_nodes_go_on_while_the_next_migration_comes(
    direct_empty_dsn: str,
    nodes: Any,
    scheduler_on: Any,
    load: Callable[[Scheduler, bool], Load],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Eight nodes of the next version start at once under load: the schema is theirs, and the node of this version
    goes on, before and after it had to connect anew; no call fails, no run is lost, repeated or counted as a failure."""
    known, coming = STEPS[step]
    monkeypatch.setattr(_migrate, "migrations", lambda: known)
    old = scheduler_on(
        direct_empty_dsn,
        create_schema=True,
        no_heartbeat_timeout=60,
        register=(Call(JobConfig(name="work"), lambda _: "old"),),
    )
    old.start()
    templates = step == "next"
    if templates:
        old.templates.create("t", handler="elsewhere")
    loads = [load(old, templates)]
    eventually(lambda: len(old.runs(name="work", limit=100)) == 100, timeout=60)
    processes = [nodes(UPGRADE, direct_empty_dsn, json.dumps(coming)) for _ in range(8)]
    for process in processes:
        process.wait_for("ready", timeout=60)
    for process in processes:
        process.send({"go": True})
    for process in processes:
        process.wait_for("started", timeout=60)

    by = "select count(*) from pgscheduler_runs where result = to_jsonb(%s::text) and started_at > %s"
    for _ in range(2):
        ((now,),) = execute(direct_empty_dsn, "select clock_timestamp()")
        for version in ("old", "new"):
            eventually(
                lambda version=version, now=now: execute(direct_empty_dsn, by, [version, now])[0][0] > 20,
                timeout=60,
                describe=f"runs of the {version} version; {old.node_stats()}",
            )
        # No call is under way that a cut could harm: only the loops must find back.
        loads[-1].stop()
        terminate_backends(direct_empty_dsn)
        old.jobs(limit=1)  # a read finds out that the pool's connections are gone
        loads.append(load(old, templates))
    loads[-1].stop()
    for process in processes:
        process.hang_up()
        assert process.wait_for("shut down", timeout=60)["clean"] is True

    left = "select count(*) from pgscheduler_jobs where name = 'work'"
    eventually(lambda: execute(direct_empty_dsn, left) == [(0,)], timeout=60, describe="all jobs to end")
    assert execute(
        direct_empty_dsn, "select array_agg(version order by version) from pgscheduler_migrations"
    ) == [([number for number, _, _ in coming],)]
    ends = execute(
        direct_empty_dsn,
        "select outcome, attempt, count(*) = count(distinct job_id) from pgscheduler_runs where name = 'work' group by 1, 2",
    )
    assert ends == [("completed", 1, True)]
    stored = [job for each in loads for job in each.stored]
    done = execute(direct_empty_dsn, "select job_id from pgscheduler_runs where name = 'work'")
    assert set(stored) == {job for (job,) in done}
    assert [error for each in loads for error in each.errors] == []
    # Nothing that the node did itself failed, but for the cuts, which it told.
    troubles = {
        facts.get("error", event) for level, event, facts in old.log.lines if level in ("warning", "error")
    }
    cut = (
        "terminating connection",
        "connection is closed",
        "connection is lost",
        "server closed the connection",
    )
    assert [text for text in troubles if not any(words in text for words in cut)] == []


@pytest.mark.parametrize("create_schema", [True, False])
def test_an_older_version_that_starts_on_the_newer_schema_is_refused(
    direct_empty_dsn: str, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch, create_schema: bool
) -> None:
    """Eight at once, whether they may change the schema or not: each is told both versions, and nothing is changed."""
    with monkeypatch.context() as patch:
        patch.setattr(_migrate, "migrations", lambda: [*SHIPPED, COMING])
        scheduler_on(direct_empty_dsn, create_schema=True)
    before = execute(direct_empty_dsn, "select * from pgscheduler_migrations order by version")

    def start(_: int) -> str:
        scheduler = Scheduler(
            SchedulerConfig(dsn=direct_empty_dsn, create_schema=create_schema, logger=Quiet())
        )
        try:
            scheduler.init()
        except SchemaError as error:
            return str(error)
        finally:
            scheduler.shutdown()
        return "started"

    with ThreadPoolExecutor(8) as pool:
        said = set(pool.map(start, range(8)))
    (text,) = said
    assert (
        f"is {COMING[0]}, newer than this pgscheduler knows ({SHIPPED[-1][0]}): upgrade pgscheduler" in text
    )
    assert execute(direct_empty_dsn, "select * from pgscheduler_migrations order by version") == before


def test_a_migration_does_not_queue_everybody_behind_somebodys_long_transaction(
    direct_empty_dsn: str, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody reads the tables for long, the migration waits for its lock only for a moment at a time, so
    that jobs go on; it is applied when the reader has ended."""
    node = scheduler_on(
        direct_empty_dsn, create_schema=True, start=True, register=(Call(JobConfig(name="work")),)
    )
    monkeypatch.setattr(_migrate, "migrations", lambda: [*SHIPPED, COMING])
    with ThreadPoolExecutor(1) as pool, psycopg.connect(direct_empty_dsn) as reader:
        reader.execute("select count(*) from pgscheduler_jobs")
        upgrade = pool.submit(scheduler_on, direct_empty_dsn, create_schema=True)
        waiting = (
            "select count(*) > 0 from pg_locks where not granted and relation = 'pgscheduler_jobs'::regclass"
        )
        for _ in range(2):
            eventually(
                lambda: execute(direct_empty_dsn, waiting) == [(True,)], describe="the migration to wait"
            )
            assert str(node.wait(node.enqueue("work"), 20).state) == "completed"
        assert not upgrade.done()
        reader.rollback()
        upgrade.result(60)
    assert execute(direct_empty_dsn, "select max(version) from pgscheduler_migrations") == [(COMING[0],)]


def test_a_migration_gives_up_in_words(
    direct_empty_dsn: str, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that cannot be had for the whole patience is a SchemaError that says why, and nothing was changed."""
    scheduler_on(direct_empty_dsn, create_schema=True)
    monkeypatch.setattr(_migrate, "migrations", lambda: [*SHIPPED, COMING])
    monkeypatch.setattr(_migrate, "LOCK_PATIENCE", 0.0)
    with psycopg.connect(direct_empty_dsn) as reader:
        reader.execute("select count(*) from pgscheduler_jobs")
        with pytest.raises(SchemaError, match=r"in use.*long transaction.*nothing was changed"):
            scheduler_on(direct_empty_dsn, create_schema=True)
    assert execute(direct_empty_dsn, "select max(version) from pgscheduler_migrations") == [(SHIPPED[-1][0],)]
