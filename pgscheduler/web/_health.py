"""Is this process fit to work? The reasons why not, in words that may be shown to anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool

from pgscheduler.errors import PgSchedulerError
from pgscheduler.scheduler import Scheduler

__all__ = ["Probe", "unhealthy_loops"]

PATIENCE = 3.0  # seconds for the database's answer; a probe of a load balancer waits about as long
FAILURES = 3  # in a row, until a loop counts as failing: one is what a restarted database costs
GRACE = 30.0  # seconds beyond the longest sleep that a loop should take, until it counts as hung


def unhealthy_loops(scheduler: Scheduler) -> list[str]:
    """What is wrong with a node's loops; nothing of a scheduler that is not started."""
    stats = scheduler.node_stats()
    config = scheduler.config
    # Until then each has succeeded once more; the listener sleeps until it hears something.
    rhythm = {
        "dispatcher": config.job_check_interval.total_seconds(),
        "heartbeat": config.heartbeat_interval.total_seconds(),
        "maintenance": config.no_heartbeat_timeout.total_seconds() / 5,
        "fence": 1.0,
    }
    found = []
    if stats["state"] not in ("ready", "started"):
        found.append(f"scheduler: {stats['state']}")
    if stats["state"] != "started":
        return found
    for name, loop in stats["loops"].items():
        age = loop["last_success_seconds"]
        if not loop["alive"]:
            found.append(f"{name}: its thread has ended")
        elif loop["failures"] >= FAILURES:
            found.append(f"{name}: failed {loop['failures']} times in a row")
        elif name in rhythm and age is not None and age > rhythm[name] + GRACE:
            found.append(f"{name}: no success for {age:.0f} s")
    return found


class Probe:
    """Asks the database, one question at a time: probes that come while one waits share its answer."""

    def __init__(self, scheduler: Callable[[], Scheduler]) -> None:
        self._scheduler = scheduler
        self._asking: asyncio.Task[str | None] | None = None  # the event loop's alone

    async def reasons(self) -> list[str]:
        """Everything that is wrong; nothing if it is ready. Takes at most PATIENCE and a moment."""
        asking = self._asking
        if asking is None or asking.done() or asking.get_loop() is not asyncio.get_running_loop():
            asking = self._asking = asyncio.create_task(self._ask())
        done, _ = await asyncio.wait({asking}, timeout=PATIENCE)
        database = asking.result() if done else f"database: no answer within {PATIENCE:g} s"
        return [*([] if database is None else [database]), *unhealthy_loops(self._scheduler())]

    async def _ask(self) -> str | None:
        def ping() -> Any:
            return self._scheduler().ping()

        try:
            await run_in_threadpool(ping)
        except PgSchedulerError as error:
            # Its name and no more: the text may name hosts and roles.
            return f"database: {type(error).__name__}"
        return None
