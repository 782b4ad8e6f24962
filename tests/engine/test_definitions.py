"""Definitions on a database: what a plan says is what an apply does, whole or not at all, and to no one else's jobs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgscheduler import (
    DuplicateJobError,
    InvalidTypeError,
    InvalidValueError,
    JobConfig,
    JobKindError,
    JobNotFoundError,
    JobRunningError,
    JobState,
    Outcome,
    Scheduler,
)
from pgscheduler.cli import main
from pgscheduler.definitions import Definition, Definitions, parse
from pgscheduler.jobs import ShellJob
from tests.support import Terminal

ROWS = "select row_to_json(j)::text, j.xmin::text from pgscheduler_jobs j order by id"


def declared(source: str, *jobs: str) -> Definitions:
    """Definitions from one line of YAML per job."""
    return parse("jobs:\n" + "".join(f"  - {{{line}}}\n" for line in jobs) if jobs else "jobs: []", source)


def actions(plan: Any) -> list[tuple[str, str]]:
    return [(change.action, change.key) for change in plan.changes]


@pytest.fixture
def scheduler(scheduler_on: Callable[..., Scheduler], dsn: str) -> Scheduler:
    return scheduler_on(dsn)


def test_create_change_retire(scheduler: Scheduler) -> None:
    """The plan says it, the apply does it, and both answer the same; history keeps what was retired."""
    first = declared(
        "s",
        "name: a, cron: '0 0 1 1 *', retries: 2, metadata: {team: x}",
        "name: b, cron: '0 0 2 1 *', parameters: {n: 1}",
        "name: c, command: 'true', every: 3600",
    )
    planned = scheduler.plan(first)
    assert actions(planned) == [("create", "a"), ("create", "b"), ("create", "c")]
    assert scheduler.jobs() == []
    assert scheduler.apply(first) == planned
    a = scheduler.get_job("a")
    assert a.options == {"retries": 2, "metadata": {"team": "x", "definitions_source": "s"}}
    c = scheduler.get_job(("shell_job", "c"))
    assert (c.parameters, c.schedule) == ({"shell": "true"}, {"every": 3600.0})

    second = declared(
        "s",
        "name: a, cron: '0 0 1 2 *', retries: 2, metadata: {team: x}",
        "name: b, cron: '0 0 2 1 *', priority: 1",
    )
    planned = scheduler.plan(second)
    assert actions(planned) == [("change", "a"), ("change", "b"), ("retire", "c")]
    assert planned.changes[0].differences == {
        "schedule": ({"cron": "0 0 1 1 *", "timezone": "UTC"}, {"cron": "0 0 1 2 *", "timezone": "UTC"})
    }
    assert planned.changes[1].differences == {"parameters": ({"n": 1}, {}), "priority": (5, 1)}
    assert json.loads(json.dumps(planned.to_dict()))["changes"][2]["action"] == "retire"
    before = scheduler.get_job("b")
    assert scheduler.apply(second) == planned
    assert scheduler.get_job("a").run_at.month == 2
    assert scheduler.get_job("b").run_at == before.run_at  # its schedule is what it was
    assert scheduler.get_job("b").id == before.id
    assert [(run.key, run.reason) for run in scheduler.runs(name="shell_job")] == [("c", "deleted")]


def test_applying_twice_changes_nothing(
    scheduler: Scheduler, db: psycopg.Connection[Any], clock: Callable[..., None]
) -> None:
    """A second apply writes no row, so it postpones nothing: not an overdue occurrence, not a retry's delay."""
    jobs = declared(
        "s",
        "name: a, every: 30",
        "name: b, cron: '*/5 * * * * *', jitter: 2",
        "name: c, every: 9, enabled: false",
    )
    scheduler.apply(jobs)
    clock(by=timedelta(minutes=10))  # everything is overdue now
    before = db.execute(ROWS).fetchall()

    again = scheduler.apply(jobs)

    assert (again.changes, again.unchanged) == ((), 3)
    assert db.execute(ROWS).fetchall() == before
    due = scheduler.get_job("a").run_at
    assert actions(scheduler.apply(declared("s", "name: a, every: 30, priority: 1"), retire=False)) == [
        ("change", "a")
    ]
    assert scheduler.get_job("a").run_at == due


