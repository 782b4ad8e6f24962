"""The API as processes: the command from start to signal, and two servers over one database."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.support import ROOT
from tests.web.conftest import READ, WRITE

JOBS = "/api/v1/jobs"
MODULE = """
import time

from pgscheduler import Job


class Work(Job):
    def run(self, ctx):
        ctx.log.info("done", n=ctx.parameters["n"])
        time.sleep(0.02)
        if ctx.parameters["n"] % 5 == 0:
            raise RuntimeError("as it was told")
"""


@contextmanager
def api_process(dsn: str, directory: Path, *arguments: str, **environ: str) -> Iterator[tuple[Any, str]]:
    """`pgscheduler api` as a process of its own: it, and where it answers."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PGSCHEDULER_")}
    command = [sys.executable, "-m", "pgscheduler", "api", *arguments, "--port", "0", "--json"]
    with subprocess.Popen(
        command,
        env={**env, "PGSCHEDULER_DSN": dsn, "PYTHONPATH": str(ROOT), **environ},
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            started = json.loads(process.stdout.readline() or "{}")
            assert started.get("event") == "started", process.stderr and process.stderr.read()
            yield process, f"http://127.0.0.1:{started['api_port']}"
        finally:
            process.kill()


def test_two_servers_share_the_engine(dsn: str, tmp_path: Path, db: psycopg.Connection[Any]) -> None:
    """Two servers, called at once and again: every due job runs once, and the answers add up to all of them."""
    (tmp_path / "work.py").write_text(MODULE)
    with api_process(dsn, tmp_path, "work") as (_, one), api_process(dsn, tmp_path, "work") as (_, other):
        with httpx.Client(base_url=one) as client:
            for n in range(40):
                assert client.post(JOBS, json={"name": "work", "parameters": {"n": n}}).status_code == 201

        def call(url: str) -> dict[str, Any]:
            answer = httpx.post(f"{url}/jobs/engine/run", timeout=120)
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(call, [one, other] * 3))
    started = [answer["start"] for answer in answers]
    assert sum(s["ok_count"] for s in started) == 32
    assert sum(s["error_count"] for s in started) == 8
    assert all(s["ok_count"] + s["error_count"] <= 10 for s in started)
    assert all(answer["expire"] == {"ok_count": 0, "error_count": 0} for answer in answers)
    runs = db.execute("select parameters->>'n', count(*) from pgscheduler_runs group by 1").fetchall()
    assert sorted(runs) == sorted((str(n), 1) for n in range(40))
    nodes = db.execute("select count(distinct node_id) from pgscheduler_runs").fetchone()
    assert nodes == (2,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_in_good_order(dsn: str, tmp_path: Path, number: int) -> None:
    """A signal ends it with status 0; what it said is one JSON line each, without the database's address."""
    tokens = {"PGSCHEDULER_API_READ_TOKENS": READ, "PGSCHEDULER_API_WRITE_TOKENS": WRITE}
    with api_process(dsn, tmp_path, **tokens) as (process, url):
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": f"Bearer {READ}"}).status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, json.loads(out)["event"]) == (0, "stopped"), err
        assert READ not in err + out
        assert WRITE not in err + out
        assert dsn not in err + out


@pytest.mark.parametrize(
    ("arguments", "environ", "status", "text"),
    [
        (["--host", "0.0.0.0"], {}, 2, "PGSCHEDULER_API_WRITE_TOKENS"),
        (["--host", "::"], {}, 2, "PGSCHEDULER_API_WRITE_TOKENS"),
        (["--host", "203.0.113.1"], {"PGSCHEDULER_API_READ_TOKENS": READ}, 1, "cannot listen"),
        (["--host", "no host"], {}, 1, "cannot listen"),
        ([], {"PGSCHEDULER_API_READ_TOKENS": "hunter2"}, 2, "PGSCHEDULER_API_READ_TOKENS must have 16"),
        ([], {"PGSCHEDULER_API_WRITE_TOKENS": ""}, 2, "PGSCHEDULER_API_WRITE_TOKENS must hold"),
        (["nowhere"], {}, 1, "cannot import module 'nowhere'"),
    ],
)
def test_the_command_refuses(
    dsn: str, tmp_path: Path, arguments: list[str], environ: dict[str, str], status: int, text: str
) -> None:
    """One line that says why, the status of a wrong command line, and no secret."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PGSCHEDULER_")}
    done = subprocess.run(
        [sys.executable, "-m", "pgscheduler", "api", "--port", "0", *arguments],
        env={**env, "PGSCHEDULER_DSN": dsn, "PYTHONPATH": str(ROOT), **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, text in last) == (status, True), done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_readme(dsn: str, tmp_path: Path) -> None:
    """The commands of the README's section do what it says, as they stand."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## REST API\n(.*?)(?=^## )", readme, re.MULTILINE | re.DOTALL)
    assert section
    start, calls = re.findall(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    token = re.search(r"PGSCHEDULER_API_WRITE_TOKENS=(\S+)", start)
    assert token
    assert "pgscheduler api" in start
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    with api_process(dsn, tmp_path, PGSCHEDULER_API_WRITE_TOKENS=token[1]) as (_, url):
        script = calls.replace("http://127.0.0.1:8000", url)
        environ = {**os.environ, "PGSCHEDULER_API_WRITE_TOKENS": token[1]}
        done = subprocess.run(
            ["sh", "-eu"], input=script, env=environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "Job scheduled successfully." in done.stdout
        assert '"error"' not in done.stdout
