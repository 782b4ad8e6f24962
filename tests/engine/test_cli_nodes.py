"""Nodes as the command starts them: roles apart and together, a file instead of a module, and many processes."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgscheduler import JobState, Scheduler
from tests.support import ROOT, eventually
from tests.support.postgres import execute

WORKS = """
import os, time
from pgscheduler import Job, JobConfig, _node

_node.MARGIN = 10.0  # seconds to give jobs back in, which a busy machine may need

class Greet(Job):
    config = JobConfig.one_time("greet")
    def run(self, ctx):
        return {"pid": os.getpid(), "leash": [n for n in os.environ if "LEASH" in n]}

class Tick(Job):
    config = JobConfig.recurring("tick", "* * * * * *")
    def run(self, ctx): ...

class Stubborn(Job):
    config = JobConfig.one_time("stubborn")
    def run(self, ctx):
        ctx.progress(0, 1, "begun")
        time.sleep(600)

def made():
    from pgscheduler import Scheduler, SchedulerConfig
    scheduler = Scheduler(SchedulerConfig.from_env())
    scheduler.init()
    scheduler.register(Greet)
    return scheduler
"""

#: Ten jobs as Kronii takes them: no source, six fields with the seconds first, a line for the shell.
KRONII = "jobs:\n" + "".join(
    f'  - name: job_{n}\n    schedule: "* * * * * *"\n    command: "echo {n}"\n    retries: 1\n    timeout_seconds: 30\n'
    for n in range(10)
)


class Program:
    """The command as a process: the JSON lines that it prints, and what it and its children log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self._rest = b""

    def line(self, timeout: float = 60) -> dict[str, Any]:
        """The next line of stdout as JSON; {} at its end."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            assert select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))[0], (
                self.errors()
            )
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                return {}
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(text)
        return found

    def started(self, count: int = 1) -> list[dict[str, Any]]:
        lines = [self.line() for _ in range(count)]
        assert [line.get("event") for line in lines] == ["started"] * count, self.errors()
        return lines

    def errors(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def end(self, *signals: signal.Signals) -> int:
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def program(tmp_path: Path, dsn: str) -> Iterator[Callable[..., Any]]:
    """`with program("run", …) as process:` the command on this test's database, with works.py and jobs.yaml there."""
    (tmp_path / "works.py").write_text(WORKS)
    (tmp_path / "jobs.yaml").write_text(KRONII)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PGSCHEDULER_")}
    pids: list[int] = []

    @contextmanager
    def start(*arguments: str, **environment: str) -> Iterator[Program]:
        log = tmp_path / f"log-{len(pids)}"
        with open(log, "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "pgscheduler", *arguments],
                cwd=tmp_path,
                env={
                    **inherited,
                    "PYTHONPATH": str(ROOT),
                    "DATABASE_URL": dsn,
                    "PGSCHEDULER_HEARTBEAT_INTERVAL": "1",
                    "PGSCHEDULER_NO_HEARTBEAT_TIMEOUT": "10",
                    **environment,
                },
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        pids.append(process.pid)
        with process:
            try:
                yield Program(process, log)
            finally:
                process.kill()

    yield start
    for pid in execute(dsn, "select pid from pgscheduler_nodes where stopped_at is null"):
        # What a failed test left; a pid that was given to somebody else meanwhile runs no such command.
        with suppress(OSError):
            if b"pgscheduler" in Path(f"/proc/{pid[0]}/cmdline").read_bytes() and pid[0] != os.getpid():
                os.kill(pid[0], signal.SIGKILL)


@pytest.fixture
def client(scheduler_on: Callable[..., Scheduler], dsn: str) -> Scheduler:
    return scheduler_on(dsn)


def alive(pid: int) -> bool:
    """Whether there is such a process that has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- roles --------------------------------------------------------------------------------------------


def test_the_roles_apart(
    program: Callable[..., Any], client: Scheduler, db: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """The scheduler stores what is recurring and runs nothing; the worker runs it and stores nothing."""
    one_time = client.enqueue("greet")
    with program("worker", "works", "--json") as worker:
        (said,) = worker.started()
        assert (said["roles"], said["jobs"]) == (["worker"], ["greet", "stubborn", "tick"])
        pid = client.wait(one_time.id, 60).result["pid"]
        assert pid == worker.process.pid
        assert client.jobs(name="tick") == []

        with program("scheduler", "works", "--json") as scheduler:
            (said,) = scheduler.started()
            assert (said["roles"], said["jobs"]) == (["scheduler"], [])
            run = eventually(lambda: client.runs(name="tick", outcome="completed"), timeout=60)[0]
            nodes = {node.pid: node for node in client.nodes()}
            assert nodes[scheduler.process.pid].names == ()
            assert run.node_id == nodes[worker.process.pid].id
            assert scheduler.end(signal.SIGTERM) == 0
        assert worker.end(signal.SIGINT) == 0
    stopped = db.execute("select count(*) from pgscheduler_nodes where stopped_at is not null").fetchone()
    assert stopped == (2,)


def test_a_scheduler_keeps_house(
    program: Callable[..., Any], client: Scheduler, db: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """A process that runs no job still finds the jobs of a dead node."""
    job = client.enqueue("stubborn")
    with program("worker", "works", "--json") as worker:
        worker.started()
        eventually(lambda: client.get_job(job.id).progress, timeout=60)
        worker.process.kill()
    # It has been silent for long.
    db.execute("update pgscheduler_jobs set claimed_at = claimed_at - interval '1 day', heartbeat_at = null")
    db.execute("update pgscheduler_nodes set heartbeat_at = heartbeat_at - interval '1 day'")
    with program("run", "--role", "scheduler", "--json") as scheduler:
        scheduler.started()
        eventually(lambda: client.get_job(job.id).state is JobState.PENDING, timeout=60)
        assert scheduler.end(signal.SIGTERM) == 0


def test_a_node_begins_at_once(program: Callable[..., Any], client: Scheduler, tmp_path: Path) -> None:
    """What is due when a node starts is run then, unless an option, the environment or the file says otherwise."""
    later = {"PGSCHEDULER_JOB_CHECK_INTERVAL": "3600", "PGSCHEDULER_LISTEN": "false"}
    job = client.enqueue("greet")
    with program("worker", "works", "--json", **later) as node:
        node.started()
        assert client.wait(job.id, 60).state is JobState.COMPLETED
        assert node.end(signal.SIGTERM) == 0

    job = client.enqueue("greet")
    (tmp_path / "late.toml").write_text("run_immediately = false\n")
    for options, more in (
        (("--no-run-immediately",), {"PGSCHEDULER_RUN_IMMEDIATELY": "true"}),
        ((), {"PGSCHEDULER_RUN_IMMEDIATELY": "false"}),
        (("--settings", "late.toml"), {}),
    ):
        with program("worker", "works", "--json", *options, **later, **more) as node:
            node.started()
            # Its first heartbeat comes a second after the start: by then it would have claimed.
            eventually(
                lambda: any(n.alive and n.heartbeat_at > n.started_at for n in client.nodes()), timeout=60
            )
            assert node.end(signal.SIGTERM) == 0
        assert client.get_job(job.id).state is JobState.PENDING


def test_the_log_names_one_node(program: Callable[..., Any]) -> None:
    """What a scheduler says of its file is said under the id that it starts with."""
    with program("scheduler", "--config", "jobs.yaml", "--json") as node:
        (said,) = node.started()
        assert node.end(signal.SIGTERM) == 0
        log = {line["event"]: line for line in map(json.loads, node.errors().splitlines())}
    assert log["definitions applied"]["node"] == log["scheduler started"]["node"] == said["node"]


@pytest.mark.parametrize("command", ["worker", "api"])
def test_the_log_is_json_also_without_a_database(
    program: Callable[..., Any], dsn: str, proxy_to: Any, command: str
) -> None:
    """Each line of the log is one JSON document, also what psycopg has to say of a database that is away."""
    proxy = proxy_to(dsn)
    arguments = ("worker", "works") if command == "worker" else ("api", "--port", "0")
    with program(*arguments, "--json", DATABASE_URL=proxy.dsn, PGSCHEDULER_CONNECT_TIMEOUT="1") as node:
        (said,) = node.started()
        proxy.refuse()
        if command == "api":
            with suppress(urllib.error.HTTPError):
                urllib.request.urlopen(f"http://127.0.0.1:{said['api_port']}/readyz", timeout=30)
        eventually(lambda: "psycopg.pool" in node.errors() or "in 'pgscheduler" in node.errors(), timeout=60)
        proxy.heal()
        assert node.end(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in node.errors().splitlines()]
    assert {line["logger"] for line in lines if "logger" in line} == {"psycopg.pool"}
    assert all(line["level"] and line["timestamp"] for line in lines)


# --- a file instead of a module -----------------------------------------------------------------------


def test_a_file_of_commands_runs(program: Callable[..., Any], client: Scheduler) -> None:
    """Kronii's file runs as it stands, once shell jobs are allowed; its name is the source that it lacks."""
    with program("run", "--config", "jobs.yaml", "--allow-shell", "--max-concurrency", "4", "--json") as node:
        (said,) = node.started()
        assert said["jobs"] == ["shell_job"]
        eventually(
            lambda: len({run.key for run in client.runs(outcome="completed", limit=1000)}) == 10, timeout=60
        )
        assert [run.slots for run in client.nodes()] == [4]
        assert node.end(signal.SIGTERM) == 0
    results = {run.key: run.result["output"] for run in client.runs(outcome="completed", limit=1000)}
    assert results == {f"job_{n}": f"{n}\n" for n in range(10)}
    job = client.get_job(("shell_job", "job_3"))
    assert (job.options or {})["metadata"] == {"definitions_source": "jobs"}


def test_commands_are_refused_until_they_are_allowed(program: Callable[..., Any], client: Scheduler) -> None:
    """Nothing is stored and nothing runs; the line names the flag. Storing them for other nodes is allowed."""
    with program("run", "--config", "jobs.yaml") as node:
        assert node.end() == 2
        assert re.search("jobs.yaml has commands .*job_0.*--allow-shell", node.errors())
    assert client.jobs() == []
    with program("scheduler", "--config", "jobs.yaml", "--json") as node:
        node.started()
        assert len(client.jobs()) == 10
        assert node.end(signal.SIGTERM) == 0


def test_the_environment_may_allow_them(
    program: Callable[..., Any], client: Scheduler, tmp_path: Path
) -> None:
    """PGSCHEDULER_ALLOW_SHELL, or the table `run` of the settings file, say the same."""
    with program("run", "--config", "jobs.yaml", "--json", PGSCHEDULER_ALLOW_SHELL="1") as node:
        assert node.started()[0]["jobs"] == ["shell_job"]
        assert node.end(signal.SIGTERM) == 0
    (tmp_path / "pgscheduler.toml").write_text(
        'max_concurrent_jobs = 3\n[run]\nconfig = "jobs.yaml"\nallow_shell = true\n'
    )
    with program("worker", "--json") as node:
        (said,) = node.started()
        assert said["jobs"] == ["shell_job"]
        assert {n.id: n.slots for n in client.nodes()}[said["node"]] == 3
        assert node.end(signal.SIGTERM) == 0


def test_a_start_retires_nothing(program: Callable[..., Any], client: Scheduler, tmp_path: Path) -> None:
    """A job that left the file goes on, and the log says what retires it: an older file may start later."""
    file = tmp_path / "few.yaml"
    file.write_text("jobs:\n  - {name: a, every: 3600}\n  - {name: b, every: 3600}\n")
    for content in ("", "jobs:\n  - {name: a, every: 60}\n"):
        file.write_text(content or file.read_text())
        with program("scheduler", "--config", "few.yaml", "--source", "mine", "--json") as node:
            node.started()
            assert node.end(signal.SIGTERM) == 0
            assert ("pgscheduler apply" in node.errors()) == bool(content)
    assert {job.name: job.schedule for job in client.jobs()} == {"a": {"every": 60.0}, "b": {"every": 3600.0}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "nothing to run"),
        (["worker"], "nothing to run"),
        (["run", "--config", "none.yaml"], "none.yaml: file not found"),
        (["worker", "works:own"], "the role worker has no effect"),
        (
            ["run", "works:own", "--config", "jobs.yaml", "--allow-shell"],
            "--config, --allow-shell has no effect",
        ),
    ],
)
def test_what_cannot_run_is_refused(
    program: Callable[..., Any], tmp_path: Path, arguments: list[str], words: str
) -> None:
    """A node that would do nothing, or not what was said, does not start: status 2."""
    with open(tmp_path / "works.py", "a") as file:
        file.write(
            "\nfrom pgscheduler import Scheduler, SchedulerConfig\nown = Scheduler(SchedulerConfig.from_env())\n"
        )
    with program(*arguments) as node:
        assert node.end() == 2
        (line,) = node.errors().splitlines()
        assert words in line


