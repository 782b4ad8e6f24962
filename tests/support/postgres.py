"""Servers and databases for tests: one shared server, a database per test, and servers that may be crashed.

Database names are unique across sessions, so several runs may share one server (PGSCHEDULER_TEST_DSN).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import conninfo, sql

from pgscheduler.embedded import EmbeddedPostgres, Mode
from tests.support import eventually

__all__ = [
    "SHARED_SETTINGS",
    "PrivateServer",
    "Server",
    "apply_schema",
    "database_dsn",
    "execute",
    "shared_directory",
    "terminate_backends",
]

# A crash of the shared server would only fail the run, so nothing of it needs to reach the disk.
# Promises about crashes are tested on a PrivateServer, where fsync is on.
SHARED_SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
    "max_connections": "300",
    "autovacuum": "on",
    "max_wal_size": "256MB",
}

_MEMORY = Path("/dev/shm")
_MEMORY_NEEDED = 2 << 30  # bytes; a container often has 64 MB there


def shared_directory() -> Path | None:
    """Where the shared server's files go: into memory where there is plenty, else None (the usual place).

    Cloning a database makes 300 files; on a disk that took 40 to 250 ms per test, in memory 10 ms.
    """
    if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < _MEMORY_NEEDED:
        return None
    return _MEMORY / f"pgscheduler-test-{os.getpid()}-{secrets.token_hex(4)}"


def execute(dsn: str, statement: str | sql.Composed, parameters: Any = None) -> list[tuple[Any, ...]]:
    """One statement on a connection of its own, committed at once; returns its rows, if it has any."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        query = sql.SQL(statement) if isinstance(statement, str) else statement
        cursor = connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


def database_dsn(dsn: str, database: str) -> str:
    """The same server, another database. A URL stays a URL, because SQLAlchemy takes nothing else."""
    if "://" in dsn:
        return urlsplit(dsn)._replace(path="/" + quote(database, safe="")).geturl()
    return conninfo.make_conninfo(dsn, dbname=database)


def apply_schema(dsn: str) -> None:
    """Create the scheduler's tables in this database, the way a user would."""
    # Imported late: the servers here must also work while the scheduler does not.
    from pgscheduler import Scheduler, SchedulerConfig

    scheduler = Scheduler(SchedulerConfig(dsn=dsn, create_schema=True))
    scheduler.init()
    scheduler.shutdown()


def terminate_backends(dsn: str) -> int:
    """Cut every other connection to this database, as an administrator would; returns how many.

    They are cut when this returns: `pg_terminate_backend` only asks, and a backend may work on for a moment.
    """
    pids = [
        pid
        for pid, _ in execute(
            dsn,
            "select pid, pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()",
        )
    ]
    left = "select count(*) from pg_stat_activity where pid = any (%s)"
    eventually(lambda: execute(dsn, left, [pids]) == [(0,)], timeout=60, describe=f"{pids} to end")
    return len(pids)


class Server:
    """A server in which tests create and drop databases; `dsn` is that of an administrator."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        ((version, fsync),) = execute(
            dsn, "select current_setting('server_version_num')::int, current_setting('fsync')::bool"
        )
        self.version: int = version
        # Copying files is twice as fast, but needs checkpoints, which are cheap only without fsync.
        # Before version 15 it is the only way, and has no name.
        self._strategy = " strategy file_copy" if version >= 150000 and not fsync else ""

    def create(self, template: str | None = None) -> str:
        """A new database, empty or a clone of `template`; returns its name."""
        name = f"pgscheduler_test_{os.getpid()}_{secrets.token_hex(4)}"
        statement = sql.SQL("create database {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" template {}" + self._strategy).format(sql.Identifier(template))
        execute(self.dsn, statement)
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        execute(self.dsn, sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    @contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """A database for the duration of a block; yields its dsn."""
        name = self.create(template)
        try:
            yield database_dsn(self.dsn, name)
        finally:
            self.drop(name)

    @contextmanager
    def template(self, prepare: Callable[[str], None]) -> Iterator[str]:
        """A database that was prepared once and can be cloned; yields its name."""
        name = self.create()
        try:
            prepare(database_dsn(self.dsn, name))
            # Nobody may be connected to a template that is being cloned; this also keeps autovacuum out.
            closed = sql.SQL("alter database {} with allow_connections false").format(sql.Identifier(name))
            execute(self.dsn, closed)
            execute(
                self.dsn, "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name]
            )
            yield name
        finally:
            self.drop(name)


class PrivateServer(EmbeddedPostgres):
    """One test's own server, to be crashed, stopped and started; `dsn` stays the same throughout."""

    def crash(self) -> None:
        """End it as a power cut would: no checkpoint, connections broken, recovery at the next start."""
        self.down("immediate")

    def start(self) -> None:
        """Start it again, on the same socket and data."""
        self.up()

    def outage(self, seconds: float, mode: Mode = "immediate") -> None:
        """Down, `seconds` of nothing, and up again; returns when it accepts connections."""
        self.down(mode)
        time.sleep(seconds)
        self.up()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every process of the server stands still in this block: connections stay, and nothing is answered."""
        stopped = self._family()
        try:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _family(self) -> list[int]:
        """The postmaster and its children."""
        if self.pid is None:
            return []
        found = [self.pid]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == self.pid:
                        found.append(int(entry.name))
        return found

    def terminate_backends(self, dsn: str | None = None) -> int:
        """Cut every other connection to a database (default: `postgres`)."""
        return terminate_backends(dsn or self.dsn)
