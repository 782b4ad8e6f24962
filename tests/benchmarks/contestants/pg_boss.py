"""pg-boss, in Node; its newest release asks for Node 22 or newer, so a pinned Node comes with it.

rrule-temporal, which only reads the rules of recurring schedules, is held at 2.2.7 by an override where pg-boss asks
for 2.2.8, which was not to be had when this was written.
"""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import node

SOURCE = HERE / "contestants" / "pg_boss"
DOCS = "pgboss.io/api"
BATCH = (
    "work() with batchSize {size}, burstWhenBatchFull and localConcurrency 4 "
    f"({DOCS}/workers#work-name-options-handler); "
    "useListenNotify and a queue with notify "
    f"({DOCS}/workers#low-latency-dispatch-with-listen-notify)"
)


def install(home: Path) -> list[str]:
    return node(home, SOURCE)


CONTESTANT = Contestant(
    name="pg-boss",
    version="12.38.0",
    language="JavaScript (Node 24)",
    settings=(
        Setting("batch 1000", BATCH.format(size=1000)),
        Setting("batch 100", BATCH.format(size=100)),
        Setting(
            "default",
            "no setting: work() takes one job every 2 seconds, so at most one job in 2 seconds runs",
        ),
    ),
    history="the job's row stays, kept 7 days",
    # by the index of the live states, where a sequential scan would read every finished job
    unfinished="select (select state from pgboss.job where name = 'bench' and state in ('created', 'retry', 'active') "
    "order by state limit 1) is not null",
    install=install,
)
