"""One node of the demo, a process of its own: `python -m pgscheduler.demo.node DSN FOLDER SLOTS`.

It works until its standard input is closed, which also happens when whoever started it is gone.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import structlog

from pgscheduler.config import SchedulerConfig
from pgscheduler.scheduler import Scheduler

from .jobs import CountResults, DigestSales

__all__ = ["HEARTBEAT", "TIMEOUT", "main"]

HEARTBEAT = 0.3  # seconds; a hundredth of the default, so that a death is seen within two seconds
TIMEOUT = 1.5


def main(dsn: str, folder: Path, slots: int) -> None:
    """Run jobs until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo, which then closes our input
    quiet = structlog.make_filtering_bound_logger("error")
    config = SchedulerConfig(
        dsn=dsn,
        max_concurrent_jobs=slots,
        heartbeat_interval=HEARTBEAT,  # type: ignore[arg-type]  # a number is taken as seconds
        no_heartbeat_timeout=TIMEOUT,  # type: ignore[arg-type]
        shutdown_timeout=3,  # type: ignore[arg-type]
        run_immediately=True,
        logger=structlog.wrap_logger(structlog.PrintLogger(sys.stderr), wrapper_class=quiet),
    )
    with Scheduler(config) as scheduler:
        scheduler.register(DigestSales(folder))
        scheduler.register(CountResults(folder))
        scheduler.start()
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
