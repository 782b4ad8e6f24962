"""Rows that somebody wrote by hand, or another program: none stops the others, hides them, or runs something else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgscheduler import (
    Job,
    JobConfig,
    JobNotFoundError,
    JobNotRunningError,
    JobRecord,
    JobState,
    Outcome,
    RunContext,
    Scheduler,
    SchedulerConfig,
)
from pgscheduler.web import Server, Tokens, create_app
from tests.engine.conftest import Quiet
from tests.support import eventually

DIGITS = "1" + "0" * 5000  # more than Python reads as an integer
UNREADABLE = ("infinity", "-infinity", "294000-01-01Z", "4713-01-01Z BC")  # times that Python cannot hold
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


class Plain(Job):
    def run(self, ctx: RunContext) -> Any:
        return "ran"


@dataclass
class World:
    """A node at work, its REST, and a hand in its tables."""

    node: Scheduler
    db: psycopg.Connection[Any]
    rest: httpx.Client

    def ask(self, path: str) -> Any:
        answer = self.rest.get(f"/api/v1/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def insert(self, table: str, **values: Any) -> None:
        """A row by hand. Its values are text: PostgreSQL knows more times than Python's types."""
        statement = sql.SQL("insert into {} ({}) values ({})").format(
            sql.Identifier(f"pgscheduler_{table}"),
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join([sql.Placeholder()] * len(values)),
        )
        self.db.execute(statement, list(values.values()))

    def read_everything(self, job: int | None = None, run: str | None = None) -> None:
        """Every verb that only reads answers, with what can be sent as JSON."""
        node = self.node
        found = [*node.jobs(limit=1000), *node.runs(limit=1000), *node.nodes()]
        node.count_jobs()
        node.count_runs()
        node.stats()
        for path in ("jobs", "jobs/count", "runs", "runs/count", "nodes", "stats"):
            self.ask(path)
        if job is not None:
            one = node.get_job(job)
            assert one.id == self.ask(f"jobs/{job}")["id"] == job
            node.queue_position(job)
            node.runs(job)
            found.append(one)
        if run is not None:
            node.logs(run)
            assert self.ask(f"runs/{run}")["id"] == run
            found.append(node.get_run(run))
        for each in found:
            json.dumps(each.to_dict())

    def still_works(self) -> None:
        """The next job runs, and no loop has failed."""
        assert self.node.wait(self.node.enqueue("good"), 20).state is JobState.COMPLETED
        assert {name for name, loop in self.node.node_stats()["loops"].items() if loop["failures"]} == set()


@pytest.fixture(scope="module")
def world(server: Any, template: str) -> Iterator[World]:
    """One node for all of them: what an earlier row broke, a later test would see."""
    with server.database(template) as dsn:
        config = SchedulerConfig(
            dsn=dsn,
            logger=Quiet(),
            run_immediately=True,
            heartbeat_interval=1,
            no_heartbeat_timeout=60,
            job_check_interval=0.2,
        )
        with (
            psycopg.connect(dsn, autocommit=True) as db,
            Scheduler(config) as node,
            Server(create_app(node, tokens=Tokens()), port=0) as server,
            httpx.Client(base_url=server.url) as rest,
        ):
            node.register(Plain(JobConfig(name="bad")))
            node.register(Plain(JobConfig(name="good")))
            node.start()
            yield World(node, db, rest)


