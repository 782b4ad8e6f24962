"""Chancy: asyncio workers over psycopg 3, here with psycopg's C implementation; jobs on the loop or in processes."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import python_program

VERSION = "0.26.0"
PROGRAM = HERE / "contestants" / "chancy_program.py"
PAGES = "docs/chancy.executors.asyncex.rst (many jobs at once), docs/chancy.queue.rst (concurrency, eager_polling)"


def install(home: Path) -> list[str]:
    return python_program(
        home, PROGRAM, f"chancy=={VERSION}", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3"
    )


CONTESTANT = Contestant(
    name="chancy",
    version=VERSION,
    language=f"Python {sys.version_info.major}.{sys.version_info.minor}",
    settings=(
        Setting(
            "async, concurrency 1000", f"Queue(executor=Async, concurrency=1000, eager_polling=True); {PAGES}"
        ),
        Setting(
            "async, concurrency 100", f"Queue(executor=Async, concurrency=100, eager_polling=True); {PAGES}"
        ),
        Setting(
            "default",
            "no setting: a process for each processor core runs the jobs, and a queue that has not been told of "
            "new jobs is looked at every 5 s",
        ),
    ),
    history="the job's row, finished ones removed a day after they were made",
    unfinished="select exists (select from chancy_jobs where state in ('pending', 'running', 'retrying'))",
    install=install,
)
