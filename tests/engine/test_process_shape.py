"""In which processes a scheduler lives, in which order things start, and by which ways it reaches its database."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from pgscheduler import Every, JobConfig, JobState, Scheduler, SchedulerConfig, SchedulerStateError
from tests.engine.conftest import Call, Gate, Quiet
from tests.support import ROOT, eventually
from tests.support.pooler import needs_its_own_way, needs_notifications

VERBS: dict[str, Callable[[Scheduler], Any]] = {
    "start": lambda s: s.start(),
    "register": lambda s: s.register(Call(JobConfig(name="x"))),
    "schedule": lambda s: s.schedule(Call(JobConfig(name="x"))),
    "schedule_many": lambda s: s.schedule_many([Call(JobConfig(name="x"))]),
    "enqueue": lambda s: s.enqueue("x"),
    "enqueue_many": lambda s: s.enqueue_many("x", [{}]),
    "trigger": lambda s: s.trigger("x"),
    "cancel": lambda s: s.cancel("x"),
    "pause": lambda s: s.pause("x"),
    "resume": lambda s: s.resume("x"),
    "delete": lambda s: s.delete("x"),
    "reschedule": lambda s: s.reschedule("x", delay=timedelta(1)),
    "retry": lambda s: s.retry("1-1"),
    "get_job": lambda s: s.get_job("x"),
    "jobs": lambda s: s.jobs(),
    "runs": lambda s: s.runs(),
    "logs": lambda s: s.logs("1-1"),
    "nodes": lambda s: s.nodes(),
    "stats": lambda s: s.stats(),
    "wait": lambda s: s.wait("x", 0),
    "subscribe": lambda s: s.subscribe(print),
    "run_pending": lambda s: s.run_pending(),
}


# --- the guards of a life ---------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_before_init_and_after_shutdown(dsn: str, verb: str) -> None:
    """Every verb is refused before init() and after shutdown(), and the text says which it was."""
    scheduler = Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet()))
    with pytest.raises(SchedulerStateError, match="not initialized"):
        VERBS[verb](scheduler)
    scheduler.init()
    scheduler.shutdown()
    with pytest.raises(SchedulerStateError, match="shut down"):
        VERBS[verb](scheduler)


def test_init_twice(dsn: str, scheduler_on: Any) -> None:
    """A second init(), and one after shutdown(), is refused."""
    scheduler = scheduler_on(dsn)
    with pytest.raises(SchedulerStateError, match="already initialized"):
        scheduler.init()
    scheduler.shutdown()
    with pytest.raises(SchedulerStateError, match="was shut down"):
        scheduler.init()


def test_start_twice(dsn: str, scheduler_on: Any) -> None:
    """A second start() is refused, and the loops exist once."""
    scheduler = scheduler_on(dsn, start=True)
    loops = dict(scheduler._node.loops)
    with pytest.raises(SchedulerStateError, match="already started"):
        scheduler.start()
    assert scheduler._node.loops == loops
    with pytest.raises(SchedulerStateError, match="run_pending"):
        scheduler.run_pending()


def test_shutdown_before_init_before_start_and_twice(dsn: str) -> None:
    """shutdown() at any time does no harm, also twice."""
    for steps in ((), ("init",), ("init", "start")):
        scheduler = Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet()))
        for step in steps:
            getattr(scheduler, step)()
        assert scheduler.shutdown() is True
        assert scheduler.shutdown() is True


def test_context_manager(dsn: str) -> None:
    """`with` is init() and shutdown(), also when the block raises."""
    scheduler = Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet()))
    with pytest.raises(ZeroDivisionError), scheduler:
        1 / scheduler.node_stats()["held"]
    with pytest.raises(SchedulerStateError, match="shut down"):
        scheduler.jobs()


# --- who starts when --------------------------------------------------------------------------------------


def test_jobs_stored_before_the_first_node_ever_started(dsn: str, scheduler_on: Any) -> None:
    """What clients stored while there was no node runs when one starts; names that it does not know are left."""
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet())) as client:
        known = [client.enqueue("known", {"n": n}) for n in range(3)]
        unknown = client.enqueue("unknown")
    node = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="known")),))
    assert {node.wait(record, 10).state for record in known} == {JobState.COMPLETED}
    assert node.get_job(unknown).state is JobState.PENDING
    assert node.runs(unknown) == []
    other = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="unknown")),))
    assert other.wait(unknown, 10).state is JobState.COMPLETED


def test_a_name_registered_after_start_is_served(dsn: str, scheduler_on: Any) -> None:
    """register() on a started node: jobs of that name that were waiting run at once."""
    node = scheduler_on(dsn, start=True, job_check_interval=60)
    record = node.enqueue("late")
    node.register(Call(JobConfig(name="late")))
    assert node.wait(record, 10).state is JobState.COMPLETED


def test_a_name_registered_late_finds_what_was_due_before_the_marks(
    dsn: str, db: Any, scheduler_on: Any
) -> None:
    """A claim that begins where the last one ended would not see an older job of a new name: it looks at everything.

    A look at everything that took long, here behind somebody's lock, is followed by twenty times that without one.
    """
    node = scheduler_on(
        dsn, heartbeat_interval=10, no_heartbeat_timeout=60, register=(Call(JobConfig(name="known")),)
    )
    older, newer = node.enqueue("late"), node.enqueue("known")
    waiting = (
        "select exists (select from pg_locks where not granted and relation = 'pgscheduler_jobs'::regclass)"
    )
    with psycopg.connect(dsn) as other:
        other.execute("lock table pgscheduler_jobs in access exclusive mode")
        node.start()
        eventually(lambda: db.execute(waiting).fetchone() == (True,), describe="the first look to wait")
        time.sleep(2)  # how long that look takes is the matter
    assert node.wait(newer, 10).state is JobState.COMPLETED
    assert node.get_job(older).state is JobState.PENDING

    node.register(Call(JobConfig(name="late")))
    assert node.wait(older, 10).state is JobState.COMPLETED


@needs_notifications
def test_an_empty_registry_is_safe(dsn: str, scheduler_on: Any) -> None:
    """A node that knows no name claims nothing, and none of its loops fails."""
    node = scheduler_on(dsn, start=True, job_check_interval=0.05)
    node.enqueue("unknown")
    eventually(
        lambda: all(
            loop["last_success_seconds"] is not None
            for name, loop in node.node_stats()["loops"].items()
            if name != "listener"
        )
    )
    assert {loop["failures"] for loop in node.node_stats()["loops"].values()} == {0}
    assert node.stats()["states"] == {"pending": 1}


def test_two_schedulers_in_one_process(dsn: str, scheduler_on: Any) -> None:
    """Each scheduler has its own registry; one that is shut down takes nothing from the other."""
    seen: list[str] = []
    one = scheduler_on(
        dsn, start=True, register=(Call(JobConfig(name="job"), lambda ctx: seen.append("one")),)
    )
    two = scheduler_on(
        dsn, start=True, register=(Call(JobConfig(name="other"), lambda ctx: seen.append("two")),)
    )
    two.wait(two.enqueue("job"), 10)
    assert seen == ["one"]
    assert len({node.id for node in two.nodes()}) == 2
    one.shutdown()
    assert two.wait(two.enqueue("other"), 10).state is JobState.COMPLETED
    assert seen == ["one", "two"]


FORK = """
import os, sys, threading
import structlog
from pgscheduler import Job, JobConfig, Scheduler, SchedulerConfig, SchedulerStateError
from tests.support import processes
from tests.support.processes import commands, emit

structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # whose lines would mix with the events

class Hold(Job):
    def run(self, ctx):
        emit("started", parameters=ctx.parameters)
        release.wait(30)

release = threading.Event()
scheduler = Scheduler(SchedulerConfig(dsn=sys.argv[1], heartbeat_interval=0.2, no_heartbeat_timeout=60, run_immediately=True))
scheduler.init()
scheduler.register(Hold)
scheduler.start()
for order in commands():
    if order["do"] == "fork":
        child = os.fork()
        if child == 0:
            processes._output = threading.RLock()  # ours may have been held by the run's thread
            refused = 0
            for verb in (lambda: scheduler.enqueue("hold"), scheduler.jobs, scheduler.start, scheduler.stats):
                try:
                    verb()
                except SchedulerStateError:
                    refused += 1
            emit("child", refused=refused, shutdown=scheduler.shutdown())
            sys.exit(0)  # the whole of Python's way out: exit handlers, destructors
        emit("reaped", status=os.waitpid(child, 0)[1])
    elif order["do"] == "release":
        release.set()
    elif order["do"] == "stop":
        emit("stopped", clean=scheduler.shutdown(), lost=scheduler.node_stats()["lost"])
"""


@needs_its_own_way
def test_fork_after_start(dsn: str, nodes: Any, scheduler_on: Any) -> None:
    """A forked child is refused every verb and its exit harms nothing: the parent's run and claims go on."""
    node = nodes(FORK, dsn)
    client = scheduler_on(dsn)
    first = client.enqueue("hold", {"n": 1})
    node.wait_for("started")
    node.send({"do": "fork"})
    child = node.wait_for("child")
    assert (child["refused"], child["shutdown"]) == (4, True)
    assert node.wait_for("reaped")["status"] == 0
    before = client.get_job(first).heartbeat_at
    eventually(lambda: client.get_job(first).heartbeat_at > before)
    node.send({"do": "release"})
    assert client.wait(first, 15).state is JobState.COMPLETED
    second = client.enqueue("hold", {"n": 2})
    assert client.wait(second, 15).state is JobState.COMPLETED
    node.send({"do": "stop"})
    stopped = node.wait_for("stopped")
    assert (stopped["clean"], stopped["lost"]) == (True, 0)
    assert [len(client.runs(record)) for record in (first, second)] == [1, 1]