BAD = [
    ("parameters", f'{{"a": {DIGITS}}}'),
    ("parameters", "null"),
    ("parameters", "[[[]]]"),
    ("options", "not json"),
    ("options", "[1]"),
    ("options", "5"),
    ("options", "null"),
    ("options", "[" * 100_000),
    ("options", '{"retries": "x", "timeout": [], "backoff": 7, "isolation": 5}'),
    ("options", '{"isolation": "greenlet", "nonsense": 1}'),
    ("options", '{"retries": -5, "timeout": -3}'),
    ("options", '{"retries": 1e400, "timeout": 1e300}'),
    ("options", '{"misfire": "never", "catchup": -1, "jitter": "x", "max_stalls": 0}'),
    ("options", '{"backoff": {"initial": -1, "factor": 0}}'),
    ("schedule", "not json"),
    ("schedule", "[1]"),
    ("schedule", "null"),
    ("schedule", "{}"),
    ("schedule", '{"cron": "61 * * * *"}'),
    ("schedule", '{"cron": 5, "timezone": "UTC"}'),
    ("schedule", '{"cron": "* * * * *", "timezone": "Nope/Nope"}'),
    ("schedule", '{"cron": "* * * * *", "timezone": "../../etc/passwd"}'),
    ("schedule", '{"every": -5}'),
    ("schedule", '{"every": 0}'),
    ("schedule", '{"every": 1e400}'),
    ("schedule", '{"custom": "os.system", "value": "true"}'),
    ("after_run", "explode"),
    ("priority", "-32768"),
    ("failures", "-3"),
    ("result", f'{{"a": {DIGITS}}}'),
    ("progress", f"[{DIGITS}]"),
    ("last_error", "\x1b[2J\u202e"),
    ("cancel_requested", "true"),
    ("options", '{"metadata": 5}'),
    *((column, moment) for column in ("created_at", "completed_at") for moment in (*UNREADABLE, "epoch")),
    *((column, "infinity") for column in ("last_run", "last_success", "last_failure", "claimed_at")),
    *((column, "-infinity") for column in ("heartbeat_at", "last_run")),
]


@pytest.mark.parametrize(("column", "value"), BAD, ids=[f"{column}-{value[:30]}" for column, value in BAD])
def test_a_bad_row_harms_nobody_else(world: World, column: str, value: str) -> None:
    """Others run beside it, every listing shows it with the others, it can be deleted, and no loop fails."""
    node, db = world.node, world.db
    db.execute("delete from pgscheduler_jobs where name = 'bad'")  # if an earlier row failed its test
    later = {"run_at": "2100-01-01Z", "scheduled_at": "2100-01-01Z", "created_at": "now"}
    world.insert("jobs", **{"name": "bad", "key": "bad", **later, column: value})
    bad = node.get_job(("bad", "bad")).id
    world.read_everything(bad)

    # Before the good one in the claim's order, and due.
    due = "update pgscheduler_jobs set run_at = now() - interval '1 minute', scheduled_at = now() - interval '1 minute'"
    db.execute(due)
    good = node.enqueue("good")
    assert node.wait(good, 20).state is JobState.COMPLETED
    assert good.id in {run.job_id for run in node.runs(limit=1000)}
    world.read_everything(bad)
    with contextlib.suppress(JobNotFoundError, JobNotRunningError):  # it has ended
        node.delete(bad)

    left = "select count(*) from pgscheduler_jobs"
    eventually(lambda: db.execute(left).fetchone() == (0,), describe="the bad row to be gone")
    assert {name for name, loop in node.node_stats()["loops"].items() if loop["failures"]} == set()
    assert "os.system" not in str(node.runs(bad))


RUN = {
    "job_id": "77777",
    "token": "5",
    "scheduled_at": "now",
    "started_at": "now",
    "finished_at": "now",
    "attempt": "1",
    "outcome": "completed",
    "name": "bad",
    "key": "bad",
}
BAD_RUNS = [
    *((column, moment) for column in ("scheduled_at", "started_at", "finished_at") for moment in UNREADABLE),
    *(("outcome", word) for word in ("nonsense", "", "\x1b[2J\u202e", "x" * 100_000)),
    ("attempt", "-5"),
    ("result", f"[{DIGITS}]"),
    ("parameters", f'{{"a": {DIGITS}}}'),
]


