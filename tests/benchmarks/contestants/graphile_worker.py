"""graphile-worker, in Node; its newest release asks for Node 22 or newer, so a pinned Node comes with it."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import node

SOURCE = HERE / "contestants" / "graphile_worker"
DOCS = "worker.graphile.org/docs"


def install(home: Path) -> list[str]:
    return node(home, SOURCE)


CONTESTANT = Contestant(
    name="graphile-worker",
    version="0.18.0",
    language="JavaScript (Node 24)",
    settings=(
        Setting(
            "performance preset",
            "the preset of the library's own performance test: concurrentJobs 24, maxPoolSize 25, localQueue.size 500, "
            f"completeJobBatchDelay and failJobBatchDelay 0 ({DOCS}/performance#with-batching)",
        ),
        Setting(
            "100 jobs",
            "the same with concurrentJobs 100 and maxPoolSize 101, for jobs that wait; "
            f"the number is to be set to what suits ({DOCS}/performance#batching)",
        ),
        Setting("default", "no setting: concurrentJobs 1, pollInterval 2000 beside LISTEN, no batching"),
    ),
    history="none: a finished job's row is deleted",
    # by the primary key, which forgets the deleted rows at its head, where a sequential scan meets them every time
    unfinished="select (select id from graphile_worker._private_jobs order by id limit 1) is not null",
    install=install,
)
