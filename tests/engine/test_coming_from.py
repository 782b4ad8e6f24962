"""Kronii's and Cron Service's first steps, as their users type them: variables, the command, and curl."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgscheduler import Scheduler, SchedulerConfig
from tests.jobs.conftest import Web, web
from tests.support import ROOT, reserved_port
from tests.support.processes import NodeProcess

__all__ = ["web"]

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


def curl(*arguments: str) -> tuple[int, str]:
    """The status and the body."""
    command = ["curl", "-sS", "--max-time", "60", "-w", "\n%{http_code}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.fixture
def variables(dsn: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Cron Service's variables for this test's database, and no others of ours but what makes a test quick."""
    for name in ("DATABASE_URL", "PGSCHEDULER_DSN"):
        monkeypatch.delenv(name, raising=False)
    found = conninfo_to_dict(dsn)
    names = {
        "DB_USER": "user",
        "DB_HOST": "host",
        "DB_PORT": "port",
        "DB_DATABASE": "dbname",
        "DB_PASSWORD": "password",
    }
    given = {name: str(found[word]) for name, word in names.items() if found.get(word)}
    return {
        **given,
        "REDIS_HOST": "redis",
        "QUEUE_NAME": "cron-tasks",
        "PGSCHEDULER_RUN_IMMEDIATELY": "true",
        "PGSCHEDULER_JOB_CHECK_INTERVAL": "1",
    }


