"""Three processes, five recurring jobs, no coordinator but the database: each occurrence runs once.

Every node schedules the same jobs; they are stored once. Which node runs an occurrence is whoever claims it.
Start this file with `node` as its argument and you have another one.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta

from _database import database

from pgscheduler import Every, Job, JobConfig, Outcome, RunContext, Scheduler, SchedulerConfig


class Tick(Job):
    """Does next to nothing, somewhere."""

    def run(self, ctx: RunContext) -> None:
        ctx.wait(0.1)


def node() -> None:
    """One of several: what a container of your service runs."""
    config = SchedulerConfig.from_env(create_schema=True, max_concurrent_jobs=3)
    with Scheduler(config) as scheduler:
        for letter in "abcde":
            scheduler.schedule(Tick(JobConfig.recurring("tick", Every(timedelta(seconds=1)), key=letter)))
        scheduler.start()
        scheduler.wait_for_signal()


def main() -> None:
    with database() as dsn:
        environment = {**os.environ, "PGSCHEDULER_DSN": dsn}
        nodes = [subprocess.Popen([sys.executable, __file__, "node"], env=environment) for _ in range(3)]
        try:
            # Without start() a scheduler is a client: it schedules and asks, and runs nothing.
            with Scheduler(SchedulerConfig(dsn=dsn, create_schema=True, run_immediately=True)) as client:
                while len(client.nodes()) < 3:
                    time.sleep(0.2)
                while len(runs := client.runs(name="tick", outcome=Outcome.COMPLETED, limit=1000)) < 15:
                    time.sleep(0.2)
        finally:
            for process in nodes:
                process.terminate()
            codes = [process.wait() for process in nodes]

    occurrences = Counter((run.key, run.scheduled_at) for run in runs)
    print("runs on each node:", sorted(Counter(run.node_id for run in runs).values()))
    print("jobs that ran:", sorted({run.key for run in runs if run.key}))
    print("the most runs of one occurrence:", max(occurrences.values()))
    print("exit codes:", codes)


if __name__ == "__main__":
    node() if "node" in sys.argv else main()