PRELOAD = """
import os, sys
import structlog
from pgscheduler import Job, JobConfig, Scheduler, SchedulerConfig
from tests.support.processes import commands, emit

structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # whose lines would mix with the events

class Hello(Job):
    def run(self, ctx):
        return os.getpid()

def make():
    scheduler = Scheduler(SchedulerConfig(dsn=sys.argv[1], run_immediately=True, max_concurrent_jobs=1))
    scheduler.init()
    scheduler.register(Hello)
    return scheduler

preloaded = make()  # as an application module does that is imported before the fork
children = []
for number in range(2):
    child = os.fork()
    if child == 0:
        own = make()
        own.start()
        own.wait(own.enqueue("hello"), 20)
        emit("served", pid=os.getpid(), node=own.id)
        own.shutdown()
        sys.exit(0)
    children.append(child)
emit("reaped", statuses=[os.waitpid(child, 0)[1] for child in children])
emit("parent", jobs=len(preloaded.jobs()), clean=preloaded.shutdown())
"""


def test_preload_then_fork(dsn: str, nodes: Any, scheduler_on: Any) -> None:
    """A scheduler made before the fork does not disturb those that each child makes, and still works in the parent."""
    node = nodes(PRELOAD, dsn)
    served = [node.wait_for("served", timeout=30) for _ in range(2)]
    assert len({event["node"] for event in served}) == 2
    assert node.wait_for("reaped", timeout=30)["statuses"] == [0, 0]
    parent = node.wait_for("parent")
    assert (parent["jobs"], parent["clean"]) == (0, True)
    assert {run.outcome for run in scheduler_on(dsn).runs(name="hello")} == {"completed"}


# --- ways to the database ---------------------------------------------------------------------------------


def works(scheduler: Scheduler) -> None:
    """Everything that a connection is needed for, once."""
    scheduler.register(Call(JobConfig(name="once")))
    scheduler.start()
    assert scheduler.wait(scheduler.enqueue("once"), 15).state is JobState.COMPLETED
    record = scheduler.schedule(Call(JobConfig.recurring("tick", Every(timedelta(hours=1)))))
    scheduler.trigger(record)
    eventually(lambda: scheduler.runs(record, outcome="completed"))
    assert scheduler.schedule_many([Call(JobConfig.one_time("once")) for _ in range(5)]) == 5
    eventually(lambda: len(scheduler.runs(name="once", outcome="completed")) == 6)


def forms(dsn: str, directory: Path, form: str) -> str:
    """The same database, said in another way."""
    parts = {k: str(v) for k, v in conninfo_to_dict(dsn).items() if v is not None}
    parts = {"user": "postgres", "port": "5432", **parts}
    host, port, user, name = parts["host"], parts["port"], parts["user"], parts["dbname"]
    if form == "keywords":
        return make_conninfo("", **parts)
    if form == "url":
        password = f":{quote(parts['password'], safe='')}" if "password" in parts else ""
        return f"postgresql://{quote(user)}{password}@/{name}?host={quote(host, safe='')}&port={port}"
    if form == "several hosts":  # the first one is dead
        return make_conninfo("", **{**parts, "host": f"127.0.0.1,{host}", "port": f"1,{port}"})
    assert form == "service"
    file = directory / "pg_service.conf"
    file.write_text("[mine]\n" + "".join(f"{k}={v}\n" for k, v in parts.items()))
    return "service=mine"