def test_once(program: Callable[..., Any], client: Scheduler) -> None:
    """A pass over what is due, without loops: for cron, or a function somewhere. It fits no port and no family."""
    jobs = [client.enqueue("greet") for _ in range(3)]
    with program("run", "works:Greet", "--once", "--json") as node:
        done = node.line()
        assert (done["event"], done["claimed"], done["completed"], done["failed"]) == ("done", 3, 3, 0)
        assert node.end() == 0
    assert {client.get_job(job.id).state for job in jobs} == {JobState.COMPLETED}
    client.enqueue("greet")
    with program("run", "works:made", "--once") as node:
        assert node.process.stdout is not None
        assert node.process.stdout.read().startswith(b"claimed 1, completed 1, failed 0")
        assert node.end() == 0
    for more in (["--processes", "2"], ["--metrics-port", "0"], ["--role", "scheduler"]):
        with program("run", "works", "--once", *more) as node:
            assert node.end() == 2
            assert "--once is for one worker" in node.errors()


# --- the doors ----------------------------------------------------------------------------------------


def test_metrics_and_api(program: Callable[..., Any], client: Scheduler) -> None:
    """A node answers on the ports that it is given; the role api alone runs no jobs."""
    pytest.importorskip("prometheus_client")
    pytest.importorskip("uvicorn")
    job = client.enqueue("greet")
    options = ("--role", "api", "--api-port", "0", "--metrics-port", "0", "--json")
    with program("run", *options) as node:
        (said,) = node.started()
        with urllib.request.urlopen(f"http://127.0.0.1:{said['metrics_port']}/metrics", timeout=30) as answer:
            assert b"scheduler_jobs_running" in answer.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{said['api_port']}/api/v1/jobs", timeout=30) as answer:
            assert [one["id"] for one in json.load(answer)] == [job.id]
        assert client.nodes() == []
        assert node.end(signal.SIGTERM) == 0
    assert client.get_job(job.id).state is JobState.PENDING


