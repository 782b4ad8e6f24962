"""What the tests of features share: quiet schedulers, a bad web server, REST, and the command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.conftest import call, clock, gate, quiet, scheduler_on
from tests.jobs.conftest import web
from tests.support import ROOT
from tests.support.processes import NodeProcess
from tests.web.conftest import api, client_of, scheduler

__all__ = ["api", "call", "client_of", "clock", "gate", "quiet", "scheduler", "scheduler_on", "web"]

WORKS = "tests.rows.works"  # the module with the jobs that the commands run


@pytest.fixture
def environment(dsn: str) -> dict[str, str]:
    """What a command's process sees: this test's database, and intervals short enough for a test."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PGSCHEDULER_")}
    return {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": dsn,
        "PGSCHEDULER_RUN_IMMEDIATELY": "true",
        "PGSCHEDULER_JOB_CHECK_INTERVAL": "1",
        "PGSCHEDULER_HEARTBEAT_INTERVAL": "0.5",
        "PGSCHEDULER_NO_HEARTBEAT_TIMEOUT": "60",  # so that a busy machine makes no node look dead
    }


@pytest.fixture
def command(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("jobs", "--json")`: the command, to its end; `returncode`, `stdout` and `stderr`."""

    def call(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pgscheduler", *arguments],
            text=True,
            capture_output=True,
            timeout=60,
            **{"env": environment, "cwd": ROOT, **more},
        )

    return call


@pytest.fixture
def node(
    nodes: Callable[..., NodeProcess], environment: dict[str, str]
) -> Callable[..., tuple[NodeProcess, dict[str, Any]]]:
    """`node("worker", WORKS)`: the command as a node that goes on, and what it said when it had started.

    With `ready=False` it is not waited for, so that several can start at once.
    """

    def start(*arguments: str, ready: bool = True, **more: str) -> tuple[NodeProcess, dict[str, Any]]:
        process = nodes("pgscheduler", *arguments, "--json", env={**environment, **more})
        return process, process.wait_for("started", timeout=60) if ready else {}

    return start
