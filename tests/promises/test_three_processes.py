"""A scheduler, two workers and an API, each a process of the command, on one database and driven through HTTP alone."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgscheduler import Cron, Every, Schedule
from tests.promises.node_scripts import accounted, create_ledger, overlaps
from tests.support.processes import NodeProcess

httpx = pytest.importorskip("httpx")
pytest.importorskip("click")
pytest.importorskip("uvicorn")

MODULE = """
import os
from pgscheduler import JobConfig
from tests.promises.node_scripts import Work
from tests.support.processes import emit

class Long(Work):
    def run(self, ctx):
        if ctx.attempt == 1:
            emit("long")
            ctx.wait(600)
        return super().run(ctx)

DSN = os.environ["PGSCHEDULER_DSN"]
BEAT = JobConfig.recurring("beat", "0/2 * * * * *", parameters={"seconds": 0.2}, max_stalls=50)
JOBS = [
    Work(JobConfig.one_time("work"), DSN), Long(JobConfig.one_time("long"), DSN),
    Work(JobConfig.one_time("tick"), DSN), Work(BEAT, DSN),
]
"""

JOBS, RUNS = "/api/v1/jobs", "/api/v1/runs"
SECOND = timedelta(seconds=1)


@pytest.fixture
def process(
    nodes: Callable[..., NodeProcess], dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., NodeProcess]:
    """`process("worker")`: `python -m pgscheduler worker three:JOBS`, once it says that it has started."""
    (tmp_path / "three.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = {
        "PGSCHEDULER_DSN": dsn,
        "PGSCHEDULER_HEARTBEAT_INTERVAL": "1",
        # Longer than a busy machine keeps a living node from its work.
        "PGSCHEDULER_NO_HEARTBEAT_TIMEOUT": "8",
        "PGSCHEDULER_JOB_CHECK_INTERVAL": "1",
        "PGSCHEDULER_RUN_IMMEDIATELY": "true",
        "PGSCHEDULER_MAX_CONCURRENT_JOBS": "4",
    }

    def start(role: str, *options: str) -> NodeProcess:
        node = nodes("pgscheduler", role, *options, "--json", env=settings)
        node.wait_for("started", timeout=60, roles=[role])
        return node

    return start


@pytest.fixture
def api(process: Callable[..., NodeProcess]) -> Iterator[tuple[Any, NodeProcess]]:
    """A client of the API's process, and that process."""
    node = process("api", "--port", "0")
    (started,) = node.seen("started")
    with httpx.Client(base_url=f"http://127.0.0.1:{started['api_port']}", timeout=60) as client:
        yield client, node


def made(client: Any, **body: Any) -> dict[str, Any]:
    """A job that was stored through HTTP."""
    answer = client.post(JOBS, json={"max_stalls": 50, **body})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()["job"]
    return found


def listed(client: Any, path: str, **query: Any) -> list[dict[str, Any]]:
    """All rows of a list, page by page as its `Link` header says."""
    answer = client.get(path, params={"limit": 100, **query})
    rows: list[dict[str, Any]] = answer.json()
    while "next" in answer.links:
        answer = client.get(answer.links["next"]["url"])
        rows += answer.json()
    assert answer.status_code == 200, answer.text
    return rows


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def occurrences(schedule: Schedule, first: datetime, following: datetime) -> Counter[datetime]:
    """Each occurrence from the first to the one before the next one to come, once."""
    found: Counter[datetime] = Counter()
    at: datetime | None = first
    while at is not None and at < following:
        found[at] += 1
        at = schedule.next_after(at)
    return found