@pytest.mark.parametrize(
    ("column", "value"), BAD_RUNS, ids=[f"{column}-{value[:30]}" for column, value in BAD_RUNS]
)
def test_a_bad_line_of_history_hides_nothing(world: World, column: str, value: str) -> None:
    """History shows it with the others, by every verb; what it says of its job is read too, and jobs go on running."""
    good = world.node.wait(world.node.enqueue("good"), 20)
    world.insert("runs", **{**RUN, column: value})
    try:
        assert {good.id, 77777} <= {run.job_id for run in world.node.runs(limit=1000)}
        (run,) = world.node.runs(77777)
        world.read_everything(77777, run.id)
        if column == "outcome":
            assert (run.outcome, world.ask(f"runs/{run.id}")["outcome"]) == (Outcome.FAILED, "failed")
            assert (run.reason or "").startswith("unknown outcome '")
            assert (run.reason or "").isprintable()
            assert len(run.reason or "") < 120
            assert world.node.get_job(77777).state is JobState.FAILED
        world.still_works()
    finally:
        world.db.execute("delete from pgscheduler_runs where job_id = 77777")


NODE = {
    "host": "h",
    "pid": "1",
    "version": "x",
    "slots": "1",
    "names": "{}",
    "started_at": "now",
    "heartbeat_at": "now",
    "no_heartbeat_timeout": "60 s",
}
BAD_NODES = [
    *((column, moment) for column in ("started_at", "heartbeat_at", "stopped_at") for moment in UNREADABLE),
    ("names", "{NULL,a}"),
    ("names", "{{a,b}}"),
]


@pytest.mark.parametrize(("column", "value"), BAD_NODES)
def test_a_bad_node_hides_no_other(world: World, column: str, value: str) -> None:
    """The list of nodes has it beside the others, and they go on."""
    id_ = "00000000-0000-0000-0000-000000000001"
    world.insert("nodes", **{**NODE, "id": id_, column: value})
    try:
        assert {id_, world.node.id} <= {node.id for node in world.node.nodes()}
        world.read_everything()
        world.still_works()
    finally:
        world.db.execute("delete from pgscheduler_nodes where id = %s", [id_])


#: Times of PostgreSQL's and what Python has instead: the nearest moment that it knows, in whichever zone it reads them.
CLAMPED = {
    "infinity": LAST,
    "-infinity": FIRST,
    "294000-01-01 00:00Z": LAST,
    "10000-01-01 03:00Z": LAST,  # in America still the year 9999
    "9999-12-31 23:59:59.999999Z": LAST,
    "9999-12-31 12:00Z": datetime(9999, 12, 31, 12, tzinfo=UTC),
    "2026-11-30 12:00Z": datetime(2026, 11, 30, 12, tzinfo=UTC),
    "0001-01-01 12:00Z": datetime(1, 1, 1, 12, tzinfo=UTC),
    "0001-01-01 00:00Z": FIRST,
    "0001-12-31 20:00Z BC": FIRST,  # in Asia already the year 1
    "4713-01-01 00:00Z BC": FIRST,
}


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_a_time_beyond_pythons_is_clamped(direct_dsn: str, db: Any, scheduler_on: Any, zone: str) -> None:
    """It is read as the first or last moment that there is, whatever the session's zone, by verbs that change too."""
    scheduler = scheduler_on(make_conninfo(direct_dsn, options=f"-c timezone={zone}"))
    for moment in CLAMPED:
        db.execute(
            "insert into pgscheduler_jobs (name, key, run_at, scheduled_at, created_at)"
            " values ('a', %s, '2100-01-01Z', '2100-01-01Z', %s)",
            [moment, moment],
        )
    assert {job.key: job.created_at for job in scheduler.jobs()} == CLAMPED
    for moment, read in CLAMPED.items():
        changed: list[JobRecord] = [
            scheduler.enqueue("a", key=moment, delay=timedelta(hours=1)),
            scheduler.pause(("a", moment)),
            scheduler.resume(("a", moment)),
            scheduler.get_job(("a", moment)),
        ]
        assert [job.created_at for job in changed] == [read] * 4, moment
