"""P12: the database's clock decides; a node whose own clock is wrong runs nothing early, late or twice."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog

import pgscheduler
from pgscheduler import Job, JobConfig, JobState, Scheduler, SchedulerConfig

SILENT = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
PACKAGE = Path(pgscheduler.__file__).parent

NODE = """
import sys, time
from datetime import timedelta
import structlog
from pgscheduler import Every, Job, JobConfig, Scheduler, SchedulerConfig
from tests.support.processes import commands, emit

class Tick(Job):
    config = JobConfig.recurring("tick", Every(timedelta(seconds=1)))
    def run(self, ctx):
        emit("tick", at=ctx.scheduled_at.isoformat(), wall=time.time())

class Once(Job):
    def run(self, ctx):
        emit("once", n=ctx.parameters, attempt=ctx.attempt)

class Long(Job):
    def run(self, ctx):
        emit("long", attempt=ctx.attempt)
        emit("long over", whole=ctx.wait(4), deadline=str(ctx.deadline))

if __name__ == "__main__":
    silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
    scheduler = Scheduler(SchedulerConfig(dsn=sys.argv[1], logger=silent, run_immediately=True,
                                          heartbeat_interval=0.3, no_heartbeat_timeout=60, shutdown_timeout=3))
    scheduler.init()
    if sys.argv[2] == "tick":
        scheduler.schedule(Tick())
    else:
        scheduler.register({"once": Once, "long": Long}[sys.argv[2]])
    scheduler.start()
    emit("ready", wall=time.time())
    for order in commands():
        scheduler.enqueue("once", order["n"], delay=timedelta(seconds=order["delay"]))
        emit("enqueued")
"""


def config(dsn: str) -> SchedulerConfig:
    return SchedulerConfig(dsn=dsn, logger=SILENT, heartbeat_interval=0.3, no_heartbeat_timeout=60)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_node_with_a_wrong_clock_runs_every_occurrence_once_and_on_time(
    dsn: str, db: Any, nodes: Any, skewed_clock: Any, eventually: Any, hours: int
) -> None:
    """Next to a good node, one whose clock is an hour off, and is stepped while it runs, starts each occurrence
    once, none of them early, and each is the one that the schedule asked for."""
    clock = skewed_clock(hours * 3600)
    wrong = nodes(NODE, dsn, "tick", env=clock.env)
    seen = wrong.wait_for("tick", timeout=30)
    off = seen["wall"] - datetime.fromisoformat(seen["at"]).timestamp()
    assert abs(off - hours * 3600) < 60  # the premise: its clock is wrong indeed
    good = nodes(NODE, dsn, "tick")
    good.wait_for("ready", timeout=30)
    clock.set(-hours * 3600)
    count = "select count(*) from pgscheduler_runs where outcome = 'completed'"
    eventually(lambda: db.execute(count).fetchone()[0] >= 6, timeout=40)

    runs = db.execute(
        "select scheduled_at, started_at, outcome from pgscheduler_runs order by scheduled_at"
    ).fetchall()
    occurrences = [at for at, _, _ in runs]
    assert len(set(occurrences)) == len(occurrences)
    assert all(b - a == timedelta(seconds=1) for a, b in pairwise(occurrences))
    assert all(at <= begun < at + timedelta(minutes=10) for at, begun, how in runs if how == "completed")
    assert db.execute(
        "select max(scheduled_at) < clock_timestamp() + interval '2 s' from pgscheduler_jobs"
    ).fetchone() == (True,)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_delay_given_by_a_node_with_a_wrong_clock_is_kept(
    dsn: str, nodes: Any, skewed_clock: Any, eventually: Any, hours: int
) -> None:
    """What such a node stores for later is due then by the database's clock, and it runs it then."""
    node = nodes(NODE, dsn, "once", env=skewed_clock(hours * 3600).env)
    node.wait_for("ready", timeout=30)
    with Scheduler(config(dsn)) as client:
        node.send({"n": 1, "delay": 3600})
        node.send({"n": 2, "delay": 1})
        for _ in range(2):
            node.wait_for("enqueued")

        node.wait_for("once", n=2, timeout=20)
        eventually(
            lambda: client.runs(outcome="completed"), describe="the run, which has just begun, to be recorded"
        )

        (later,) = client.jobs(state="pending")
        assert (later.parameters, node.seen("once", n=1)) == (1, [])
        assert timedelta(minutes=50) < later.run_at - client._store.now() <= timedelta(hours=1)
        (run,) = client.runs(outcome="completed")
        assert run.started_at is not None
        assert run.started_at >= run.scheduled_at


