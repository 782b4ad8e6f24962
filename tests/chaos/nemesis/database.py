"""Faults of PostgreSQL: backends killed, the server crashed, stopped, frozen, full, locked or out of space."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import psycopg

from pgscheduler.errors import DatabaseUnavailableError
from tests.chaos.nemesis.ground import KEEP, Ground

__all__ = [
    "connections", "crash", "disk", "freeze", "lock", "no_disk", "outage", "restart", "rows", "stutter", "terminate",
]  # fmt: skip

_TERMINATE = (
    "select count(pg_terminate_backend(pid)) from pg_stat_activity"
    f" where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name <> '{KEEP}'"
)


def terminate(ground: Ground, chance: random.Random) -> None:
    """pg_terminate_backend for everybody, several times in a row."""
    with ground.fault("terminate", "database"), ground.connect() as connection:
        for _ in range(chance.randrange(1, 8)):
            connection.execute(_TERMINATE)
            ground.sleep(0.3 * chance.random())


def crash(ground: Ground, chance: random.Random) -> None:
    """-m immediate, as by a power cut, and up again."""
    with ground.fault("crash", "database"), ground.away("crash", crashed=True):
        ground.server.crash()
        ground.server.start()


def restart(ground: Ground, chance: random.Random) -> None:
    """A clean restart."""
    with ground.fault("restart", "database"), ground.away("restart"):
        ground.server.restart("fast")


def outage(seconds: float) -> Callable[[Ground, random.Random], None]:
    """The server is down for so long."""

    def do(ground: Ground, chance: random.Random) -> None:
        crashed = chance.random() < 0.5
        with ground.fault(f"outage{seconds:g}", "database"), ground.away("outage", crashed=crashed):
            ground.server.down("immediate" if crashed else "fast")
            ground.sleep(seconds)
            ground.server.start()

    return do


def freeze(ground: Ground, chance: random.Random) -> None:
    """Every process of the server is stopped for a while: connections stay, and nothing is answered."""
    with ground.fault("freeze", "database"), ground.away("stopped"), ground.server.frozen():
        ground.sleep(1 + 7 * chance.random())


def stutter(ground: Ground, chance: random.Random) -> None:
    """The server stands still for most of each quarter of a second, as on a disk that has too much to do."""
    with ground.fault("stutter", "database"), ground.away("slow"):
        end = time.monotonic() + 3 + 4 * chance.random()
        while time.monotonic() < end:
            with ground.server.frozen():
                ground.sleep(0.18)
            ground.sleep(0.07)


def connections(ground: Ground, chance: random.Random) -> None:
    """Everybody is thrown out, and all connections that the server allows are taken by somebody else."""
    with (
        ground.fault("connections", "database"),
        ground.away("full"),
        ground.connect() as connection,
        ExitStack() as taken,
    ):
        end = time.monotonic() + 2 + 3 * chance.random()
        while time.monotonic() < end:
            connection.execute(_TERMINATE)
            with suppress(psycopg.OperationalError):
                while time.monotonic() < end:
                    taken.enter_context(ground.connect())
            ground.sleep(0.2)


def lock(ground: Ground, chance: random.Random) -> None:
    """Somebody locks the table of jobs, as a careless ALTER TABLE does: for less than the timeout, or more."""
    with ground.fault("lock", "database"), ground.connect() as connection:
        connection.execute("begin")
        connection.execute("set local lock_timeout = '5s'")
        # Everyone else waits from the moment that this waits.
        with suppress(psycopg.errors.LockNotAvailable), ground.away("lock"):
            try:
                connection.execute("lock table pgscheduler_jobs in access exclusive mode")
                ground.sleep(1.5 if chance.random() < 0.5 else 7.0)
            finally:
                connection.execute("rollback")


def rows(ground: Ground, chance: random.Random) -> None:
    """Somebody holds the rows of all running jobs, so that their heartbeats and outcomes wait.

    For less than a claim outlasts without one (the timeout less an interval, for another interval in between): nothing
    is to be lost by it.
    """
    seconds = ground.settings.no_heartbeat_timeout * chance.choice([0.3, 0.45])
    with ground.fault("rows", "database"), ground.connect() as connection, connection.transaction():
        connection.execute("select id from pgscheduler_jobs where state = 'running' for update skip locked")
        ground.sleep(seconds)


def disk(ground: Ground, chance: random.Random) -> None:
    """The server's disk is full for a while; where that stops it, it is started again afterwards."""
    assert ground.disk is not None
    filler = ground.disk / "filler"
    with ground.fault("disk", "database"), ground.away("disk full", crashed=True):
        try:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * (1 << 20))
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while True:
                    file.write(b"\0" * 512)
            ground.sleep(1 + 4 * chance.random())
        finally:
            filler.unlink(missing_ok=True)
        with suppress(psycopg.Error):
            # A server that is in trouble ends by itself within a moment.
            ground.await_answer(3)
            return
        with suppress(DatabaseUnavailableError):
            ground.server.down("immediate")
        ground.server.start()


def no_disk(ground: Ground) -> str | None:
    return None if ground.disk is not None else "no small file system can be mounted here (root is needed)"
