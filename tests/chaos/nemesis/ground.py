"""What the nemesis may touch: the nodes, the server, a client for jobs that do harm, and the history."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.chaos.fleet import Fleet
from tests.chaos.history import Away, Fault, Settings, append, boottime
from tests.chaos.workload import Client
from tests.support.postgres import PrivateServer

__all__ = ["KEEP", "Ground"]

KEEP = "chaos-watch"  # the application_name of connections that no fault cuts


@dataclass
class Ground:
    """One run's world."""

    fleet: Fleet
    server: PrivateServer
    client: Client  # used by one lane only
    settings: Settings
    journal: Path
    disk: Path | None = None  # the small file system that the server's data is on
    limits: bool = False  # whether the nodes have a memory limit
    stopping: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def fault(self, kind: str, what: str) -> Iterator[None]:
        """Written down when it is over."""
        began = boottime()
        try:
            yield
        finally:
            append(self.journal, Fault(kind=kind, began=began, ended=boottime(), what=what))

    @contextmanager
    def away(self, kind: str, *, crashed: bool = False) -> Iterator[None]:
        """The database answers nobody in this block, and at its end answers again."""
        began = boottime()
        try:
            yield
            self.await_answer()
        finally:
            append(self.journal, Away(began=began, ended=boottime(), kind=kind, crashed=crashed))

    def await_answer(self, seconds: float = 60.0) -> None:
        """Wait until a new connection gets an answer."""
        end = boottime() + seconds
        while True:
            try:
                with self.connect() as connection:
                    connection.execute("select 1")
                return
            except psycopg.Error:
                if boottime() > end:
                    raise
                time.sleep(0.05)

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """An administrator's connection, which other faults leave alone."""
        return psycopg.connect(self.server.dsn, autocommit=True, application_name=KEEP, connect_timeout=5)

    def sleep(self, seconds: float) -> None:
        """Let a fault last."""
        time.sleep(seconds)
