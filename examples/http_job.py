"""An HTTP request as a job, without a class of your own: `HttpJob`, from the extra `http`.

Only public addresses are connected to. This example calls a server on this machine, so it must say so; what it
does not name stays closed, whatever URL somebody stores.
"""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from _database import database

from pgscheduler import JobConfig, PgSchedulerError, Scheduler, SchedulerConfig
from pgscheduler.jobs import HttpJob


class Shop(BaseHTTPRequestHandler):
    """Stands for a service that wants a token, and repeats it."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(201 if self.path == "/orders" else 404)
        self.end_headers()
        self.wfile.write(f"got {body} from {self.headers['Authorization']}".encode())

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


def call(port: int, path: str) -> dict[str, object]:
    return {
        "method": "POST",
        "url": f"http://127.0.0.1:{port}{path}",
        "headers": {"Authorization": "Bearer hunter2"},
        "data": {"book": 1},
    }


def main() -> None:
    with (
        HTTPServer(("127.0.0.1", 0), Shop) as server,
        database() as dsn,
        Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        http = HttpJob(allow=[f"127.0.0.1:{port}"])
        scheduler.register(http)
        scheduler.start()

        done = scheduler.wait(scheduler.enqueue("http_job", call(port, "/orders")), timeout=20)
        print(done.result["status"], done.result["body"])  # the token is masked

        config = JobConfig.one_time("http_job", call(port, "/nothing"))  # checked here, and before the run
        failed = scheduler.wait(scheduler.schedule(http.with_config(config)), timeout=20)
        print((failed.last_error or "").strip().splitlines()[-1])

        inside = {"method": "GET", "url": "http://169.254.169.254/latest/meta-data"}
        try:
            http.with_config(JobConfig.one_time("http_job", inside))
        except PgSchedulerError as error:
            print("refused:", error)
        server.shutdown()


if __name__ == "__main__":
    main()
