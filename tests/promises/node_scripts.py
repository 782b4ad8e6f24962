"""The node that the tests of promises start, pause, kill and cut off, and what they share about it.

`start_node(nodes, dsn, names=["work"])` runs this module as a process. Its jobs write a ledger by the database's
clock, in user code, so that a promise is checked against what really ran and not against the engine's own record.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from pgscheduler import Job, JobConfig, RunContext, Schedule, Scheduler, SchedulerConfig
from tests.support import eventually
from tests.support.processes import NodeProcess, commands, emit, hears

__all__ = [
    "Caged",
    "Quiet",
    "Work",
    "accounted",
    "ask_to_end",
    "create_ledger",
    "history",
    "live",
    "overlaps",
    "quiet_config",
    "settled",
    "start_node",
    "travel",
]

LEDGER = """
create table ledger (
    id bigserial primary key, job bigint not null, name text not null, occurrence timestamptz not null,
    token bigint not null, pid integer not null, started timestamptz not null default clock_timestamp(),
    ended timestamptz
)"""

# --- for the test ------------------------------------------------------------------------------------


class Quiet:
    """A logger that keeps silent."""

    def debug(self, event: object, **facts: object) -> None: ...

    info = warning = error = critical = debug


def quiet_config(dsn: str, **settings: Any) -> SchedulerConfig:
    """A config for a scheduler inside the test's own process."""
    return SchedulerConfig(
        dsn=dsn, **{"logger": Quiet(), "run_immediately": True, "shutdown_timeout": 5, **settings}
    )


def create_ledger(dsn: str) -> None:
    """The table in which the jobs of `start_node` say that they run."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(LEDGER)


def start_node(
    nodes: Callable[..., NodeProcess],
    dsn: str,
    *,
    names: Iterable[str] = ("work",),
    ledger: str | None = None,
    beat: float = 0.4,
    timeout: float = 2.0,
    slots: int = 10,
    ready: bool = True,
    shutdown: float | None = None,
) -> NodeProcess:
    """A node process that knows these names; `ledger` is another way to the database than the node's own.

    With `shutdown`, that many seconds for its jobs to end, it hears no orders and ends in good order at SIGTERM.
    """
    options = {
        "names": list(names),
        "ledger": ledger or dsn,
        "beat": beat,
        "timeout": timeout,
        "slots": slots,
        "shutdown": shutdown,
    }
    node = nodes(__name__, dsn, json.dumps(options))
    if ready:
        node.wait_for("ready", timeout=60)
    return node


def ask_to_end(node: NodeProcess) -> None:
    """SIGTERM for a node that ends in good order at it: once it hears it, which is after it has begun to work."""
    eventually(lambda: hears(node.pid, signal.SIGTERM), timeout=60, describe=node.report)
    node.terminate()


def live(db: psycopg.Connection[Any], job: int) -> dict[str, Any] | None:
    """A job's live row, with everything in it; None when it has left."""
    row = db.execute("select to_jsonb(j) from pgscheduler_jobs j where id = %s", [job]).fetchone()
    return None if row is None else row[0]


def history(db: psycopg.Connection[Any], job: int) -> list[tuple[str, int | None]]:
    """(outcome, token) of each line of a job's history, in order."""
    query = "select outcome, token from pgscheduler_runs where job_id = %s order by finished_at, attempt"
    return db.execute(query, [job]).fetchall()


def settled(node: Scheduler) -> bool:
    """Whether a started node in this process has all its connections, has made its partitions, and its dispatcher sleeps.

    What is sent next is then what the test makes it send, on a connection that is there.
    """
    loops = node.node_stats()["loops"].values()
    sleeps = (node._node.dispatcher._look_at or 0) > time.monotonic() + 5
    return sleeps and all(loop["last_success_seconds"] is not None for loop in loops)


def travel(db: psycopg.Connection[Any], ahead: timedelta) -> None:
    """From now on the clock that decides is this far ahead of the true one."""
    db.execute(
        "create or replace function pgscheduler_now() returns timestamptz language plpgsql stable parallel safe"
        f" as $$ begin return clock_timestamp() + interval '{ahead.total_seconds():f} seconds'; end $$"
    )


def accounted(db: psycopg.Connection[Any], job: int, schedule: Schedule) -> Counter[datetime]:
    """How often history says of each occurrence what became of it; a range of skipped ones is unfolded."""
    rows = db.execute(
        "select scheduled_at, outcome, result from pgscheduler_runs where job_id = %s"
        " and outcome in ('completed', 'failed', 'cancelled', 'skipped')",
        [job],
    ).fetchall()
    found: Counter[datetime] = Counter()
    for at, outcome, result in rows:
        occurrence: datetime | None = at.astimezone(UTC)
        before = occurrence
        if outcome == "skipped" and result is not None:
            assert datetime.fromisoformat(result["from"]) == occurrence
            before = datetime.fromisoformat(result["before"]) - timedelta(microseconds=1)
        while occurrence is not None and before is not None and occurrence <= before:
            found[occurrence] += 1
            occurrence = schedule.next_after(occurrence)
    return found


