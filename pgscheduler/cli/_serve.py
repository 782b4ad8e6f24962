"""One node in the foreground: what its roles ask for, from the start to the last signal."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from pgscheduler.definitions import Definitions
from pgscheduler.job import Job
from pgscheduler.scheduler import Scheduler

from ._family import Leash
from ._signals import Signals

__all__ = ["ROLES", "Work", "port_of", "serve", "serve_once"]

#: What a process may be. `scheduler` stores recurring jobs and runs none, `worker` runs jobs, `api` answers REST.
ROLES = ("scheduler", "worker", "api")
MOST = 10_000  # jobs of one pass; what is due after that is for the next


@dataclass(frozen=True)
class Work:
    """What a node does besides what its configuration says."""

    roles: frozenset[str] = frozenset(("scheduler", "worker"))
    jobs: tuple[type[Job] | Job, ...] = ()
    definitions: Definitions | None = None
    metrics: tuple[str, int] | None = None  # address and port; None: none
    api: tuple[str, int] | None = None


def serve(scheduler: Scheduler, work: Work, as_json: bool, leash: Leash | None = None) -> int:
    """Start, wait for a signal, stop; the exit status."""

    def tell(event: str, **facts: Any) -> None:
        if as_json:
            with suppress(OSError):  # nobody reads it any more: no reason to stop a node
                print(json.dumps({"event": event, "node": scheduler.id, **facts}), flush=True)

    signals = Signals()
    if leash is not None:
        leash.when_gone(signals.pretend)
    try:
        if scheduler.node_stats()["state"] == "new":
            scheduler.init()
        names = _prepare(scheduler, work)
        with ExitStack() as doors:  # they still answer while running jobs come to their end
            ports = _open_doors(scheduler, work, doors)
            if work.roles & {"scheduler", "worker"} and scheduler.node_stats()["state"] == "ready":
                scheduler.start()
            tell("started", pid=os.getpid(), roles=sorted(work.roles), jobs=sorted(names), **ports)
            if leash is not None:
                leash.started()
            received = signals.wait()
            scheduler.log.info("signal received, shutting down", signal=received)
            clean = scheduler.shutdown()
        abandoned = 0 if clean else scheduler.abandon()
        tell("stopped", signal=received, clean=clean, abandoned=abandoned)
        if not clean:
            sys.stderr.write(
                "pgscheduler: error: some jobs did not end in time; they were given back to other nodes\n"
            )
            with suppress(OSError):
                sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # their threads still run, and must not go on beside the next attempt
        return 0
    finally:
        with suppress(Exception):
            scheduler.shutdown(0)
        if leash is not None:
            leash.when_gone(lambda: None)
        signals.close()


def serve_once(scheduler: Scheduler, work: Work, as_json: bool) -> int:
    """Run what is due, in this thread, and end. How the jobs ended is in their history, and no matter of ours."""
    try:
        if scheduler.node_stats()["state"] == "new":
            scheduler.init()
        names = _prepare(scheduler, work)
        done = dataclasses.asdict(scheduler.run_pending(MOST))
    finally:
        scheduler.shutdown(0)
    if as_json:
        print(json.dumps({"event": "done", "node": scheduler.id, "jobs": sorted(names), **done}))
    else:
        print(", ".join(f"{name} {count}" for name, count in done.items()))
    return 0


def port_of(port: int | None, place: int) -> int | None:
    """The port of the process at this place of several; 0 stays any free one."""
    return port + place if port else port


def _prepare(scheduler: Scheduler, work: Work) -> list[str]:
    """Register what this node runs, store what shall exist; the names that it runs."""
    names = []
    recurring = []
    for item in work.jobs:
        job = item() if isinstance(item, type) else item
        if "worker" in work.roles:
            names.append(scheduler.register(item))
        if job.config.schedule is not None:
            recurring.append(job)
    if "scheduler" not in work.roles:
        return names
    if "worker" in work.roles:
        _declare(scheduler, recurring, work.definitions, scheduler.log)
    elif recurring or work.definitions is not None:
        # By another one: what this node has scheduled itself, it would run as well.
        with Scheduler(dataclasses.replace(scheduler.config, create_schema=False)) as other:
            _declare(other, recurring, work.definitions, scheduler.log)
    return names


def _declare(scheduler: Scheduler, recurring: list[Job], definitions: Definitions | None, log: Any) -> None:
    for job in recurring:
        scheduler.schedule(job)
    if definitions is None:
        return
    # Nodes with the old file and with the new one start in any order: only `apply`, which asks, retires.
    done = scheduler.apply(definitions, retire=False)
    log.info(
        "definitions applied", source=definitions.source, changed=len(done.changes), unchanged=done.unchanged
    )
    left = [f"{change.name}/{change.key}" for change in scheduler.plan(definitions).of("retire")]
    if left:
        log.warning(
            "jobs left the file and go on; `pgscheduler apply` retires them",
            source=definitions.source,
            jobs=left[:20],
        )


def _open_doors(scheduler: Scheduler, work: Work, doors: ExitStack) -> dict[str, int]:
    """Listen where the node shall answer; the ports. Their packages are optional, so they are imported here."""
    ports = {}
    if work.metrics is not None:
        host, port = work.metrics
        metrics = importlib.import_module("pgscheduler.metrics")
        server = doors.enter_context(metrics.serve_metrics(scheduler, port=port, host=host))
        ports["metrics_port"] = server.port
        scheduler.log.info("metrics", url=server.url)
    if work.api is not None:
        host, port = work.api
        web = importlib.import_module("pgscheduler.web")
        server = doors.enter_context(web.Server(web.create_app(scheduler), host=host, port=port))
        ports["api_port"] = server.port
        scheduler.log.info("api", url=server.url)
    return ports
