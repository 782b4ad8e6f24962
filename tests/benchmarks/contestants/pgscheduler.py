"""pgscheduler itself, from this tree, with psycopg's C implementation as its `binary` extra installs it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import python_program

PROGRAM = HERE / "contestants" / "pgscheduler_program.py"


def install(home: Path) -> list[str]:
    return python_program(
        home,
        PROGRAM,
        "psycopg[binary]==3.3.9",
        "psycopg-pool==3.3.3",
        "croniter==7.0.0",
        "structlog",
        "tzdata",
    )


CONTESTANT = Contestant(
    name="pgscheduler",
    version="this tree",
    language=f"Python {sys.version_info.major}.{sys.version_info.minor}",
    settings=(
        Setting(
            "default",
            "nothing is set (10 slots), but run_immediately, which is when the first look comes, not how fast",
        ),
        Setting("100 slots", "max_concurrent_jobs=100, run_immediately"),
    ),
    history="a row in runs for every run, kept 30 days",
    unfinished="select exists (select from pgscheduler_jobs)",
    install=install,
)
