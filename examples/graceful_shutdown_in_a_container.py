"""SIGTERM, as a container gets it at a deploy: nothing new is claimed, what runs may end, nothing is lost.

The Dockerfile of such a service ends with the exec form, so that the signal reaches Python and not a shell::

    CMD ["python", "-m", "shop.worker"]

and the container is run with `--init` (`init: true` in Compose), which reaps what jobs leave behind. Let the
orchestrator wait longer than `shutdown_timeout`: `terminationGracePeriodSeconds: 35` for the default of 30 s.

A job that is not done by then is given back and burns no attempt; another node takes it. `wait_for_signal()`
answers whether everything ended, which makes a good exit code. A second signal means: at once.
"""

import os
import signal
import subprocess
import sys

from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig


class Short(Job):
    """Is nearly done when the signal comes, and ends in peace."""

    def run(self, ctx: RunContext) -> str:
        print("short: started", flush=True)
        ctx.wait(60)  # ends early when the service shuts down
        return f"finished although asked to stop ({ctx.cancel_reason})"


class Long(Job):
    """Could go on for hours, and stops between two steps."""

    def run(self, ctx: RunContext) -> None:
        print("long: started", flush=True)
        while True:
            ctx.wait(60)
            ctx.check()  # raises: the job is given back


def service() -> int:
    """The container's program."""
    with Scheduler(SchedulerConfig.from_env(create_schema=True, shutdown_timeout=10)) as scheduler:
        scheduler.start()
        scheduler.schedule(Short(JobConfig.one_time("short")))
        scheduler.schedule(Long(JobConfig.one_time("long")))
        return 0 if scheduler.wait_for_signal() else 1


def main() -> None:
    with database() as dsn:
        command = [sys.executable, __file__, "service"]
        environment = {**os.environ, "PGSCHEDULER_DSN": dsn}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            print("".join(sorted(child.stdout.readline() for _ in range(2))), end="")
            child.send_signal(signal.SIGTERM)
            print("exit code after SIGTERM:", child.wait(20))
        with Scheduler(SchedulerConfig(dsn=dsn)) as client:
            for run in sorted(client.runs(), key=lambda run: run.name, reverse=True):
                print(f"{run.name}: {run.outcome}: {run.result or run.reason}")
            for job in client.jobs():
                print(f"{job.name} is {job.state} again, at attempt {job.attempt}")
                client.delete(job)


if __name__ == "__main__":
    if "service" in sys.argv:
        sys.exit(service())
    main()