@pytest.mark.parametrize("form", ["url", "keywords", "service", "several hosts"])
def test_dsn_forms(
    dsn: str, scheduler_on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A URL, keywords, a service file, and several hosts of which the first is dead: all lead to the database."""
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "pg_service.conf"))
    works(scheduler_on(forms(dsn, tmp_path, form)))


@pytest.mark.parametrize("autocommit", [True, False])
def test_existing_pool(dsn: str, scheduler_on: Any, autocommit: bool) -> None:
    """A psycopg_pool.ConnectionPool of one's own serves, gets its connections back unchanged, and is left open."""
    with ConnectionPool(dsn, kwargs={"autocommit": autocommit}, min_size=1, max_size=3, open=True) as pool:
        scheduler = scheduler_on(None, pool=pool)
        works(scheduler)
        scheduler.shutdown()
        with pool.connection() as connection:
            assert connection.autocommit is autocommit
            assert connection.execute("select count(*) from pgscheduler_runs").fetchone() == (7,)


@pytest.mark.parametrize(
    "settings",
    [{"listen": False}, {"prepared_statements": False}, {"listen": False, "prepared_statements": False}],
)
def test_without_listen_and_without_prepared_statements(
    dsn: str, scheduler_on: Any, gate: Gate, settings: dict[str, bool]
) -> None:
    """Behind a pooler, without LISTEN and without prepared statements, everything works."""
    scheduler = scheduler_on(dsn, job_check_interval=0.2, **settings)
    works(scheduler)
    with psycopg.connect(dsn, autocommit=True) as db:
        listening = db.execute(
            "select count(*) from pg_stat_activity where query ilike 'listen %' and datname = current_database()"
        ).fetchone()
        assert "listener" in scheduler._node.loops or listening == (0,)
    record = scheduler_on(dsn, **settings).enqueue("once")  # another process, whose wake-up may not be heard
    assert scheduler.wait(record, 15).state is JobState.COMPLETED
    slow = scheduler.schedule(Call(JobConfig.one_time("slow"), gate))
    gate.wait_for(1)
    scheduler.cancel(slow)
    assert scheduler.wait(slow, 15).state is JobState.CANCELLED


def test_from_env(dsn: str) -> None:
    """PGSCHEDULER_ variables and DATABASE_URL say what a configuration file would; arguments win."""
    config = SchedulerConfig.from_env(
        {
            "DATABASE_URL": dsn,
            "PGSCHEDULER_MAX_CONCURRENT_JOBS": "3",
            "PGSCHEDULER_LISTEN": "no",
            "PGSCHEDULER_HEARTBEAT_INTERVAL": "1.5",
        },
        table_prefix="x_",
    )
    assert (config.dsn, config.max_concurrent_jobs, config.listen, config.table_prefix) == (
        dsn,
        3,
        False,
        "x_",
    )
    assert config.heartbeat_interval == timedelta(seconds=1.5)
    with pytest.raises(ValueError, match="PGSCHEDULER_LISTEN"):
        SchedulerConfig.from_env({"DATABASE_URL": dsn, "PGSCHEDULER_LISTEN": "perhaps"})


# --- the process of an isolated job -----------------------------------------------------------------------

ORPHAN = """
import os
import pickle
import sys
import time
from tests.engine.conftest import Call
from pgscheduler import JobConfig
from pgscheduler._processes import Home, _ChildSide, _Order

class Pipe:
    def send(self, message):
        pass

class Says(Call):
    def run(self, ctx):
        print("ran", flush=True)

facts = dict.fromkeys(("schedule", "options", "parameters", "key"))
facts |= dict(id=1, name="x", priority=5, run_at_micros=0, scheduled_at_micros=0, failures=0, stalls=0,
              cancel_requested=False, done_already=False, claimed_at_micros=0)
order = pickle.dumps(_Order(Says(JobConfig(name="x"), None), facts, 7, None, 0.0))
side = _ChildSide(Pipe(), Home("node", "", "public", "p_", True))
side._node_pid = os.getppid() if sys.argv[1] == "alive" else os.getpid()
side._run(order)
"""


@pytest.mark.parametrize(("node", "expected"), [("alive", (0, "ran\n")), ("dead", (1, ""))])
def test_nothing_begins_for_a_dead_node(tmp_path: Path, node: str, expected: tuple[int, str]) -> None:
    """A process that was still starting when its node died begins no run in that node's name."""
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), node]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == expected, done.stderr