def overlaps(db: psycopg.Connection[Any], killed: dict[int, datetime] | None = None) -> list[Any]:
    """Pairs of ledger lines of one job that ran at the same time; a killed process ended when it was killed."""
    rows = db.execute("select id, job, pid, started, ended from ledger").fetchall()
    ends = killed or {}
    never = datetime.max.replace(tzinfo=UTC)
    runs: dict[int, list[tuple[datetime, datetime, int]]] = {}
    for line, job, pid, started, ended in rows:
        runs.setdefault(job, []).append((started, ended or ends.get(pid, never), line))
    found = []
    for lines in runs.values():
        lines.sort()
        found += [(a, b) for a, b in itertools.pairwise(lines) if b[0] < a[1]]
    return found


# --- inside the node ---------------------------------------------------------------------------------

_go = threading.Event()  # set by the order "go": the stubborn jobs go on


class Work(Job):
    """Takes `seconds` (`again` seconds after the first attempt), obediently: stops when it is told to."""

    def __init__(self, config: JobConfig, ledger: str) -> None:
        super().__init__(config)
        self.ledger = ledger

    def run(self, ctx: RunContext) -> Any:
        given = ctx.parameters or {}
        seconds = given.get("seconds", 0.0)
        if ctx.attempt > 1:
            seconds = given.get("again", seconds)
        with psycopg.connect(self.ledger, autocommit=True) as connection:
            (line,) = connection.execute(
                "insert into ledger (job, name, occurrence, token, pid) values (%s, %s, %s, %s, %s) returning id",
                [ctx.job_id, ctx.name, ctx.scheduled_at, ctx.token, os.getpid()],
            ).fetchone()  # type: ignore[misc]
            emit("started", job=ctx.job_id, name=ctx.name, token=ctx.token, attempt=ctx.attempt)
            if not ctx.wait(seconds):
                emit("told", job=ctx.job_id, name=ctx.name, reason=ctx.cancel_reason)
            connection.execute("update ledger set ended = clock_timestamp() where id = %s", [line])
        ctx.check()
        emit("ended", job=ctx.job_id, name=ctx.name, token=ctx.token)
        return None


class Stubborn(Work):
    """At its first attempt it goes on after it was told, and tries to have every effect that a run can have."""

    def run(self, ctx: RunContext) -> Any:
        emit("started", job=ctx.job_id, name=ctx.name, token=ctx.token, attempt=ctx.attempt)
        if ctx.attempt > 1:
            _go.wait(60)
            return {"by": "second"}
        while not ctx.cancelled:
            time.sleep(0.01)
        emit("told", job=ctx.job_id, name=ctx.name, reason=ctx.cancel_reason)
        ctx.progress(99, 100, "late")
        ctx.log.info("late line")
        with psycopg.connect(self.ledger) as connection:
            emit("tried", what="assert_owner", error=_error_of(lambda: ctx.assert_owner(connection)))
        emit("tried", what="transaction", error=_error_of(lambda: self._commit(ctx)))
        emit("ending", job=ctx.job_id)
        end = ctx.parameters["end"]
        if end == "fail":
            raise ValueError("late failure")
        if end == "cancel":
            ctx.check()
        return {"by": "first"} if end == "complete" else None

    def _commit(self, ctx: RunContext) -> None:
        with ctx.transaction() as connection:
            connection.execute(
                "insert into ledger (job, name, occurrence, token, pid) values (%s, 'late', now(), 0, 0)",
                [ctx.job_id],
            )


class Caged(Work):
    """In a process of its own, and deaf; it says every few milliseconds that it lives. Its second attempt ends."""

    def run(self, ctx: RunContext) -> Any:
        emit("started", job=ctx.job_id, name=ctx.name, token=ctx.token, attempt=ctx.attempt)
        while ctx.attempt == 1:
            emit("alive", job=ctx.job_id, pid=os.getpid())
            time.sleep(0.02)


def _error_of(action: Callable[[], object]) -> str | None:
    try:
        action()
    except Exception as error:
        return type(error).__name__
    return None


class _Voice:
    """A logger that tells the test of everything that should not happen."""

    def debug(self, event: object, **facts: object) -> None: ...

    info = debug

    def warning(self, event: object, **facts: object) -> None:
        emit("warning", text=event, facts=facts)

    error = critical = warning


def main() -> None:
    dsn, options = sys.argv[1], json.loads(sys.argv[2])
    config = SchedulerConfig(
        dsn=dsn,
        logger=_Voice(),
        run_immediately=True,
        heartbeat_interval=options["beat"],
        no_heartbeat_timeout=options["timeout"],
        max_concurrent_jobs=options["slots"],
        shutdown_timeout=2 if options["shutdown"] is None else options["shutdown"],
        connect_timeout=2,
    )
    kinds: dict[str, tuple[type[Work], dict[str, Any]]] = {
        "stubborn": (Stubborn, {}),
        "caged": (Caged, {"isolation": "process"}),
    }
    with Scheduler(config) as scheduler:
        for name in options["names"]:
            kind, policies = kinds.get(name, (Work, {}))
            scheduler.register(kind(JobConfig(name=name, max_stalls=50, **policies), options["ledger"]))
        scheduler.start()
        emit("ready", node=scheduler.id)
        if options["shutdown"] is not None:
            emit("shut down", clean=scheduler.wait_for_signal())
            return
        for order in commands():
            if order["do"] == "stats":
                emit("stats", **scheduler.node_stats())
            elif order["do"] == "go":
                _go.set()


if __name__ == "__main__":
    main()
