"""Only a process can be killed: `isolation="process"` is for code that computes without end or holds the GIL.

A thread that ignores its timeout keeps its slot until it returns; Python has no way to stop it. A process
is asked first, and a second later killed, together with what it started. The class must be importable by
name, because the process is a fresh interpreter; hence also the `if __name__ == "__main__"` below.
"""

import os

from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig


class Endless(Job):
    """Never returns, and never asks whether it should."""

    config = JobConfig.one_time("endless", isolation="process", timeout=1)

    def run(self, ctx: RunContext) -> None:
        while True:
            pass


class Crunch(Job):
    """Holds the GIL for a while; the node's heartbeats do not notice, for it is another interpreter's."""

    config = JobConfig.one_time("crunch", isolation="process")

    def run(self, ctx: RunContext) -> dict[str, object]:
        return {"digits": len(bin(3**1_000_000)), "pid": os.getpid()}


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.start()
        endless = scheduler.schedule(Endless())
        crunch = scheduler.wait(scheduler.schedule(Crunch()), timeout=30)
        print("crunch:", crunch.state, "in a process of its own:", crunch.result["pid"] != os.getpid())

        ended = scheduler.wait(endless, timeout=30)
        run = scheduler.runs(ended.id)[0]
        print(f"endless: {ended.state}, its run {run.outcome}")


if __name__ == "__main__":
    main()