# --- processes ----------------------------------------------------------------------------------------


def test_processes(program: Callable[..., Any], client: Scheduler) -> None:
    """The parent starts nodes, replaces one that dies, and ends with 0 when all have ended in good order."""
    with program("run", "works", "--processes", "2", "--json") as parent:
        pids = {said["pid"] for said in parent.started(2)}
        assert parent.process.pid not in pids
        assert client.wait(client.enqueue("greet").id, 60).result["leash"] == []

        victim = min(pids)
        os.kill(victim, signal.SIGKILL)
        (said,) = parent.started()
        assert said["pid"] not in pids
        assert "process ended, starting another" in parent.errors()

        # By hand, in good order: it is replaced as well.
        os.kill(said["pid"], signal.SIGTERM)
        assert parent.line()["event"] == "stopped"
        (again,) = parent.started()

        assert parent.end(signal.SIGTERM) == 0
        assert {parent.line()["clean"], parent.line()["clean"]} == {True}
        assert not any(map(alive, [*pids, said["pid"], again["pid"]]))
    assert {node.stopped_at is not None for node in client.nodes() if node.pid != victim} == {True}


def test_no_orphans(program: Callable[..., Any], client: Scheduler) -> None:
    """When the parent is killed, the nodes notice, stop in good order and end."""
    with program("worker", "works", "--processes", "3", "--json") as parent:
        pids = [said["pid"] for said in parent.started(3)]
        parent.process.kill()
        eventually(lambda: not any(map(alive, pids)), timeout=60)
    assert all(node.stopped_at is not None for node in client.nodes())