def test_others_are_never_touched(scheduler: Scheduler, call: Any, db: psycopg.Connection[Any]) -> None:
    """Jobs of programs and of other sources stay, even under names that look alike, and cannot be taken."""
    scheduler.schedule(
        call(JobConfig.recurring("program", "0 0 1 1 *", metadata={"x": {"definitions_source": "s"}}))
    )
    scheduler.enqueue("once", key="k", delay=timedelta(days=1))
    scheduler.apply(declared("ss", "name: other, every: 60"))
    scheduler.apply(declared("s", "name: mine, every: 60"))
    before = [row for row in db.execute(ROWS).fetchall() if '"mine"' not in row[0]]

    assert actions(scheduler.apply(declared("s"))) == [("retire", "mine")]
    assert db.execute(ROWS).fetchall() == before
    for line, words in (
        ("name: program, every: 60", "by a program"),
        ("name: other, every: 60", "by source 'ss'"),
        ("name: k, job: once, every: 60", "as a one-time job"),
    ):
        wanted = declared("s", "name: new, every: 60", line)
        assert [change.action for change in scheduler.plan(wanted).changes] == ["create", "conflict"]
        with pytest.raises(DuplicateJobError, match=words):
            scheduler.apply(wanted)
    with pytest.raises(JobKindError, match="'once' is one-time"):
        scheduler.apply(declared("s", "name: new, every: 60", "name: fresh, job: once, every: 60"))
    assert db.execute(ROWS).fetchall() == before  # "new" was not created either


def test_enabled(scheduler: Scheduler) -> None:
    """false pauses, true resumes with the next occurrence, and nothing at all leaves a hand-made pause alone."""
    off, on, silent = (f"name: a, every: 60{more}" for more in (", enabled: false", ", enabled: true", ""))
    scheduler.apply(declared("s", off))
    assert scheduler.get_job("a").state is JobState.PAUSED
    assert actions(scheduler.apply(declared("s", silent))) == []
    assert actions(scheduler.apply(declared("s", on))) == [("resume", "a")]
    assert scheduler.get_job("a").state is JobState.PENDING
    scheduler.pause("a")
    assert actions(scheduler.apply(declared("s", silent))) == []
    assert scheduler.get_job("a").state is JobState.PAUSED
    assert actions(scheduler.apply(declared("s", on))) == [("resume", "a")]
    assert actions(scheduler.apply(declared("s", off))) == [("pause", "a")]
    both = scheduler.apply(declared("s", "name: a, every: 90, enabled: true"))
    assert actions(both) == [("change", "a")]
    job = scheduler.get_job("a")
    assert (job.state, job.schedule) == (JobState.PENDING, {"every": 90.0})
    assert scheduler.apply(declared("s", "name: a, every: 90, enabled: true")).changes == ()


def test_a_running_job(scheduler_on: Callable[..., Scheduler], dsn: str, call: Any, gate: Any) -> None:
    """What must change and runs is waited for; within `wait` it ends or nothing is changed. Unchanged, it is no matter."""
    scheduler = scheduler_on(dsn, start=True, register=(call(JobConfig(name="a"), gate),))
    scheduler.apply(declared("s", "name: a, every: 3600"))
    scheduler.trigger("a")
    gate.wait_for(1)

    changed = declared("s", "name: a, every: 7200", "name: b, every: 60")
    assert scheduler.plan(changed).changes[0].running
    with pytest.raises(JobRunningError):
        scheduler.apply(changed, wait=0)
    with pytest.raises(JobNotFoundError):
        scheduler.get_job("b")
    assert actions(scheduler.apply(declared("s", "name: a, every: 3600", "name: c, every: 60"))) == [
        ("create", "c")
    ]

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(scheduler.apply, changed, wait=30)
        gate.open()
        assert actions(waiting.result(60)) == [("change", "a"), ("create", "b"), ("retire", "c")]
    assert scheduler.get_job("a").schedule == {"every": 7200.0}


