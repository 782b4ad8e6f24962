"""How nodes start, stop, answer and share the work: one test for each feature, by its number in `test_all_rows`."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from pgscheduler import InvalidValueError, JobConfig, JobState, Scheduler, SchedulerConfig
from pgscheduler.web import Server, Tokens, create_app
from tests.engine.conftest import Call, Gate, Quiet
from tests.rows.conftest import WORKS
from tests.support import eventually
from tests.support.processes import NodeProcess

Made = Callable[..., Scheduler]
Node = Callable[..., tuple[NodeProcess, dict[str, Any]]]
Command = Callable[..., subprocess.CompletedProcess[str]]

#: The metrics that Kronii's README names, and those of its code.
KRONII = [
    "scheduler_jobs_total", "scheduler_jobs_running", "scheduler_jobs_failed", "scheduler_jobs_success",
    'job_executions_total{job_name="good"}', 'job_failures_total{job_name="bad"}', "jobs_running",
    'job_duration_seconds_count{job_name="bad"}',
]  # fmt: skip

JOBS = "/api/v1/jobs"
PAYLOAD = {"type": "API_CALL", "url": "https://example.org/hook", "method": "POST", "data": {"a": 1}}
MISSING = "Missing required fields: name, cron_expression, and task_payload."


def test_row_61_graceful_shutdown(dsn: str, scheduler_on: Made, quiet: Quiet, call: type[Call]) -> None:
    """A shutdown starts nothing more, tells running jobs, and writes down what ends in time (go-pg-scheduler, Kronii)."""
    begun, told = threading.Event(), threading.Event()

    def run(ctx: Any) -> str:
        begun.set()
        ctx.wait(60)
        told.set()
        time.sleep(0.5)  # what it takes to end well
        return "in good order"

    scheduler = scheduler_on(dsn, start=True, logger=quiet, max_concurrent_jobs=1)
    job = scheduler.schedule(call(JobConfig.one_time("slow"), run))
    assert begun.wait(30)
    scheduler.register(call(JobConfig(name="next")))
    following = scheduler.enqueue("next")
    assert scheduler.shutdown() is True
    assert told.is_set()
    assert "all jobs completed gracefully" in quiet.events()

    client = scheduler_on(dsn)
    ended = client.get_job(job)
    assert (ended.state, ended.result) == (JobState.COMPLETED, "in good order")
    assert client.get_job(following).state is JobState.PENDING


def test_row_63_signals(node: Node, scheduler: Scheduler) -> None:
    """SIGTERM and SIGINT end a node in good order, with status 0; a second signal ends it at once (Kronii, Cron Service)."""
    both = [node("worker", WORKS, ready=False)[0] for _ in range(2)]
    for process, number in zip(both, (signal.SIGTERM, signal.SIGINT), strict=True):
        process.wait_for("started", timeout=60)
        process.signal(number)
    assert [process.wait() for process in both] == [0, 0]
    assert all(one.stopped_at is not None for one in scheduler.nodes())

    process, _ = node("worker", WORKS)
    job = scheduler.enqueue("stubborn")
    eventually(lambda: scheduler.get_job(job).progress, timeout=60)
    process.terminate()
    eventually(lambda: "signal received, shutting down" in process.stderr(), timeout=60)
    begun = time.monotonic()
    process.signal(signal.SIGINT)  # the same one at once would count as one: some programs send it twice
    assert process.wait() == 130
    assert time.monotonic() - begun < 20  # its jobs may take 30 s


def test_row_64_metrics_endpoint(node: Node, scheduler: Scheduler, tmp_path: Path) -> None:
    """GET /metrics in Prometheus' text, with the names of Kronii's README and of its code; a failed attempt counts once,
    and none runs below zero (Kronii).

    It listens on the own machine only, and only on the port that it is given.
    """
    (tmp_path / "measured.py").write_text(
        "from pgscheduler import Backoff, Job, JobConfig\n"
        "from datetime import timedelta\n"
        "class Good(Job):\n"
        "    def run(self, ctx): ...\n"
        "class Bad(Job):\n"
        "    config = JobConfig(retries=1, backoff=Backoff(initial=timedelta(0)))\n"
        "    def run(self, ctx):\n"
        "        raise ValueError('no')\n"
    )
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    process, said = node("worker", "measured", "--metrics-port", "0", PYTHONPATH=path)
    for name in ("good", "good", "bad"):
        scheduler.wait(scheduler.enqueue(name), 60)

    def figures() -> dict[str, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{said['metrics_port']}/metrics", timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            lines = answer.read().decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    # The node counts an attempt once it knows that it is recorded, which we may know before it.
    eventually(lambda: float(figures()["scheduler_jobs_total"]) == 4)
    found = figures()
    assert [float(found[name]) for name in KRONII] == [4, 0, 2, 2, 2, 2, 0, 2]
    assert not [line for line, value in found.items() if float(value) < 0]
    process.terminate()
    assert process.wait() == 0


@pytest.mark.parametrize(
    "body",
    [
        {"name": "ping", "cron_expression": "*/5 * * * *", "task_payload": PAYLOAD},
        {"name": "ping", "cronExpression": "*/5 * * * *", "taskPayload": PAYLOAD, "isActive": True},
    ],
    ids=["snake_case", "camelCase"],
)
def test_row_65_rest_api(api: httpx.Client, scheduler: Scheduler, body: dict[str, Any]) -> None:
    """Cron Service's endpoints with its bodies, codes and texts, in both spellings (Cron Service)."""
    said = api.post(JOBS, json=body)
    assert (said.status_code, said.json()["message"]) == (201, "Job scheduled successfully.")
    job = said.json()["job"]
    told = {"id": job["id"], "name": "ping", "cron_expression": "*/5 * * * *", "is_active": True}
    assert job.items() >= told.items()
    assert [
        one.items() >= {**told, "created_at": job["created_at"]}.items() for one in api.get(JOBS).json()
    ] == [True]
    assert api.get(f"{JOBS}?jobId={job['id']}").json()[0]["id"] == job["id"]
    assert scheduler.get_job(("http_job", "ping")).parameters == PAYLOAD

    unsupported = {**body, "name": "x", "task_payload": {**PAYLOAD, "type": "MAIL"}}
    unsupported.pop("taskPayload", None)
    wrong_line = {"name": "x", "cron_expression": "* * * *", "task_payload": PAYLOAD}
    for method, path, sent, status, text in (
        ("POST", JOBS, {"name": "x"}, 400, MISSING),
        ("POST", JOBS, wrong_line, 400, "Invalid cron_expression format."),
        ("POST", JOBS, unsupported, 400, "Unsupported job type: MAIL"),
        ("POST", JOBS, body, 409, "Job with name 'ping' already exists."),
        ("GET", f"{JOBS}?jobId=12abc", None, 400, "jobId must be a valid integer."),
        ("GET", f"{JOBS}?jobId=999999", None, 404, "Job with ID 999999 not found."),
        ("DELETE", f"{JOBS}/12abc", None, 400, "Invalid job ID provided."),
        ("DELETE", f"{JOBS}/999999", None, 404, "Job with ID 999999 not found."),
    ):
        answer = api.request(method, path, json=sent)
        assert (answer.status_code, answer.json()["error"]) == (status, text)
    deleted = api.delete(f"{JOBS}/{job['id']}")
    text = f"Job ID {job['id']} and all its execution history deleted successfully."
    assert (deleted.status_code, deleted.json()["message"]) == (200, text)
    assert api.get(JOBS).json() == []