def test_a_family_that_cannot_start_says_so_once(program: Callable[..., Any], empty_dsn: str) -> None:
    """What is wrong with the module or the database is one line, with the status that one process would have."""
    with program("run", "no_such_module", "--processes", "4") as parent:
        assert parent.end() == 1
        assert parent.errors().count("cannot import module") == 1
    with program("run", "works", "--processes", "4", DATABASE_URL=empty_dsn) as parent:
        assert parent.end() == 1
        assert parent.errors().count("pgscheduler migrate") == 1
    with program("run", "--config", "jobs.yaml", "--processes", "4") as parent:
        assert parent.end() == 2


def test_a_family_gives_back_what_does_not_end(program: Callable[..., Any], client: Scheduler) -> None:
    """A job that ignores the shutdown is given back by its node, and the parent's status is 1."""
    job = client.enqueue("stubborn")
    with program("run", "works", "--processes", "2", "--shutdown-timeout", "0.2", "--json") as parent:
        parent.started(2)
        eventually(lambda: client.get_job(job.id).progress, timeout=60)
        assert parent.end(signal.SIGTERM) == 1
    assert client.get_job(job.id).state is JobState.PENDING


def test_a_second_signal_ends_the_family(program: Callable[..., Any], client: Scheduler) -> None:
    """At once, with 130, and no process is left."""
    job = client.enqueue("stubborn")
    with program("run", "works", "--processes", "2", "--json") as parent:
        pids = [said["pid"] for said in parent.started(2)]
        eventually(lambda: client.get_job(job.id).progress, timeout=60)
        parent.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping the processes" in parent.errors(), timeout=60)
        assert parent.end(signal.SIGINT) == 130
        eventually(lambda: not any(map(alive, pids)), timeout=60)


