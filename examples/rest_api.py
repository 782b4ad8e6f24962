"""REST for programs that are not Python: store a job, watch it, read its history.

`pgscheduler api` serves the same in a process of its own; `app.mount("/scheduler", create_app(scheduler))` puts it
into a FastAPI app of yours. Without a token it answers only this machine.
"""

import time

import httpx
from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig
from pgscheduler.web import Tokens, serve_api


class Invoice(Job):
    config = JobConfig(name="invoice")

    def run(self, ctx: RunContext) -> str:
        return f"sent to {ctx.parameters['customer']}"


def main() -> None:
    tokens = Tokens(read=["only-looks-0123456789"], write=["may-do-all-0123456789"])
    with (
        database() as dsn,
        Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler,
        serve_api(scheduler, port=0, tokens=tokens) as server,  # port 0 takes a free one; 8000 is the usual
        httpx.Client(base_url=server.url) as api,
    ):
        scheduler.register(Invoice)
        scheduler.start()
        print("without a token:", api.get("/api/v1/jobs").json()["error"])

        api.headers["Authorization"] = "Bearer only-looks-0123456789"
        job = {"name": "invoice", "key": "2027-001", "parameters": {"customer": "Ada"}}
        print("with the wrong one:", api.post("/api/v1/jobs", json=job).json()["error"])

        api.headers["Authorization"] = "Bearer may-do-all-0123456789"
        stored = api.post("/api/v1/jobs", json=job)
        print(stored.status_code, stored.json()["message"])
        again = api.post("/api/v1/jobs", json=job)
        print(again.status_code, again.json()["code"])

        runs = f"/api/v1/runs?jobId={stored.json()['job']['id']}"
        while not (history := api.get(runs).json()):
            time.sleep(0.01)
        print(history[0]["status"], history[0]["result"])
        print("ready:", api.get("/readyz").json())


if __name__ == "__main__":
    main()