def test_row_65_who_is_answered(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> None:
    """Only the own machine, unless there is a token; then only who has it (Cron Service asks nobody)."""
    with pytest.raises(InvalidValueError, match="token"):
        Server(create_app(scheduler, tokens=Tokens()), host="0.0.0.0", port=0)
    tokens = Tokens(read=["look-0123456789abcdef"], write=["change-0123456789abcdef"])
    order = {"name": "work", "parameters": {}}
    asked = [
        (client.get(JOBS).status_code, client.post(JOBS, json=order).status_code)
        for token in (None, "wrong-0123456789abcdef", "look-0123456789abcdef", "change-0123456789abcdef")
        if (client := client_of(scheduler, tokens=tokens, token=token))
    ]
    assert asked == [(401, 401), (401, 401), (200, 403), (200, 201)]


def test_row_66_engine_endpoint(
    dsn: str, scheduler_on: Made, client_of: Callable[..., httpx.Client], call: type[Call], gate: Gate
) -> None:
    """POST /jobs/engine/run runs what is due and says how it went; two processes asked at once share the jobs (Bildad)."""
    ran: list[int] = []

    def work(ctx: Any) -> None:
        ran.append(ctx.job_id)
        gate(ctx)
        if ctx.parameters.get("bad"):
            raise ValueError("no")

    both = [scheduler_on(dsn, register=(call(JobConfig(name="work"), work),)) for _ in range(2)]
    for n in range(14):
        both[0].enqueue("work", {"bad": n == 13})
    clients = [client_of(scheduler) for scheduler in both]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.post, "/jobs/engine/run") for client in clients]
        gate.wait_for(2)  # both are in their first job
        gate.open()
        answers = [one.result(60) for one in asked]
    assert [answer.status_code for answer in answers] == [200, 200]
    told = [answer.json() for answer in answers]
    assert sum(one["start"]["ok_count"] for one in told) == 13
    assert sum(one["start"]["error_count"] for one in told) == 1
    assert [one["expire"] for one in told] == [{"ok_count": 0, "error_count": 0}] * 2
    assert sorted(ran) == sorted({run.job_id for run in both[0].runs()})
    assert len(ran) == 14


