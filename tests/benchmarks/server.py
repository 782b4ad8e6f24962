"""The benchmark's own PostgreSQL: durable settings, over TCP for everyone, because not every driver knows sockets."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from pgscheduler import embedded

DISTRIBUTION = Path("/usr/lib/postgresql/15/bin")
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_connections": "300",
    "max_wal_size": "4GB",  # no checkpoint in the middle of a short run, for anyone
}
PASSWORD = "bench"


class Server:
    """A running PostgreSQL; `database()` gives each run an empty database of its own."""

    def __init__(self, embedded_server: embedded.EmbeddedPostgres, port: int) -> None:
        self._server = embedded_server
        self.bin = embedded_server.bin
        self._numbers = itertools.count()
        with psycopg.connect(embedded_server.dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("create role bench superuser login password {}").format(PASSWORD))
        self.dsn = f"postgresql://bench:{PASSWORD}@127.0.0.1:{port}/postgres"
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            self.version = str(_value(connection, "show server_version"))
        self.settings = SETTINGS

    @property
    def pid(self) -> int:
        assert self._server.pid is not None
        return self._server.pid

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The dsn of a new, empty database; dropped at the end, whoever is still connected."""
        name = f"bench_{next(self._numbers)}"
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield urlsplit(self.dsn)._replace(path="/" + name).geturl()
        finally:
            with psycopg.connect(self.dsn, autocommit=True) as admin:
                admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def settle(self, dsn: str) -> None:
        """Before a drain: statistics as autovacuum would have made them within a minute, and nothing left to write.

        Without statistics, whether a contestant's statements get a good plan is chance, from one run to the next.
        """
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("analyze")
        self.checkpoint()

    def checkpoint(self) -> None:
        """Before each measured piece, so that none pays for another's pages."""
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            admin.execute("checkpoint")


@contextlib.contextmanager
def start(which: str = "distribution") -> Iterator[Server]:
    """`distribution`: Debian's PostgreSQL 15; `wheel`: the newest that the embedded extra brings."""
    binaries = DISTRIBUTION if which == "distribution" and (DISTRIBUTION / "postgres").exists() else None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {**SETTINGS, "listen_addresses": "127.0.0.1", "port": str(port)}
    with embedded.start(bin=binaries, settings=settings) as server:
        yield Server(server, port)


def _value(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]
