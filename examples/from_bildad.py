"""Bildad's engine: templates and a queue with priorities, run by whoever calls `POST /jobs/engine/run`.

The endpoint needs the extra `server`. A node that was started runs by itself and needs no call.
"""

import json
import time
import urllib.request
from datetime import timedelta

from _database import database

from pgscheduler import DuplicateJobError, InvalidValueError, Job, RunContext, Scheduler, SchedulerConfig
from pgscheduler.web import serve_api


class Greet(Job):
    """Fails for the first two people that it is told to fail for; waits until it is stopped, if told so."""

    def run(self, ctx: RunContext) -> str:
        if ctx.parameters.get("wait"):
            ctx.progress(0, 1, "waiting")
            ctx.wait(60)
            ctx.check()
        if ctx.attempt <= ctx.parameters.get("fail", 0):
            raise RuntimeError("nobody at home")
        print("hello", ctx.parameters["name"])
        return "said"


SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


def post(url: str) -> object:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=60) as answer:
        return json.load(answer)


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.register(Greet)
        greet = scheduler.templates
        greet.create("GREET", handler="greet", parameters_schema=SCHEMA, timeout=timedelta(minutes=60))

        # Smaller is sooner; an identifier is used once.
        for priority in (9, 5, 1):
            greet.enqueue("GREET", {"name": f"no. {priority}"}, key=f"run-{priority}", priority=priority)
        try:
            greet.enqueue("GREET", {"name": "again"}, key="run-1", if_exists="error")
        except DuplicateJobError as error:
            print("refused:", error)
        try:
            greet.enqueue("GREET", {"nmae": "x"})
        except InvalidValueError as error:
            print("refused:", str(error)[:48])
        print("waiting:", scheduler.count_jobs(), "- place:", scheduler.queue_position(("greet", "run-5")))

        # The engine: as a call, and as its endpoint for a clock elsewhere.
        print(scheduler.run_pending(1))
        with serve_api(scheduler, port=0) as server:
            print(post(f"{server.url}/jobs/engine/run"))

        # Retries: three attempts, each a run of its own.
        job = greet.enqueue("GREET", {"name": "Ada", "fail": 2}, retries=2)
        while scheduler.get_job(job).state == "pending":
            scheduler.trigger(job)  # not in a second, but now
            scheduler.run_pending()
        runs = scheduler.runs(job)
        print("attempts:", [(run.attempt, run.outcome.value) for run in reversed(runs)])

        # Stop, kill and expire; this node runs by itself from here on.
        late = greet.enqueue("GREET", {"name": "Late"}, expires_in=timedelta(microseconds=1))
        scheduler.start()
        slow = greet.enqueue("GREET", {"name": "Slow", "wait": True}, timeout=0.2, retries=0)
        stop = greet.enqueue("GREET", {"name": "Stop", "wait": True}, key="stop")
        while not scheduler.get_job(stop).progress:
            time.sleep(0.05)
        print("stop:", scheduler.cancel(("greet", "stop")))
        for ended in (scheduler.wait(job, timeout=20) for job in (stop, slow, late)):
            run = scheduler.runs(ended)[0]
            print(f"{ended.parameters['name']}: {run.outcome}, {run.reason}")
        print("runs:", {"good": scheduler.count_runs(outcome="completed"), "all": scheduler.count_runs()})


if __name__ == "__main__":
    main()