def test_cron_service(
    nodes: Callable[..., NodeProcess],
    variables: dict[str, str],
    web: Callable[..., Web],
    eventually: Callable[..., Any],
) -> None:
    """An API and a worker with its variables: what its README sends is answered as there, runs, and is history."""
    pytest.importorskip("uvicorn")
    target = web(lambda r: r.reply(500, b"x" * 200) if r.path == "/broken" else r.reply(200, b"fine"))
    api = nodes("pgscheduler", "api", "--port", "0", "--json", env=variables)
    port = api.wait_for("started", timeout=60)["api_port"]
    allowed = ("--allow-http", "--http-allow", target.place)  # it is no public address
    worker = nodes("pgscheduler", "worker", *allowed, "--max-concurrency", "5", "--json", env=variables)
    assert worker.wait_for("started", timeout=60)["jobs"] == ["http_job"]
    base = f"http://127.0.0.1:{port}"

    def post(**body: Any) -> tuple[int, dict[str, Any]]:
        kind = "Content-Type: application/json"
        status, text = curl("-X", "POST", f"{base}/api/v1/jobs", "-H", kind, "-d", json.dumps(body))
        return status, json.loads(text)

    def get(path: str) -> tuple[int, Any]:
        status, text = curl(base + path)
        return status, json.loads(text)

    def payload(path: str) -> dict[str, Any]:
        call = {"url": target.url + path, "method": "POST", "headers": {"X-From": "cron"}, "data": {"a": 1}}
        return {"type": "API_CALL", **call}

    # Create: in the README's spelling, and in the code's.
    status, answer = post(name="Good", cronExpression="* * * * * *", taskPayload=payload("/hook?b=2"))
    assert (status, answer["message"]) == (201, "Job scheduled successfully.")
    good = answer["job"]["id"]
    assert list(answer["job"].items())[:4] == [
        ("id", good), ("name", "Good"), ("cron_expression", "* * * * * *"), ("is_active", True),
    ]  # fmt: skip
    status, answer = post(name="Broken", cron_expression="* * * * * *", task_payload=payload("/broken"))
    broken = answer["job"]["id"]
    assert (status, answer["job"]["name"]) == (201, "Broken")

    # Wrong ones.
    assert error_of(post(name="x")) == (
        400,
        "Missing required fields: name, cron_expression, and task_payload.",
    )
    wrong = post(name="x", cronExpression="61 * * * *", taskPayload=payload("/"))
    assert error_of(wrong) == (400, "Invalid cron_expression format.")
    twice = post(name="Good", cronExpression="* * * * *", taskPayload=payload("/"))
    assert error_of(twice) == (409, "Job with name 'Good' already exists.")

    # List, and one of them.
    _, rows = get("/api/v1/jobs")
    five = ["id", "name", "cron_expression", "is_active", "created_at"]
    assert [list(row)[:5] for row in rows] == [five, five]
    assert [row["id"] for row in rows] == sorted([good, broken])
    assert [row["name"] for row in get(f"/api/v1/jobs?jobId={broken}")[1]] == ["Broken"]
    assert error_of(get("/api/v1/jobs?jobId=12abc")) == (400, "jobId must be a valid integer.")
    assert error_of(get("/api/v1/jobs?jobId=987654")) == (404, "Job with ID 987654 not found.")
    assert get("/")[1].items() >= {"service": "pgscheduler API", "status": "Running"}.items()

    # What ran.
    def history(job: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = get(f"/api/v1/runs?jobId={job}")[1]
        return found

    run = eventually(lambda: history(good), timeout=60)[-1]
    assert (run["status"], run["result"]["status"], run["result"]["body"]) == ("SUCCESS", 200, "fine")
    run = eventually(lambda: history(broken), timeout=60)[-1]
    assert run["status"] == "FAILED"
    assert f"API Call execution FAILED. Status: 500, Data: {'x' * 100}..." in run["error"]
    waiting = get(f"/api/v1/jobs?jobId={broken}")[1][0]
    assert (waiting["state"], waiting["retries_left"]) == ("pending", 1)  # three attempts, 5 and 10 s between
    hook = next(seen for seen in target.seen if seen.path == "/hook?b=2")
    assert (hook.method, hook.body, hook.headers["x-from"]) == ("POST", '{"a":1}', "cron")

    # Delete: with its history.
    status, text = curl("-X", "DELETE", f"{base}/api/v1/jobs/{broken}")
    gone = f"Job ID {broken} and all its execution history deleted successfully."
    assert (status, json.loads(text)["message"]) == (200, gone)
    assert history(broken) == []
    for path, expected in (
        (str(broken), (404, f"Job with ID {broken} not found.")),
        ("12abc", (400, "Invalid job ID provided.")),
    ):
        status, text = curl("-X", "DELETE", f"{base}/api/v1/jobs/{path}")
        assert error_of((status, json.loads(text))) == expected

    for node in (api, worker):
        node.terminate()
        assert node.wait() == 0, node.report()


def error_of(answer: tuple[int, Any]) -> tuple[int, str]:
    """The status and its words."""
    status, body = answer
    return status, body["error"]


def test_where_requests_may_go(dsn: str, web: Callable[..., Web], tmp_path: Path) -> None:
    """Only where --http-allow or the settings file says; a text in the file is one place, and a wrong one is refused."""
    target = web()
    settings = tmp_path / "pgscheduler.toml"

    def once(*options: str, table: str = "") -> tuple[int, str]:
        settings.write_text(f"[run]\n{table}")
        line = [
            sys.executable,
            "-m",
            "pgscheduler",
            "run",
            "--once",
            "--dsn",
            dsn,
            "--settings",
            str(settings),
            *options,
        ]
        done = subprocess.run(line, capture_output=True, text=True, timeout=90, cwd=ROOT, check=False)
        return done.returncode, done.stdout + done.stderr

    with Scheduler(SchedulerConfig(dsn=dsn)) as client:
        outcomes = []
        for options, table in (
            (("--allow-http",), ""),
            (("--allow-http", "--http-allow", "10.0.0.0/8", "--http-allow", target.place), ""),
            ((), f'allow_http = true\nhttp_allow = "{target.place}"\n'),
            ((), f'allow_http = true\nhttp_allow = ["{target.place}"]\n'),
        ):
            job = client.enqueue("http_job", {"url": target.url, "method": "GET"})
            status, said = once(*options, table=table)
            assert status == 0, said
            outcomes.append(client.get_job(job).state.value)
    assert outcomes == ["failed", "completed", "completed", "completed"]
    status, said = once("--http-allow", target.place)
    assert (status, "--http-allow goes with --allow-http" in said) == (2, True)
    status, said = once("--allow-http", "--http-allow", "10.0.0.0/99")
    assert (status, "allow" in said, "Traceback" in said) == (2, True, False)


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else is given before the node has it."""
    with reserved_port() as port:
        yield port


def test_kronii(
    nodes: Callable[..., NodeProcess],
    dsn: str,
    port: int,
    scheduler_on: Callable[..., Scheduler],
    eventually: Callable[..., Any],
) -> None:
    """Its ten jobs, its three variables and `curl localhost:…/metrics`: the four figures of its README."""
    pytest.importorskip("prometheus_client")
    pytest.importorskip("yaml")
    variables = {
        "DATABASE_URL": dsn,
        "WORKER_COUNT": "5",
        "METRICS_PORT": str(port),
        "PGSCHEDULER_ALLOW_SHELL": "1",
        "PGSCHEDULER_JOB_CHECK_INTERVAL": "1",
    }
    node = nodes("pgscheduler", "run", "--config", ROOT / "examples/kronii.yaml", "--json", env=variables)
    assert node.wait_for("started", timeout=60)["metrics_port"] == port

    def figures() -> dict[str, float]:
        status, text = curl(f"localhost:{port}/metrics")
        assert status == 200
        found = re.findall(r"^scheduler_jobs_(total|running|failed|success) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    found = eventually(lambda: (f := figures()) and min(f["success"], f["failed"] - 1) > 0 and f, timeout=60)
    assert found.keys() == {"total", "running", "failed", "success"}
    assert 0 <= found["running"] <= 5

    client = scheduler_on(dsn)
    assert [(one.slots, one.names) for one in client.nodes()] == [(5, ("shell_job",))]
    assert client.count_jobs(name="shell_job", recurring=True) == 10
    stored = {job.key: ((job.schedule or {})["cron"], job.options or {}) for job in client.jobs()}
    cron, options = stored["half_minutes"]
    assert (cron, options["retries"], options["timeout"]) == ("0/30 * * * * *", 3, 10.0)
    node.signal(signal.SIGTERM)
    assert node.wait() == 0, node.report()