def test_retiring_a_running_job(
    scheduler_on: Callable[..., Scheduler], dsn: str, call: Any, gate: Any, eventually: Any
) -> None:
    """It is asked to stop and goes when it has; declared again meanwhile, it is made anew after that."""
    scheduler = scheduler_on(dsn, start=True, register=(call(JobConfig(name="a"), gate),))
    jobs = declared("s", "name: a, every: 3600")
    scheduler.apply(jobs)
    first = scheduler.trigger("a")
    gate.wait_for(1)

    done = scheduler.apply(declared("s"))
    assert [(change.action, change.running) for change in done.changes] == [("retire", True)]
    scheduler.apply(jobs, wait=30)

    assert scheduler.get_job("a").id != first.id
    assert scheduler.plan(jobs).changes == ()


def test_two_applies_at_once(scheduler_on: Callable[..., Scheduler], dsn: str) -> None:
    """Applies that meet are as if one came after the other: the jobs are those of the one or the other, never a mix."""
    schedulers = [scheduler_on(dsn) for _ in range(4)]
    left = declared("s", *(f"name: left{i}, every: 60" for i in range(50)))
    right = declared("s", *(f"name: right{i}, every: 60" for i in range(50)))
    start = threading.Barrier(4)

    def apply(number: int) -> None:
        start.wait(30)
        schedulers[number].apply((left, right)[number % 2])

    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            schedulers[0].apply(declared("s"))
            list(pool.map(apply, range(4)))
            differences = [len(schedulers[0].plan(one).changes) for one in (left, right)]
            assert sorted(differences) == [0, 100]


def test_a_job_that_changes_hands(
    scheduler: Scheduler, dsn: str, db: psycopg.Connection[Any], eventually: Any
) -> None:
    """A program takes a job over in the moment of an apply: the apply sees it, and leaves the job alone."""
    scheduler.apply(declared("s", "name: a, every: 60"))
    with psycopg.connect(dsn) as program, ThreadPoolExecutor(1) as pool:
        program.execute("update pgscheduler_jobs set options = '{}'")
        waiting = pool.submit(scheduler.apply, declared("s", "name: a, every: 90"))
        eventually(
            lambda: db.execute(
                "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            ).fetchone()
        )
        program.commit()
        with pytest.raises(DuplicateJobError, match="by a program"):
            waiting.result(30)
    assert scheduler.get_job("a").schedule == {"every": 60.0}


def test_an_apply_meets_a_program(scheduler_on: Callable[..., Scheduler], dsn: str, call: Any) -> None:
    """A program that schedules the same job at the same moment: it is one job, whole, and the loser is told or wins later."""
    one, other = scheduler_on(dsn), scheduler_on(dsn)
    start = threading.Barrier(2)
    wanted = declared("s", *(f"name: j{i}, every: 60" for i in range(30)))

    def program() -> None:
        start.wait(30)
        for i in reversed(range(30)):
            other.schedule(call(JobConfig.recurring(f"j{i}", "0 0 1 1 *")))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(program)
        start.wait(30)
        with suppress(DuplicateJobError):  # the program was there first
            one.apply(wanted)
        running.result(60)

    # The program came last on every job, whoever created it.
    assert {json.dumps(job.schedule) for job in one.jobs()} == {'{"cron": "0 0 1 1 *", "timezone": "UTC"}'}
    assert len(one.jobs()) == 30
    assert {change.action for change in one.plan(wanted).changes} == {"conflict"}


def test_retire_may_be_limited(scheduler: Scheduler) -> None:
    """`retire=False` leaves what is not declared any more; ids allow only those."""
    scheduler.apply(declared("s", "name: a, every: 60", "name: b, every: 60"))
    assert scheduler.apply(declared("s"), retire=False).changes == ()
    chosen = scheduler.get_job("a").id
    assert actions(scheduler.apply(declared("s"), retire={chosen})) == [("retire", "a")]
    assert [job.name for job in scheduler.jobs()] == ["b"]


def test_commands_run(scheduler: Scheduler, eventually: Any) -> None:
    """Commands, in both spellings, are run by what a node has registered as `shell_job`, each with its own time limit."""
    scheduler.register(ShellJob(enabled=True))
    scheduler.apply(
        declared(
            "s",
            "name: line, every: 3600, command: 'echo $((6 * 7))'",
            "name: argv, every: 3600, command: [echo, $HOME]",
            "name: slow, schedule: '0 0 0 1 1 *', command: sleep 60, timeout_seconds: 0.2, retries: 0",
        )
    )
    for key in ("line", "argv", "slow"):
        scheduler.trigger(("shell_job", key))
    scheduler.run_pending()

    runs = {run.key: run for run in scheduler.runs(name="shell_job")}
    assert runs["line"].result["output"] == "42\n"
    assert runs["argv"].result["output"] == "$HOME\n"
    assert runs["slow"].outcome is Outcome.TIMED_OUT


def test_bad_arguments(scheduler: Scheduler, db: psycopg.Connection[Any]) -> None:
    """Wrong arguments are refused by name, and nothing is written."""
    with pytest.raises(InvalidTypeError, match="definitions must be"):
        scheduler.apply({"jobs": []})  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="definitions must be"):
        scheduler.plan("jobs.yaml")  # type: ignore[arg-type]
    jobs = declared("s", "name: a, every: 60")
    with pytest.raises(InvalidTypeError, match="retire"):
        scheduler.apply(jobs, retire="ab")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="wait"):
        scheduler.apply(jobs, wait=-1)
    huge = Definition(JobConfig.recurring("a", "* * * * *", parameters={"x": "y" * 70_000}))
    with pytest.raises(InvalidValueError, match=r"parameters.*limit"):
        scheduler.apply(Definitions("s", (huge,)))
    assert db.execute(ROWS).fetchall() == []


