"""Procrastinate: asyncio workers over psycopg 3, here with psycopg's C implementation."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import python_program

VERSION = "3.10.0"
PROGRAM = HERE / "contestants" / "procrastinate_program.py"


def install(home: Path) -> list[str]:
    return python_program(
        home, PROGRAM, f"procrastinate=={VERSION}", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3"
    )


CONTESTANT = Contestant(
    name="procrastinate",
    version=VERSION,
    language=f"Python {sys.version_info.major}.{sys.version_info.minor}",
    settings=(
        Setting(
            "concurrency 30, deleting",
            'run_worker(concurrency=30, delete_jobs="always"), a pool of 31 connections; '
            "docs/howto/production/concurrency.md, delete_finished_jobs.md, and docs/discussions.md "
            "(Mind the size of your PostgreSQL pool: the concurrency plus one for short jobs)",
        ),
        Setting(
            "concurrency 30",
            "run_worker(concurrency=30), a pool of 31 connections; docs/howto/production/concurrency.md",
        ),
        Setting("default", "no setting: concurrency 1, jobs and their events stay, LISTEN on"),
    ),
    history="none where it deletes; else the job's row and an event for each of its states, kept for good",
    unfinished="select exists (select from procrastinate_jobs where status = 'todo') "
    "or exists (select from procrastinate_jobs where status = 'doing')",
    install=install,
)
