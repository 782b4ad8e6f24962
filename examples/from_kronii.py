"""Kronii's file as it stands (kronii.yaml: ten jobs, six fields with the seconds first), and its four figures.

The same as two lines for a terminal, with its flags; a port is given there, here any free one will do::

    pgscheduler run --config examples/kronii.yaml --allow-shell --max-concurrency 4 --metrics-port 3000
    curl localhost:3000/metrics
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from _database import database

from pgscheduler import Scheduler, SchedulerConfig

FILE = Path(__file__).with_name("kronii.yaml")
NODE = [
    "run", "--config", str(FILE), "--allow-shell", "--max-concurrency", "4", "--metrics-port", "0", "--create-schema",
    "--json",
]  # fmt: skip


def figures(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        name: float(value) for name, value in re.findall(r"^(scheduler_jobs_\w+) (\S+)$", text, re.MULTILINE)
    }


@contextlib.contextmanager
def stopped(node: subprocess.Popen) -> Iterator[None]:
    """Whatever happens here, the node does not go on."""
    try:
        yield
    finally:
        node.send_signal(signal.SIGTERM)


def main() -> None:
    with (
        database() as dsn,
        subprocess.Popen(
            [sys.executable, "-m", "pgscheduler", *NODE],
            env={**os.environ, "DATABASE_URL": dsn, "PGSCHEDULER_DSN": dsn},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as node,
        stopped(node),
    ):
        assert node.stdout is not None
        started = json.loads(node.stdout.readline())
        print("started:", started["jobs"])

        with Scheduler(SchedulerConfig(dsn=dsn)) as look:
            january = look.get_job(("shell_job", "new_year")).run_at
            print(f"jobs: {look.count_jobs()}, the last of them comes on {january:%d %B at %H:%M:%S}")
            for name in ("every_two_seconds", "always_fails", "too_slow"):
                while not (
                    ended := [run for run in look.runs(("shell_job", name)) if run.outcome != "skipped"]
                ):
                    time.sleep(
                        0.1
                    )  # a busy machine may skip an occurrence, because the one before it still runs
                error, result = ended[0].error, ended[0].result
                said = error.splitlines()[0] if error else result["output"].strip()
                print(f"{name}: {ended[0].outcome},", said)

        found = figures(started["metrics_port"])
        print("figures:", ", ".join(sorted(found)))
        ended = found["scheduler_jobs_failed"] + found["scheduler_jobs_success"]
        print("each attempt counts once:", found["scheduler_jobs_total"] >= ended >= 3)

    print("exit code:", node.returncode)


if __name__ == "__main__":
    main()
