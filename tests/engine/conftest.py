"""What engine tests share: quiet schedulers with short intervals, jobs made of functions, and a clock to set."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
import structlog

from pgscheduler import Job, JobConfig, Scheduler, SchedulerConfig
from pgscheduler.cli import main
from tests.support import pooler as poolers
from tests.support.pooler import PgBouncer

SILENT = structlog.wrap_logger(
    structlog.PrintLogger(io.StringIO()), wrapper_class=structlog.make_filtering_bound_logger("critical")
)
NOW = """
create or replace function {schema}.{prefix}now() returns timestamptz
    language plpgsql stable parallel safe as $$ begin return {moment}; end $$
"""


class Quiet:
    """A logger that keeps what it is told instead of printing it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self._bound: dict[str, Any] = {}

    def bind(self, **fields: Any) -> Quiet:
        other = Quiet()
        other.lines, other._bound = self.lines, {**self._bound, **fields}
        return other

    def debug(self, event: str, **fields: Any) -> None:
        self.lines.append(("debug", event, {**self._bound, **fields}))

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(("info", event, {**self._bound, **fields}))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, {**self._bound, **fields}))

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append(("error", event, {**self._bound, **fields}))

    def events(self) -> list[str]:
        return [event for _, event, _ in list(self.lines)]


class Call(Job):
    """A job whose `run` is a function of the context."""

    def __init__(self, config: JobConfig, function: Callable[[Any], Any] = lambda ctx: None) -> None:
        super().__init__(config)
        self.function = function

    def run(self, ctx: Any) -> Any:
        return self.function(ctx)


class Gate:
    """Runs that wait inside until they are let go; counts how many are in, and the most there ever were."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = False
        self.inside = self.most = self.entered = 0

    def __call__(self, ctx: Any) -> None:
        with self._changed:
            self.inside += 1
            self.entered += 1
            self.most = max(self.most, self.inside)
            self._changed.notify_all()
            while not (self._open or ctx.cancelled):
                self._changed.wait(0.05)
            self.inside -= 1
            self._changed.notify_all()

    def wait_for(self, entered: int, timeout: float = 15.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.entered >= entered, timeout), (
                f"only {self.entered} entered"
            )

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A `Gate`, opened at the end so that no run outlives its test."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def call() -> type[Call]:
    """`call(config, function)`: a job made of a function."""
    return Call


@pytest.fixture
def quiet() -> Quiet:
    """A logger that keeps its lines."""
    return Quiet()


@pytest.fixture
def scheduler_on(gate: Gate, pgbouncer: PgBouncer | None) -> Iterator[Callable[..., Scheduler]]:
    """`scheduler_on(dsn, start=False, **settings)`: an initialized scheduler, shut down after the test."""
    made: list[Scheduler] = []

    def make(
        dsn: str | None, *, start: bool = False, register: tuple[Job, ...] = (), **settings: Any
    ) -> Scheduler:
        defaults: dict[str, Any] = {
            "heartbeat_interval": 0.3,
            "no_heartbeat_timeout": 60,  # so that a busy machine makes no node look dead
            "shutdown_timeout": 5,
            "run_immediately": True,
            "logger": Quiet(),
        }
        if pgbouncer is not None and dsn is not None and str(pgbouncer.port) in dsn:
            if poolers.wanted() == "pgbouncer+listen":
                defaults["listen_dsn"] = pgbouncer.past(dsn)
            else:
                defaults |= {"listen": False, "job_check_interval": 0.2}
        scheduler = Scheduler(SchedulerConfig(dsn=dsn, **{**defaults, **settings}))
        made.append(scheduler)
        scheduler.init()
        for job in register:
            scheduler.register(job)
        if start:
            scheduler.start()
            if scheduler._node.listener is not None:
                # start() itself waits for two seconds; what is announced before the node listens, it does not hear.
                scheduler._node.listener.ready.wait(30)
        return scheduler

    yield make
    gate.open()
    for scheduler in made:
        scheduler.shutdown()


@pytest.fixture
def clock(direct_dsn: str) -> Iterator[Callable[..., None]]:
    """Sets the database's clock: `clock(at)` stops it there, `clock(by=timedelta)` shifts it."""
    with psycopg.connect(direct_dsn, autocommit=True) as connection:

        def set_clock(
            at: datetime | None = None,
            *,
            by: timedelta | None = None,
            schema: str = "public",
            prefix: str = "pgscheduler_",
        ) -> None:
            moment = (
                f"timestamptz '{at.isoformat()}'"
                if at
                else f"clock_timestamp() + interval '{(by or timedelta()).total_seconds()} seconds'"
            )
            connection.execute(NOW.format(schema=schema, prefix=prefix, moment=moment))

        yield set_clock


@pytest.fixture
def commanded(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command finds its database in the environment, and nothing else of ours there."""
    for name in [n for n in os.environ if n.startswith("PGSCHEDULER_")] + ["DATABASE_URL"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGSCHEDULER_DSN", dsn)


@pytest.fixture
def scheduler(dsn: str, request: pytest.FixtureRequest) -> Iterator[Scheduler]:
    """A node that knows the module's `Greet`, and runs only when asked to, by run_pending()."""
    with Scheduler(SchedulerConfig(dsn=dsn, logger=SILENT)) as scheduler:
        scheduler.register(request.module.Greet)
        yield scheduler


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with a status; its one line."""

    def run(status: int, *arguments: object) -> str:
        assert main([str(a) for a in arguments]) == status
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert line.startswith("pgscheduler: error: ")
        return line

    return run


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command that must succeed; what it printed, as JSON if it was asked for."""

    def run(*arguments: object) -> Any:
        status = main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert status == 0, said.err
        assert said.err == ""
        return json.loads(said.out) if "--json" in arguments else said.out

    return run