def test_row_67_health(api: httpx.Client, db: psycopg.Connection[Any]) -> None:
    """GET / says who answers; /healthz that the process lives, /readyz that it can work (Cron Service)."""
    said = api.get("/")
    assert said.status_code == 200
    assert said.json().items() >= {"service": "pgscheduler API", "status": "Running"}.items()
    assert {"dbHost", "queueName"} <= said.json().keys()
    assert (api.get("/healthz").json(), api.get("/readyz").json()["status"]) == ({"status": "ok"}, "ready")


def test_row_68_role_processes(node: Node, scheduler: Scheduler, tmp_path: Path) -> None:
    """What stores the recurring jobs, what runs them and what answers are processes of their own, or one (Cron Service)."""
    file = tmp_path / "jobs.yaml"
    file.write_text('jobs: [{name: mark, cron: "* * * * * *"}]')
    apart = {
        role: node(*arguments, ready=False)[0]
        for role, arguments in {
            "scheduler": ("scheduler", WORKS, "--config", str(file)),
            "worker": ("worker", WORKS),
            "api": ("api", "--port", "0"),
        }.items()
    }
    said = {role: process.wait_for("started", timeout=60) for role, process in apart.items()}
    assert {role: one["roles"] for role, one in said.items()} == {role: [role] for role in apart}
    assert {role for role, one in said.items() if one["jobs"]} == {"worker"}
    # Occurrences that a slow start has missed are on record before the first run.
    run = eventually(lambda: scheduler.runs(name="mark", outcome="completed"), timeout=60)[0]
    assert (run.node_id, run.result["pid"]) == (said["worker"]["node"], apart["worker"].pid)
    told = httpx.get(f"http://127.0.0.1:{said['api']['api_port']}{JOBS}", timeout=30).json()
    assert [job["key"] for job in told] == ["mark"]
    for process in apart.values():
        process.terminate()
    assert [process.wait() for process in apart.values()] == [0, 0, 0]

    roles = [option for role in ("scheduler", "worker", "api") for option in ("--role", role)]
    together, one = node("run", WORKS, *roles, "--api-port", "0")
    assert one["roles"] == ["api", "scheduler", "worker"]
    sent = {"name": "greet", "parameters": {}}
    job = httpx.post(f"http://127.0.0.1:{one['api_port']}{JOBS}", json=sent, timeout=30).json()["job"]
    assert scheduler.wait(job["id"], 60).result == {"pid": together.pid}
    together.terminate()
    assert together.wait() == 0


