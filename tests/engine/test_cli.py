"""The command on a real database: what it lists and changes, and `run` as a real process."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgscheduler import Job, JobConfig, JobState, RunContext, Scheduler, SchedulerConfig
from pgscheduler._sql import Names
from pgscheduler.cli import main
from tests.engine.conftest import SILENT
from tests.support import ROOT, Terminal, eventually
from tests.support.postgres import execute

pytestmark = pytest.mark.usefixtures("commanded")


class Greet(Job):
    """Says something and returns it."""

    config = JobConfig.one_time("greet")

    def run(self, ctx: RunContext) -> dict[str, Any]:
        ctx.log.info("hello", who=ctx.parameters.get("who"))
        if ctx.parameters.get("fail"):
            raise RuntimeError("no \x1b[2J luck")
        return {"greeted": ctx.parameters.get("who")}


class Tick(Job):
    config = JobConfig.recurring("tick", "0 0 1 1 *")

    def run(self, ctx: RunContext) -> None: ...


# --- seeing ----------------------------------------------------------------------------------------------


def test_a_job_from_enqueue_to_its_log(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """What is enqueued is listed, runs, and leaves a run with a result and a log."""
    job = say("enqueue", "greet", "--params", '{"who": "Ada"}', "--key", "k", "--priority", 3, "--json")
    assert (job["name"], job["key"], job["state"], job["priority"]) == ("greet", "k", "pending", 3)
    assert [j["id"] for j in say("jobs", "--json")] == [job["id"]]

    assert scheduler.run_pending().completed == 1

    assert say("jobs", "--json") == []
    assert say("jobs") == "no jobs\n"
    (run,) = say("runs", job["id"], "--json")
    assert (run["outcome"], run["result"]) == ("completed", {"greeted": "Ada"})
    assert [r["id"] for r in say("runs", "greet/k", "--json")] == [run["id"]]
    assert [r["id"] for r in say("runs", "greet", "--json")] == [run["id"]]
    (line,) = say("logs", run["id"], "--json")
    assert (line["event"], line["fields"]) == ("hello", {"who": "Ada"})
    assert "hello who='Ada'" in say("logs", run["id"])


def test_parameters_may_come_from_a_file(say: Callable[..., Any], tmp_path: Path) -> None:
    """--params @file reads JSON of any kind from a file."""
    file = tmp_path / "parameters.json"
    file.write_text('{"ids": [1, 2]}')

    assert say("enqueue", "greet", "--params", f"@{file}", "--json")["parameters"] == {"ids": [1, 2]}


def test_a_job_may_be_put_off(say: Callable[..., Any], refuse: Callable[..., str]) -> None:
    """--at stores that very instant, --delay one so much later; negative delays are refused."""
    job = say("enqueue", "greet", "--at", "2099-01-31T09:00:00+01:00", "--json")
    assert job["run_at"] == "2099-01-31T08:00:00+00:00"

    job = say("enqueue", "greet", "--delay", 3600, "--json")
    ((ahead,),) = execute(
        os.environ["PGSCHEDULER_DSN"],
        "select extract(epoch from run_at - created_at)::float8 from pgscheduler_jobs where id = %s",
        [job["id"]],
    )
    assert ahead == pytest.approx(3600)

    assert "delay" in refuse(2, "enqueue", "greet", "--delay", "-1")


def test_filters_and_pages(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """Listings take filters, a limit and an offset, newest first."""
    first, second, third = (scheduler.enqueue("greet", {"fail": i == 1}).id for i in range(3))
    other = scheduler.enqueue("else", delay=3600).id
    scheduler.schedule(Tick())
    scheduler.pause(other)

    def listed(*options: str) -> list[int]:
        return [job["id"] for job in say("jobs", *options, "--json")]

    assert listed("--name", "greet") == [third, second, first]
    assert listed("--name", "greet", "--limit", "1", "--offset", "1") == [second]
    assert listed("--state", "paused") == [other]
    assert [job["name"] for job in say("jobs", "--recurring", "--json")] == ["tick"]

    scheduler.run_pending()
    assert [r["job_id"] for r in say("runs", "--outcome", "failed", "--json")] == [second]
    assert len(say("runs", "--name", "greet", "--limit", "2", "--json")) == 2
    assert say("runs", "--since", "2099-01-01", "--json") == []


def test_stored_text_is_harmless(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """An error text with escape sequences reaches a screen only as escapes, on one line."""
    scheduler.enqueue("greet", {"fail": True})
    scheduler.run_pending()

    shown = say("runs")
    assert "\x1b" not in shown
    assert "no \\x1b[2J luck" in shown
    assert len(shown.splitlines()) == 2


def test_stats_and_nodes(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """stats counts live jobs by name and state; nodes lists who is there."""
    scheduler.enqueue("greet")
    scheduler.enqueue("greet", delay=3600)
    scheduler.run_pending()

    stats = say("stats", "--json")
    assert (stats["names"], stats["due"]) == ({"greet": {"pending": 1}}, 0)
    assert "greet" in say("stats")
    (node,) = say("nodes", "--json")
    assert (node["pid"], node["alive"], node["names"]) == (os.getpid(), True, ["greet"])
    assert [n["id"] for n in say("nodes", "--alive", "--json")] == [scheduler.id]
    assert say("nodes", "--offset", "1", "--json") == []


# --- steering ------------------------------------------------------------------------------------------


def test_pause_resume_trigger(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """Each verb answers with the job as it is afterwards."""
    scheduler.schedule(Tick())

    assert say("pause", "tick", "--json")["state"] == "paused"
    assert say("resume", "tick/tick", "--json")["state"] == "pending"
    assert "2" in say("trigger", "tick")
    assert scheduler.run_pending().completed == 1


def test_cancel_and_what_has_ended(
    say: Callable[..., Any], refuse: Callable[..., str], scheduler: Scheduler
) -> None:
    """A waiting job is cancelled; one that has ended, or never was, is a failure that says so."""
    job = scheduler.enqueue("greet", key="k", delay=3600)
    assert say("cancel", "greet/k", "--json")["result"] == "cancelled"

    assert "already cancelled" in refuse(1, "cancel", job.id)
    assert "already cancelled" in refuse(1, "cancel", "greet/k")
    assert "job not found" in refuse(1, "cancel", "nobody")
    assert "job not found" in refuse(1, "pause", 99999)
    assert "job not found" in refuse(1, "pause", "a/b")


def test_delete_asks_first(
    say: Callable[..., Any],
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is deleted without a yes, by --yes or by answer; no answer is a no."""
    job = scheduler.enqueue("greet", delay=3600)
    for answer in ("", "n\n", "\n"):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert main(["delete", str(job.id)]) == 1
        assert "nothing was deleted" in capsys.readouterr().err
        assert scheduler.get_job(job.id).state is JobState.PENDING

    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert main(["delete", str(job.id)]) == 0
    assert f"job {job.id} (greet) is deleted" in capsys.readouterr().out
    assert scheduler.get_job(job.id).state is JobState.CANCELLED

    other = scheduler.enqueue("greet", delay=3600)
    assert say("delete", other.id, "--yes", "--json")["result"] == "deleted"