def test_ctrl_c_reaches_the_nodes_once(program: Callable[..., Any], client: Scheduler) -> None:
    """A terminal sends it to the whole group: the parent alone hears it, and all end in good order."""
    with program("run", "works", "--processes", "2", "--json") as parent:
        parent.started(2)
        os.killpg(parent.process.pid, signal.SIGINT)
        assert parent.end() == 0
        assert {parent.line()["signal"], parent.line()["signal"]} == {"SIGTERM"}


ECHOES = """
import signal, sys
from pgscheduler.cli import _signals
_signals.ECHO = float(sys.argv[1])
signals = _signals.Signals(lambda: print("second", flush=True))
for number in sys.argv[2:]:
    signal.raise_signal(int(number))
print(signals.wait(), flush=True)
"""


@pytest.mark.parametrize(
    ("seconds", "numbers", "status", "said"),
    [
        ("3600", (signal.SIGTERM, signal.SIGTERM), 0, "SIGTERM"),
        ("3600", (signal.SIGTERM, signal.SIGINT), 130, "second"),
        ("0", (signal.SIGTERM, signal.SIGTERM), 130, "second"),
    ],
)
def test_the_same_signal_at_once_is_one(
    seconds: str, numbers: tuple[signal.Signals, ...], status: int, said: str
) -> None:
    """`timeout` and programs that pass signals on send two; what comes later, or is another one, means now."""
    done = subprocess.run(
        [sys.executable, "-c", ECHOES, seconds, *(str(int(number)) for number in numbers)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, f"{said}\n"), done.stderr
