"""Figures for Prometheus: how many attempts, how many of them failed, how long they took, what waits.

`serve_metrics` answers GET /metrics until the scheduler ends; `pgscheduler run … --metrics-port 3000` does the same.
Beside this file: grafana-dashboard.json and alerts.yml.
"""

import time
import urllib.request
from datetime import timedelta

from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig
from pgscheduler.metrics import serve_metrics


class Thumbnail(Job):
    """Fails at its first attempt, as such things do."""

    config = JobConfig(name="thumbnail", retries=1, backoff=lambda failures, error: timedelta(0))

    def run(self, ctx: RunContext) -> None:
        if ctx.attempt == 1:
            raise OSError("the picture is not there yet")


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.register(Thumbnail)
        # Before start(), so that nothing is missed. Port 0 takes a free one; 3000 is the usual.
        with serve_metrics(scheduler, port=0) as server:
            scheduler.start()
            done = [scheduler.enqueue("thumbnail", {"picture": n}) for n in range(3)]
            waiting = scheduler.enqueue("thumbnail", {"picture": 99}, delay=timedelta(hours=1))
            for job in done:
                scheduler.wait(job, timeout=30)
            while scheduler.node_stats()["held"]:  # others may see an end a moment before it is counted here
                time.sleep(0.01)

            with urllib.request.urlopen(server.url) as answer:
                print(answer.headers["Content-Type"])
                lines = answer.read().decode().splitlines()
            for line in lines:
                if line.startswith(("job_", "jobs_", "pgscheduler_jobs{")) and "_bucket" not in line:
                    print(line)
            scheduler.cancel(waiting)


if __name__ == "__main__":
    main()
