"""A node of a fault test: one process, one Scheduler, all the jobs. Started by `Fleet`, with its options as JSON.

It ends as a deployed worker ends: SIGTERM, `shutdown()`, and what outlives that is given back.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pgscheduler import Every, Job, JobConfig, Scheduler, SchedulerConfig
from pgscheduler.errors import PgSchedulerError, ScheduleUnknownError
from tests.chaos import plants
from tests.chaos.history import Call, boottime, epoch
from tests.chaos.hosts import enter
from tests.chaos.jobs import KINDS, RECURRING, Journal

__all__ = ["Options", "recurring"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one node is told; everything but `process`, `dsn` and `space` is the same for all of them."""

    process: str
    dsn: str
    journal: str
    events: str  # where it says: ready, stopping, stopped
    space: str | None = None  # the network namespace that it lives in
    plant: str | None = None
    heartbeat_interval: float = 0.5
    no_heartbeat_timeout: float = 2.5
    job_check_interval: float = 5.0
    shutdown_timeout: float = 3.0
    max_concurrent_jobs: int = 6

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


class _Log:
    """Warnings and errors go to stderr, which the harness keeps; the rest is too much."""

    def debug(self, event: object, **facts: object) -> None: ...

    info = debug

    def warning(self, event: object, **facts: object) -> None:
        sys.stderr.write(f"{boottime():.3f} {event} {facts}\n")

    error = critical = exception = warning


def recurring(name: str, journal: Journal | None = None) -> Job:
    """A recurring job as every node, and every client, defines it."""
    kind, schedule, policies = RECURRING[name]
    when = schedule if isinstance(schedule, str) else Every(timedelta(seconds=schedule))
    return kind(JobConfig.recurring(name, when, **policies), journal)


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    if options.space is not None:
        enter(options.space)  # before there are threads: each of them has a namespace of its own
    threading.Thread(target=_die_with, args=[os.getppid()], name="chaos-parent", daemon=True).start()
    if options.plant is not None:
        plants.plant(options.plant)
    journal = Journal(options.journal, options.process, options.dsn)
    atexit.register(
        _say, options, "leaving"
    )  # first, so it is said last: whatever keeps a process alive came before
    scheduler = _started(options, journal)
    _say(options, "ready", node=scheduler.id)
    clean = scheduler.wait_for_signal()
    _say(options, "stopped", clean=clean)
    if not clean:
        scheduler.abandon()
        _say(options, "leaving")
        os._exit(1)  # their threads still run, and must not go on beside the next attempt


def _started(options: Options, journal: Journal) -> Scheduler:
    """A node that runs; a deployment's supervisor would try again, so this does."""
    while True:
        scheduler = Scheduler(
            SchedulerConfig(
                dsn=options.dsn,
                logger=_Log(),
                run_immediately=True,
                heartbeat_interval=timedelta(seconds=options.heartbeat_interval),
                no_heartbeat_timeout=timedelta(seconds=options.no_heartbeat_timeout),
                job_check_interval=timedelta(seconds=options.job_check_interval),
                shutdown_timeout=timedelta(seconds=options.shutdown_timeout),
                max_concurrent_jobs=options.max_concurrent_jobs,
                connect_timeout=timedelta(seconds=2),
            )
        )
        try:
            scheduler.init()
            for name, kind in KINDS.items():
                isolated: Any = "process" if kind.isolation == "process" else "thread"
                scheduler.register(kind(JobConfig(name=name, isolation=isolated), journal))
            jobs = {name: recurring(name, journal) for name in RECURRING}
            for job in jobs.values():
                scheduler.register(job)
            del jobs["gone"]  # a client deletes this one now and then
            for job in jobs.values():
                _deploy(scheduler, job, journal)
            scheduler.start()
            return scheduler
        except (PgSchedulerError, OSError) as error:
            _say(options, "failed", error=f"{type(error).__name__}: {error}")
            scheduler.shutdown(0)
            time.sleep(0.5)


def _deploy(scheduler: Scheduler, job: Job, journal: Journal) -> None:
    """What each deployment does: schedule a recurring job again. Nothing has changed, so nothing may change."""
    began = boottime()
    facts: dict[str, Any] = {"answer": "failed"}
    try:
        record = scheduler.schedule(job)
        facts = {"answer": "ok", "job_id": record.id, "scheduled_at": epoch(record.scheduled_at)}
    except PgSchedulerError as error:
        if isinstance(error, ScheduleUnknownError):
            facts["answer"] = "unknown"
        facts["error"] = f"{type(error).__name__}: {error}"[:200]
        raise
    finally:
        facts.setdefault("job_id", None)
        journal.write(described("schedule", journal.process, began, job.config, **facts))


def described(verb: str, client: str, began: float, config: JobConfig, **facts: Any) -> Call:
    """A call that stores a job, with all that it was given."""
    schedule: Mapping[str, Any] | None = (
        None if config.schedule is None else json.loads(config.schedule_json() or "")
    )
    key = config.key or (config.name if config.schedule is not None else None)

    def seconds(value: timedelta | None) -> float | None:
        return None if value is None else value.total_seconds()

    given: dict[str, Any] = {
        "name": config.name or "",
        "key": key,
        "parameters": config.parameters,
        "schedule": schedule,
        "run_at": None if config.run_at is None else epoch(config.run_at),
        "retries": config.retries,
        "max_stalls": config.max_stalls,
        "timeout": seconds(config.timeout),
        "misfire": config.misfire,
        "misfire_grace": config.misfire_grace.total_seconds(),
        "catchup": config.catchup,
        "jitter": config.jitter.total_seconds(),
        "expires_in": seconds(config.expires_in),
    }
    return Call(verb=verb, client=client, began=began, ended=boottime(), **{**given, **facts})


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _say(options: Options, event: str, **facts: object) -> None:
    line = json.dumps({"event": event, "at": boottime(), **facts}) + "\n"
    descriptor = os.open(options.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