def test_command(
    dsn: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    db: psycopg.Connection[Any],
) -> None:
    """plan shows, apply does; it asks before it retires, and without an answer nothing at all is applied."""
    monkeypatch.setenv("PGSCHEDULER_DSN", dsn)
    path = tmp_path / "jobs.yaml"
    path.write_text("jobs:\n - {name: a, every: 60}\n - {name: b, every: 60}\n")

    def run(*arguments: str, answer: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        status = main([*arguments, str(path)])
        said = capsys.readouterr()
        return status, said.out, said.err

    status, out, _ = run("plan", "--source", "s")
    assert (status, out.count("create"), "0 unchanged" in out) == (0, 2, True)
    status, out, _ = run("apply", "--source", "s", "--json")
    assert [change["action"] for change in json.loads(out)["changes"]] == ["create", "create"]
    status, out, _ = run("plan", "--source", "s")
    assert (status, out) == (0, "nothing to change\n2 unchanged\n")

    path.write_text("source: s\njobs:\n - {name: a, every: 90}\n")
    before = db.execute(ROWS).fetchall()
    for answer in ("n\n", ""):
        status, out, said = run("apply", answer=answer)
        assert (status, out) == (1, "")
        assert "(b/b)" in said
        assert said.endswith("nothing was applied (--yes does it without asking)\n")
    assert db.execute(ROWS).fetchall() == before
    status, out, said = run("apply", "--json", answer="y\n")
    assert [change["action"] for change in json.loads(out)["changes"]] == ["change", "retire"]
    path.write_text("source: s\njobs: []\n")
    status, out, said = run("apply", "--yes")
    assert (status, said) == (0, "")
    assert db.execute(ROWS).fetchall() == []

    db.execute("select pgscheduler_enqueue('a', key => 'a', run_at => now() + interval '1 day')")
    path.write_text("source: s\njobs:\n - {name: a, every: 90}\n")
    status, out, _ = run("plan", "--json")
    assert (status, json.loads(out)["changes"][0]["action"]) == (1, "conflict")
    status, _, said = run("apply")
    assert (status, "as a one-time job" in said) == (1, True)


def test_a_plan_needs_no_right_to_write(scheduler: Scheduler, db: psycopg.Connection[Any]) -> None:
    """Planning only reads: it works where every transaction is read-only."""
    scheduler.apply(declared("s", "name: a, every: 60"))
    (name,) = db.execute("select current_database()").fetchone() or ("",)
    db.execute(f'alter database "{name}" set default_transaction_read_only = on')
    with Scheduler(scheduler.config) as other:
        assert actions(other.plan(declared("s", "name: b, every: 60"))) == [("create", "b"), ("retire", "a")]