@pytest.mark.slow
def test_a_worker_is_killed_and_nothing_is_lost_or_doubled(
    process: Callable[..., NodeProcess],
    api: tuple[Any, NodeProcess],
    dsn: str,
    db: psycopg.Connection[Any],
    eventually: Callable[..., Any],
) -> None:
    """Each job completes once, each occurrence has one end, none beside itself; all end in good order at SIGTERM."""
    create_ledger(dsn)
    client, server = api
    victim = process("worker", "three:JOBS")
    long = made(client, name="long")
    victim.wait_for("long", timeout=60)
    worker, scheduler = process("worker", "three:JOBS"), process("scheduler", "three:JOBS")
    tick = made(client, name="tick", schedule={"every": 1}, parameters={"seconds": 0.4})
    (beat,) = listed(client, JOBS, name="beat")  # the scheduler's process has stored it
    jobs = [made(client, name="work", key=f"{n}", parameters={"seconds": 0.3}) for n in range(40)]
    again = client.post(JOBS, json={"name": "work", "key": "0", "parameters": {}})
    assert (again.status_code, again.json()["code"]) == (409, "duplicate_job")

    for _ in range(6):  # in the middle: it has ended some, and runs at least one
        victim.wait_for("started", timeout=60, name="work")
    assert victim.kill() == -signal.SIGKILL
    (at,) = db.execute("select clock_timestamp()").fetchone()  # type: ignore[misc]
    jobs += [made(client, name="work", key=f"{n}", parameters={"seconds": 0.1}) for n in range(40, 60)]
    eventually(lambda: listed(client, JOBS, recurring="false") == [], timeout=90, describe="all jobs end")
    eventually(lambda: len(listed(client, RUNS, name="tick", outcome="completed")) >= 8, timeout=60)
    for job in (tick, beat):
        client.post(f"{JOBS}/{job['id']}/disable")
        eventually(lambda: client.get(f"{JOBS}/{job['id']}").json()["state"] == "paused", timeout=60)  # noqa: B023

    # What HTTP tells: one success for each job; the victim's runs stalled, and it is known to be dead.
    runs = listed(client, RUNS)
    work = [run for run in runs if run["name"] == "work"]
    succeeded = Counter(run["job_id"] for run in work if run["status"] == "SUCCESS")
    assert succeeded == {job["id"]: 1 for job in jobs}
    assert {run["outcome"] for run in work} <= {"completed", "stalled"}
    assert [run["outcome"] for run in runs if run["job_id"] == long["id"]] == ["completed", "stalled"]
    dead = {node["id"]: node["pid"] for node in listed(client, "/api/v1/nodes", alive="false")}
    assert list(dead.values()) == [victim.pid]
    assert {run["node_id"] for run in runs if run["outcome"] == "stalled"} == dead.keys()
    begun = [run for run in runs if run["started_at"] is not None]
    assert [run for run in begun if moment(run["started_at"]) < moment(run["scheduled_at"])] == []

    # What the jobs themselves wrote: each ran to its end under the token on record, and none beside itself.
    ended = {
        row[0]
        for row in db.execute("select job from ledger where name = 'work' and ended is not null").fetchall()
    }
    assert ended == {job["id"] for job in jobs}
    unrecorded = db.execute(
        "select l.* from ledger l left join pgscheduler_runs r on (r.job_id, r.token) = (l.job, l.token)"
        " where r.job_id is null"
    ).fetchall()
    assert unrecorded == []
    assert overlaps(db, {victim.pid: at}) == []

    # Each occurrence of the two recurring jobs has exactly one end.
    for job, schedule in ((tick, Every(SECOND)), (beat, Cron("0/2 * * * * *"))):
        (following,) = db.execute(
            "select scheduled_at from pgscheduler_jobs where id = %s", [job["id"]]
        ).fetchone()  # type: ignore[misc]
        first = min(moment(run["scheduled_at"]) for run in listed(client, RUNS, jobId=job["id"]))
        assert occurrences(schedule, first, following.astimezone(UTC)) == accounted(db, job["id"], schedule)
    assert moment(tick["scheduled_at"]) == min(accounted(db, tick["id"], Every(SECOND)))

    # All of them end in good order; the API is the last, and tells of the others.
    for node in (worker, scheduler):
        node.terminate()
        assert node.wait() == 0, node.report()
        assert node.seen("stopped", clean=True)
    assert [node["alive"] for node in listed(client, "/api/v1/nodes")] == [False] * 3
    server.terminate()
    assert server.wait() == 0, server.report()
    assert [node for node in (worker, scheduler, server) if "Traceback" in node.stderr()] == []
