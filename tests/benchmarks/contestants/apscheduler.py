"""APScheduler 4 (a pre-release): asyncio, its SQLAlchemy data store and its event broker on PostgreSQL, both by asyncpg."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import python_program

VERSION = "4.0.0a6"
PROGRAM = HERE / "contestants" / "apscheduler_program.py"
BASE = "SQLAlchemyDataStore and AsyncpgEventBroker, as examples/separate_worker/async_worker.py has them"


def install(home: Path) -> list[str]:
    return python_program(
        home,
        PROGRAM,
        f"apscheduler=={VERSION}",
        "sqlalchemy[asyncio]==2.1.9",
        "asyncpg==0.32.0",
        "anyio==4.9.0",  # of the time of this release: newer ones bring no sniffio, and stop its event broker
    )


CONTESTANT = Contestant(
    name="apscheduler",
    version=VERSION,
    language=f"Python {sys.version_info.major}.{sys.version_info.minor}",
    settings=(
        Setting(
            "unlimited runs",
            f"{BASE}; configure_task(max_running_jobs=None), docs/userguide.rst "
            "(Limiting the number of concurrently executing instances of a job); max_concurrent_jobs stays 100",
        ),
        Setting("default", f"{BASE}; no setting else: one job of a task at a time (max_running_jobs 1)"),
    ),
    history="none: a finished job is deleted, and its result kept only if the caller asks",
    unfinished="select exists (select from jobs)",
    install=install,
    skips={
        "enqueue bulk": "no call that stores many jobs; ten tasks call add_job at a time to fill the queue"
    },
)
