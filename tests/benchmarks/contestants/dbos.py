"""DBOS: durable workflows on queues, which look for work at intervals."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import python_program

VERSION = "3.4.0"
PROGRAM = HERE / "contestants" / "dbos_program.py"


def install(home: Path) -> list[str]:
    return python_program(home, PROGRAM, f"dbos=={VERSION}", "psycopg[binary]==3.3.9")


CONTESTANT = Contestant(
    name="dbos",
    version=VERSION,
    language=f"Python {sys.version_info.major}.{sys.version_info.minor}",
    settings=(
        Setting(
            "poll 0.05 s",
            "register_queue(polling_interval_sec=0.05, worker_concurrency=1000), so that processes share the work "
            "(docs/python/reference/queues.md, polling_interval_sec; docs/python/tutorials/queue-tutorial.md, Worker "
            "Concurrency)",
        ),
        Setting("default", "no setting: a look for work every second, which takes all there is"),
    ),
    history="the row of every workflow, for ever",
    unfinished="select exists (select from dbos.workflow_status where status in ('ENQUEUED', 'PENDING', 'DELAYED'))",
    install=install,
)
