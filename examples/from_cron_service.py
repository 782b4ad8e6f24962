"""Cron Service's requests, as its README sends them, and the HTTP call that they ask for.

Here one process is all three: the API, the node that runs the job, and the server that is called. Apart they are
`pgscheduler api`, `pgscheduler scheduler` and `pgscheduler worker`. Needs the extras `server` and `http`.
"""

import json
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from _database import database

from pgscheduler import Scheduler, SchedulerConfig
from pgscheduler.jobs import HttpJob
from pgscheduler.web import serve_api

called = threading.Semaphore(0)


class Target(BaseHTTPRequestHandler):
    """What the jobs call."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"thanks for {body} from {self.path}".encode())
        called.release()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


def curl(method: str, url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code} {json.load(error)['error']}"


def main() -> None:
    with (
        HTTPServer(("127.0.0.1", 0), Target) as target,
        database() as dsn,
        Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler,
        serve_api(scheduler, port=0) as server,
    ):
        threading.Thread(target=target.serve_forever, daemon=True).start()
        own = f"127.0.0.1:{target.server_port}"
        scheduler.register(HttpJob(allow=[own]))  # not a public address, so it must be named
        scheduler.start()
        jobs = f"{server.url}/api/v1/jobs"

        hook = {"url": f"http://{own}/hook", "method": "POST", "data": {"a": 1}, "params": {"q": 2}}
        call = {"type": "API_CALL", **hook}
        each = {"name": "Each second", "cronExpression": "* * * * * *", "taskPayload": call}
        made = curl("POST", jobs, each)
        print(made["message"], {name: made["job"][name] for name in ("name", "cron_expression", "is_active")})
        daily = {"name": "Daily", "cron_expression": "0 9 * * *", "task_payload": call, "is_active": False}
        print(curl("POST", jobs, daily)["message"])
        print(curl("POST", jobs, daily))
        print(curl("POST", jobs, {"name": "Empty"}))
        print(curl("POST", jobs, {**daily, "name": "Wrong", "cron_expression": "at nine"}))
        print([(job["name"], job["is_active"]) for job in curl("GET", jobs)])
        print(curl("GET", f"{jobs}?jobId=12abc"), "-", curl("GET", f"{jobs}?jobId=999"))

        for _ in range(2):  # the first is on record when the second begins
            called.acquire(timeout=20)
        first = curl("GET", f"{server.url}/api/v1/runs?jobId={made['job']['id']}")[-1]
        print(first["status"], first["result"]["status"], first["result"]["body"])

        number = curl("GET", jobs)[1]["id"]
        print(curl("DELETE", f"{jobs}/{number}")["message"].replace(str(number), "N"))
        print(curl("DELETE", f"{jobs}/0"))
        target.shutdown()


if __name__ == "__main__":
    main()