@pytest.mark.parametrize("hours", [1, -1])
def test_a_node_with_a_wrong_clock_steals_no_living_job(
    dsn: str, nodes: Any, skewed_clock: Any, hours: int
) -> None:
    """A long job of a good node is left alone by one whose clock is off, and the other way round."""
    clock = skewed_clock(hours * 3600)
    with Scheduler(config(dsn)) as client:
        owner = nodes(NODE, dsn, "long", env=clock.env)
        job = client.enqueue("long", timeout=timedelta(minutes=5))
        owner.wait_for("long", timeout=30)
        other = nodes(NODE, dsn, "long")
        other.wait_for("ready", timeout=30)
        clock.set(-hours * 3600)  # in the middle of the run

        over = owner.wait_for("long over", timeout=30)

        assert client.wait(job, timeout=20).state is JobState.COMPLETED
        assert [str(run.outcome) for run in client.runs(job.id)] == ["completed"]
        assert over["whole"] is True  # neither cut short nor fenced by the step
        assert other.seen("long") == []
        # ctx.deadline too is told by the database's clock.
        (run,) = client.runs(job.id)
        assert run.started_at is not None
        assert abs(
            datetime.fromisoformat(over["deadline"]) - run.started_at - timedelta(minutes=5)
        ) < timedelta(seconds=5)


class Noop(Job):
    def run(self, ctx: Any) -> None: ...


def test_the_sql_function_is_the_clock(dsn: str, db: Any) -> None:
    """Moving <prefix>now() moves everything: what is due, what is stalled, and what is recorded as when."""
    with Scheduler(config(dsn)) as node:
        node.register(Noop)
        job = node.schedule(Noop(JobConfig(name="noop", delay=timedelta(days=2))))
        assert node.run_pending().claimed == 0
        db.execute(
            "create or replace function pgscheduler_now() returns timestamptz language plpgsql stable as"
            " $$ begin return clock_timestamp() + interval '3 days'; end $$"
        )
        assert node.run_pending().completed == 1
        (run,) = node.runs(job.id)
        assert run.finished_at > datetime.now(UTC) + timedelta(days=2)


WALL = re.compile(
    r"(?:\w+\.)*(?:datetime|date)\.(?:now|utcnow|today|fromtimestamp|utcfromtimestamp)"
    r"|(?:\w+\.)*time\.(?:time|time_ns|localtime|gmtime|ctime|strftime)|(?:time_ns|utcnow|localtime|gmtime)"
)
# What people read, and servers that do not coordinate anything: (file, call).
ALLOWED_FILES = {"cli/cron.py", "doctor/_facts.py", "embedded.py"}
ALLOWED_FOLDERS = {"demo", "web"}


def test_the_package_never_asks_a_nodes_wall_clock() -> None:
    """No call of datetime.now, time.time and their kin outside what only shows times to people."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        if path.as_posix() in ALLOWED_FILES or path.parts[0] in ALLOWED_FOLDERS:
            continue
        # References too, so that `clock = time.time` is found.
        found += [
            (str(path), node.lineno, ast.unparse(node))
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute | ast.Name) and WALL.fullmatch(ast.unparse(node))
        ]
    assert found == []


def test_the_statements_ask_the_clock_function_only() -> None:
    """No statement asks PostgreSQL's own now() or its kin, but the function that wraps the clock."""
    text = {f.name: f.read_text(encoding="utf-8") for f in PACKAGE.rglob("*.sql")}
    assert len(text) > 20
    other = re.compile(
        r"(?<!\{)\b(now\s*\(\s*\)|current_timestamp|localtimestamp|current_date|"
        r"transaction_timestamp|statement_timestamp|clock_timestamp)",
        re.IGNORECASE,
    )
    found = []
    for name, sql in text.items():
        for line in sql.splitlines():
            code = line.partition("--")[0]
            wraps = re.search(r"begin return (pg_catalog\.)?clock_timestamp\(\); end", code)
            if other.search(code) and not wraps:
                found.append((name, line))
    assert found == []
