"""PgBouncer in transaction mode before a server: consecutive transactions of a client are on whichever session is free.

    with PgBouncer(server.dsn) as pooler:
        scheduler = Scheduler(SchedulerConfig(dsn=pooler.through(dsn)))

Whatever a session keeps (prepared statements, settings, LISTEN) is somebody else's a moment later.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar, cast
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.support import eventually, reserved_port

__all__ = ["PgBouncer", "free_port", "needs_its_own_way", "needs_notifications", "wanted", "why_not"]

T = TypeVar("T")

_VARIABLE = "PGSCHEDULER_TEST_POOLER"

_SETTINGS = """
[databases]
* = host={host} port={port} auth_user={user}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
logfile = {log}
auth_type = trust
auth_file = {users}
; Roles come and go in tests.
auth_query = select usename, passwd from pg_catalog.pg_shadow where usename = $1
pool_mode = transaction
max_client_conn = 1000
default_pool_size = {sessions}
; A database per test: its sessions must not stay.
server_idle_timeout = 10
ignore_startup_parameters = extra_float_digits
"""


def why_not() -> str | None:
    """Why there can be no pooler here, or None."""
    return None if _program() else "pgbouncer is not installed"


def wanted() -> str | None:
    """What PGSCHEDULER_TEST_POOLER asks for: None, `pgbouncer`, or `pgbouncer+listen`."""
    word = os.environ.get(_VARIABLE) or None
    if word not in (None, "pgbouncer", "pgbouncer+listen"):
        raise ValueError(f"{_VARIABLE} is pgbouncer or pgbouncer+listen, not {word!r}")
    return word


def needs_notifications(test: T) -> T:
    """For a test of what is heard at once: there is nothing to hear without a listener past the pooler."""
    import pytest

    reason = "no notification is heard through a pooler in transaction mode"
    marked: Any = pytest.mark.skipif(wanted() == "pgbouncer", reason=reason)(test)
    return cast(T, marked)


def needs_its_own_way(test: T) -> T:
    """For a test of nodes that are given nothing but a dsn, and must hear each other."""
    import pytest

    marked: Any = pytest.mark.skipif(wanted() is not None, reason="its nodes listen where their dsn leads")(
        test
    )
    return cast(T, marked)


class PgBouncer:
    """A running PgBouncer; `through(dsn)` is the way to a database of its server, `past(dsn)` the way back.

    `sessions` is how many the server has for one user and database; more clients than that share them.
    """

    def __init__(self, dsn: str, sessions: int = 60) -> None:
        program = _program()
        if program is None:
            raise FileNotFoundError("pgbouncer is not installed")
        with psycopg.connect(dsn) as connection:
            info = connection.info
            self._host, self._server_port, self._user = info.host, info.port, info.user
            password = info.password
        self._directory = TemporaryDirectory(prefix="pgscheduler-pooler-")
        home = Path(self._directory.name)
        home.chmod(0o755)
        self._reserved = ExitStack()
        self.port = self._reserved.enter_context(reserved_port())
        self._log = home / "pooler.log"
        self._log.touch()
        users = home / "users.txt"
        users.write_text(f'"{self._user}" "{password}"\n')
        ini = home / "pooler.ini"
        ini.write_text(
            _SETTINGS.format(
                host=self._host,
                port=self._server_port,
                user=self._user,
                own_port=self.port,
                log=self._log,
                users=users,
                sessions=sessions,
            )
        )
        command = [program, "-q", str(ini)]
        if os.geteuid() == 0:
            # It refuses to be root; it must be who may enter the server's socket.
            owner = Path(self._host).owner() if self._host.startswith("/") else "nobody"
            shutil.chown(self._log, owner)
            shutil.chown(users, owner)
            command[1:1] = ["-u", owner]
        users.chmod(0o600)
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: self._answers(dsn), 30, self.log)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def through(self, dsn: str) -> str:
        """The same database and user by way of the pooler; a URL, because SQLAlchemy takes nothing else."""
        return self._url(dsn, "127.0.0.1", self.port)

    def past(self, dsn: str) -> str:
        """The same database and user directly."""
        return self._url(dsn, self._host, self._server_port)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def close(self) -> None:
        """End it at once, whoever is connected. Idempotent."""
        self._process.terminate()
        self._process.wait(30)
        self._reserved.close()
        self._directory.cleanup()

    def _url(self, dsn: str, host: str, port: int) -> str:
        given = conninfo_to_dict(dsn)
        user = quote(str(given.get("user") or self._user), safe="")
        if given.get("password"):
            user += ":" + quote(str(given["password"]), safe="")
        database = quote(str(given.get("dbname") or "postgres"), safe="")
        return f"postgresql://{user}@/{database}?host={quote(host, safe='')}&port={port}"

    def _answers(self, dsn: str) -> bool:
        assert self._process.poll() is None, self.log()
        try:
            with psycopg.connect(self.through(dsn), connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False


def _program() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