def test_delete_with_history(
    say: Callable[..., Any], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--history deletes the runs of a job too; without it they stay. The question and the answer say which."""
    tick = Tick()
    for more in (["--history"], []):
        job = scheduler.schedule(tick)
        scheduler.trigger(job)
        assert scheduler.run_pending().completed == 1
        said = say("delete", "tick", "--yes", *more)
        assert ("with its history" in said, "its history stays" in said) == (bool(more), not more)
        assert bool(scheduler.count_runs(name="tick")) == (not more)
    scheduler.schedule(tick)
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    monkeypatch.setattr("click.confirm", lambda question, **_: not asked.append(question))
    say("delete", "tick", "--history")
    assert "with its history?" in asked[0]


LINES = '{"who": "Ada"}\n\n[1, "two"]\n"\u00fc"\nnull\n'


@pytest.mark.parametrize("door", ["file", "stdin"])
def test_many_jobs_at_once(
    say: Callable[..., Any], scheduler: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """--lines stores a job for each line of JSON, with the time and the priority that are given for all."""
    file = tmp_path / "lines"
    file.write_text(LINES, encoding="utf-8")
    if door == "stdin":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    name = "-" if door == "stdin" else str(file)
    assert say("enqueue", "greet", "--lines", name, "--priority", 3, "--delay", 60, "--json") == {
        "name": "greet", "stored": 4,
    }  # fmt: skip
    found = scheduler.jobs(name="greet")
    assert [job.parameters for job in reversed(found)] == [{"who": "Ada"}, [1, "two"], "ü", {}]
    assert {(job.priority, job.run_at > job.created_at) for job in found} == {(3, True)}
    file.write_text("{}\n")
    assert say("enqueue", "greet", "--lines", file) == "stored 1 job\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}\n{bad\n', "line 2 is not JSON: .*line 1 column 2"),
        ('{}\n\n{"a": NaN}\n', "line 3 is not JSON: NaN"),
        ("{}\n" + json.dumps("x" * 70_000), "line 2: parameters.*limit"),
        ('{}\n"\\u0000"\n', "line 2: parameters"),
        ("x" * (2 << 20), "too large"),
        (b"{}\n\xff\n", "not UTF-8"),
        (None, "cannot read"),
    ],
)
def test_a_wrong_line_stores_nothing(
    refuse: Callable[..., str], scheduler: Scheduler, tmp_path: Path, text: str | bytes | None, words: str
) -> None:
    """All of the lines or none: the first wrong one is named by its number."""
    file = tmp_path / "lines"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert re.search(words, refuse(2, "enqueue", "greet", "--lines", file))
    assert scheduler.jobs() == []


def test_lines_go_with_what_all_jobs_share(refuse: Callable[..., str], tmp_path: Path) -> None:
    """A key, parameters or policies beside --lines would be those of one job, and are refused."""
    for option in (("--key", "k"), ("--params", "{}"), ("--retries", "1"), ("--if-exists", "keep")):
        assert f"--lines and {option[0]} exclude" in refuse(2, "enqueue", "greet", "--lines", "-", *option)


def test_only_what_waits_once_has_a_place(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """`show` tells the place in the queue of a one-time job, and none of a recurring one, which waits for its time."""
    scheduler.enqueue("greet", key="k")
    scheduler.schedule(Tick())
    assert "place in queue" in say("show", "greet/k")
    assert "place in queue" not in say("show", "tick")
    assert say("show", "tick", "--json")["queue_position"] is None


def test_a_file_without_a_source_has_its_name(
    say: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`plan` and `apply` take the file's name for its source, as `run --config` does; and count one as one."""
    file = tmp_path / "shop.yaml"
    file.write_text("jobs:\n  - {name: a, every: 60}\n  - {name: b, every: 60}\n")
    assert say("plan", file, "--json")["source"] == "shop"
    assert say("apply", file, "--json")["source"] == "shop"
    file.write_text("jobs:\n  - {name: a, every: 60}\n")
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    monkeypatch.setattr("click.confirm", lambda question, **_: not asked.append(question))
    assert say("apply", file, "--no-retire", "--json")["changes"] == []
    assert (asked, [job["name"] for job in say("jobs", "--json")]) == ([], ["b", "a"])
    say("apply", file)
    assert asked == ["Retire 1 job that is not in the file (b/b)?"]


def test_a_name_may_hold_a_slash(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """The whole is a name first; else each slash may be the one before the key."""
    whole = scheduler.enqueue("a/b", key="x", delay=3600)
    pair = scheduler.enqueue("a", key="b", delay=3600)
    deep = scheduler.enqueue("c/d", key="e/f", delay=3600)

    assert say("pause", "a/b", "--json")["id"] == whole.id
    assert say("pause", "a/b/x", "--json")["id"] == whole.id
    assert say("pause", pair.id, "--json")["id"] == pair.id
    assert say("pause", "c/d/e/f", "--json")["id"] == deep.id
    assert say("cancel", whole.id, "--json")["id"] == whole.id
    assert say("resume", "a/b", "--json")["id"] == pair.id


def test_an_ambiguous_name_is_refused(refuse: Callable[..., str], scheduler: Scheduler) -> None:
    """A name that several jobs share names none of them; the error lists their ids."""
    first, second = (scheduler.enqueue("greet", delay=3600).id for _ in range(2))

    line = refuse(1, "cancel", "greet")
    assert str(first) in line
    assert str(second) in line
    assert {scheduler.get_job(i).state for i in (first, second)} == {JobState.PENDING}


def test_a_short_lived_process_still_wakes_the_nodes(dsn: str, direct_dsn: str) -> None:
    """A hint that is held back for coalescing is sent when the process ends its scheduler."""
    channel = Names("public", "pgscheduler_").channel
    config = SchedulerConfig(dsn=dsn, logger=SILENT, notification_debounce_interval=timedelta(minutes=5))
    with psycopg.connect(direct_dsn, autocommit=True) as connection:
        connection.execute(f'listen "{channel}"')
        with Scheduler(config) as scheduler:
            scheduler.enqueue("greet")
            assert [n.payload for n in connection.notifies(timeout=10, stop_after=1)] == ["due"]
            scheduler.enqueue("greet")
        assert [n.payload for n in connection.notifies(timeout=10, stop_after=1)] == ["due"]


# --- migrate -------------------------------------------------------------------------------------------


def test_migrate_makes_the_tables(
    say: Callable[..., Any], refuse: Callable[..., str], empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without tables every command says what to do; `migrate` does it once, under the prefix and schema asked for."""
    monkeypatch.setenv("PGSCHEDULER_DSN", empty_dsn)
    place = ("--schema", "work", "--table-prefix", "shop_")
    assert "pgscheduler migrate" in refuse(1, "jobs", *place)

    done = say("migrate", *place, "--json")
    assert (done["migrations"] > 0, done["schema"], done["table_prefix"]) == (True, "work", "shop_")
    assert say("migrate", *place) == "the tables are up to date\n"
    assert say("jobs", *place, "--json") == []
    refuse(1, "jobs")


def test_the_printed_migration_is_the_real_one(say: Callable[..., Any], empty_dsn: str) -> None:
    """What `migrate --print` prints makes tables that the scheduler accepts as its own."""
    execute(empty_dsn, say("migrate", "--print"))

    assert say("jobs", "--dsn", empty_dsn, "--json") == []
    assert say("migrate", "--dsn", empty_dsn) == "the tables are up to date\n"


# --- run -----------------------------------------------------------------------------------------------

MODULE = """
import os, signal, threading, time
from pgscheduler import Job, JobConfig, Scheduler, SchedulerConfig, _node

_node.MARGIN = 10.0  # seconds to give jobs back in, which a busy machine may need

class Greet(Job):
    config = JobConfig.one_time("greet")
    def run(self, ctx):
        return {"greeted": ctx.parameters["who"]}

class Tick(Job):
    config = JobConfig.recurring("tick", "0 0 1 1 *")
    def run(self, ctx): ...

class Stubborn(Job):
    config = JobConfig.one_time("stubborn")
    def run(self, ctx):
        ctx.progress(0, 1, "begun")
        time.sleep(600)

class Finale(Job):
    config = JobConfig.one_time("finale")
    def run(self, ctx):
        while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            time.sleep(0.01)
        time.sleep(0.5)  # by now the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

def make():
    scheduler = Scheduler(SchedulerConfig.from_env(run_immediately=True))
    scheduler.init()
    scheduler.register(Greet)
    return scheduler

some = [Greet, Tick()]
fresh = Scheduler(SchedulerConfig.from_env()) if os.environ.get("PGSCHEDULER_DSN") else None

def broken():
    raise ValueError("on purpose\\nwith two lines")
"""


class Node:
    """`pgscheduler run` as a process, and the JSON lines that it printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    def end(self, *signals: signal.Signals) -> tuple[int, str]:
        for number in signals:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture
def run_node(tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "works.py").write_text(MODULE)

    @contextmanager
    def start(*arguments: str) -> Iterator[Node]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgscheduler", "run", *arguments, "--json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                yield Node(process)
            finally:
                process.kill()

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_works_until_a_signal(
    run_node: Callable[..., Any], scheduler: Scheduler, number: signal.Signals
) -> None:
    """All jobs of a module in the current directory run and are scheduled; a signal ends it with 0."""
    early = scheduler.enqueue("greet", {"who": "early"})
    with run_node("works") as node:
        started = node.line()
        assert started["jobs"] == ["finale", "greet", "stubborn", "tick"]
        late = scheduler.enqueue("greet", {"who": "late"})
        assert scheduler.wait(early.id, 30).result == {"greeted": "early"}
        assert scheduler.wait(late.id, 30).result == {"greeted": "late"}
        assert scheduler.get_job("tick").recurring

        status, errors = node.end(number)
    assert status == 0
    assert "Traceback" not in errors
    (record,) = [n for n in scheduler.nodes() if n.id == started["node"]]
    assert record.stopped_at is not None


@pytest.mark.parametrize(
    ("target", "jobs"),
    [("works:Greet", ["greet"]), ("works:some", ["greet", "tick"]), ("works:make", []), ("works:fresh", [])],
)
def test_run_takes_many_kinds_of_object(
    run_node: Callable[..., Any], scheduler: Scheduler, target: str, jobs: list[str]
) -> None:
    """OBJECT may be a class, a list, a function that returns a scheduler, or a scheduler."""
    with run_node(target) as node:
        started = node.line()
        assert (started["event"], started["jobs"]) == ("started", jobs)
        assert started["node"] in {n.id for n in scheduler.nodes()}
        assert node.end(signal.SIGTERM)[0] == 0


def test_run_gives_back_what_does_not_end(run_node: Callable[..., Any], scheduler: Scheduler) -> None:
    """A job that ignores the shutdown is given back at once, and the status is 1."""
    job = scheduler.enqueue("stubborn")
    with run_node("works", "--shutdown-timeout", "0.2") as node:
        node.line()
        # Not only claimed: what no slot has begun is given back, and such a shutdown is clean.
        eventually(lambda: scheduler.get_job(job.id).progress, timeout=30, describe="the job has begun")
        node.process.send_signal(signal.SIGTERM)
        stopped = node.line()
        status, errors = node.end()
    assert status == 1
    assert (stopped["clean"], stopped["abandoned"]) == (False, 1)
    assert "given back" in errors
    found = scheduler.get_job(job.id)
    assert (found.state, found.attempt) == (JobState.PENDING, 1)


def test_a_second_signal_means_now(run_node: Callable[..., Any], scheduler: Scheduler) -> None:
    """While it waits for a job to end, a second signal ends the process with 130."""
    job = scheduler.enqueue("stubborn")
    with run_node("works") as node:
        node.line()
        # Not only claimed: what no slot has begun is given back, and such a shutdown is clean.
        eventually(lambda: scheduler.get_job(job.id).progress, timeout=30, describe="the job has begun")
        node.process.send_signal(signal.SIGTERM)
        assert node.process.stderr is not None
        for line in node.process.stderr:
            if "signal received" in line:
                break
        status, errors = node.end(signal.SIGINT)
    assert status == 130
    assert "second signal" in errors


def test_a_signal_is_heard_whichever_thread_it_reaches(
    run_node: Callable[..., Any], scheduler: Scheduler
) -> None:
    """A signal that the kernel gives to a worker thread ends the node as well."""
    job = scheduler.enqueue("finale")
    with run_node("works") as node:
        node.line()
        assert node.line()["signal"] == "SIGTERM"
        assert node.end()[0] == 0
    assert scheduler.get_job(job.id).state is JobState.COMPLETED


WAITING = """
from works import *
scheduler = make()
scheduler.register(Finale)
scheduler.start()
print(scheduler.wait_for_signal(), flush=True)
"""


def test_wait_for_signal_hears_it_too(tmp_path: Path, scheduler: Scheduler) -> None:
    """The same for a program of one's own that calls `wait_for_signal()`."""
    (tmp_path / "works.py").write_text(MODULE)
    (tmp_path / "program.py").write_text(WAITING)
    scheduler.enqueue("finale")
    process = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert process.returncode == 0
    assert process.stdout.splitlines()[-1] == "True"


def test_run_refuses_what_has_no_effect(run_node: Callable[..., Any], dsn: str) -> None:
    """A scheduler brings its own configuration: options beside it are a usage error."""
    with run_node("works:fresh", "--dsn", dsn, "--max-concurrent-jobs", "3") as node:
        status, errors = node.end()
    assert status == 2
    assert re.search("--dsn.*--max-concurrent-jobs.*no effect", errors)


def test_run_tells_what_a_module_raised(run_node: Callable[..., Any]) -> None:
    """An error in the user's own code is told in one line, with status 1."""
    with run_node("works:broken") as node:
        status, errors = node.end()
    assert status == 1
    (line,) = errors.splitlines()
    assert re.search(r"cannot import.*works.*broken\(\) raised ValueError: on purpose with two lines", line)