def test_row_69_command_line(
    command: Command, nodes: Callable[..., NodeProcess], scheduler: Scheduler, dsn: str, tmp_path: Path
) -> None:
    """The four options: a file of jobs, the database, how many at once, where the metrics are (Kronii).

    Defaults are our own: ten at once, no metrics until there is a port; and a file's commands run only if allowed.
    """
    said = command("run", "--help").stdout
    for option in ("--config", "--database-url", "--max-concurrency", "--metrics-port"):
        assert option in said

    file = tmp_path / "jobs.yaml"
    file.write_text(
        'jobs: [{name: hello, schedule: "* * * * * *", command: echo hello, retries: 0, timeout_seconds: 9}]'
    )
    options = ("--config", file, "--database-url", dsn, "--max-concurrency", 3, "--metrics-port", 0)
    process = nodes("pgscheduler", "run", *options, "--allow-shell", "--json")
    started = process.wait_for("started", timeout=60)
    assert started["metrics_port"] > 0
    run = eventually(lambda: scheduler.runs(key="hello", outcome="completed"), timeout=60)[0]
    assert (run.result["output"], [one.slots for one in scheduler.nodes()]) == ("hello\n", [3])
    process.terminate()
    assert process.wait() == 0


def test_row_70_install(command: Command, direct_empty_dsn: str, call: type[Call]) -> None:
    """A command prints the tables' SQL for whoever may create them; applied twice it changes nothing (Bildad, Laki)."""
    printed = command("schema", "--prefix", "x_")
    assert printed.returncode == 0, printed.stderr
    assert command("migrate", "--print", "--prefix", "x_").stdout == printed.stdout
    with psycopg.connect(direct_empty_dsn, autocommit=True) as connection:
        for _ in range(2):
            connection.execute(printed.stdout)
    config = SchedulerConfig(dsn=direct_empty_dsn, table_prefix="x_", logger=Quiet())
    with Scheduler(config) as scheduler:
        scheduler.schedule(call(JobConfig.one_time("work")))
        assert scheduler.run_pending().completed == 1

    applied = command("migrate", "--dsn", direct_empty_dsn, "--prefix", "x_")
    assert applied.stdout == "the tables are up to date\n"
    made = command("migrate", "--dsn", direct_empty_dsn, "--prefix", "y_", "--json")
    assert json.loads(made.stdout)["migrations"] > 0


@pytest.mark.slow
def test_row_71_many_nodes(node: Node, scheduler: Scheduler, db: psycopg.Connection[Any]) -> None:
    """Four processes on one database, one of them killed every two seconds and replaced: no job is lost, none meets
    itself, none is run twice to its end (all of them)."""
    soon = {"PGSCHEDULER_NO_HEARTBEAT_TIMEOUT": "6"}
    alive = [node("worker", WORKS, ready=False, **soon)[0] for _ in range(4)]
    for process in alive:
        process.wait_for("started", timeout=60)
    jobs = [scheduler.enqueue("mark", {"seconds": 0.05 * (n % 5)}, max_stalls=50) for n in range(150)]
    tick = scheduler.schedule_by_name("greet", "* * * * * *", max_stalls=50)
    killed = []
    for _ in range(3):
        time.sleep(2)  # the rhythm of the test, nothing is awaited
        victim = alive.pop(0)
        killed.append(victim.kill())
        alive.append(node("worker", WORKS, ready=False, **soon)[0])
    assert killed == [-signal.SIGKILL] * 3
    for job in jobs:
        assert scheduler.wait(job, 60).state is JobState.COMPLETED
    scheduler.pause(tick)
    eventually(lambda: scheduler.get_job(tick).state is JobState.PAUSED, timeout=60)
    for process in alive:
        if not process.seen("started"):
            process.wait_for("started", timeout=60)
        process.terminate()
    assert [process.wait() for process in alive] == [0] * 4

    done = "select job_id, scheduled_at from pgscheduler_runs where outcome = 'completed'"
    assert db.execute(f"{done} group by 1, 2 having count(*) > 1").fetchall() == []
    others = db.execute(f"{done} and job_id <> %s", [tick.id]).fetchall()
    assert {job for job, _ in others} == {job.id for job in jobs}
    # A job's runs, also those that a killed node left, follow one another.
    runs = [run for run in scheduler.runs(tick, limit=1000) if run.started_at is not None]
    assert all(later.started_at >= earlier.finished_at for later, earlier in pairwise(runs))
    assert len(runs) >= 5
