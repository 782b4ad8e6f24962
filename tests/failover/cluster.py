"""A primary and its standbys on this machine, each a private server; no port is open, all of it is Unix sockets.

with Cluster({"near": False, "far": True}) as cluster:      # far: behind a network that can be stalled
    cluster.wait_for("near")                                # commits wait for it from here on
    cluster.kill()                                          # the primary, by SIGKILL, with its children
    cluster.promote("near")
    cluster.come_back()                                     # the old primary, as a stray that knows of nothing
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from psycopg import conninfo, sql

from pgscheduler.embedded import _binaries
from pgscheduler.errors import DatabaseUnavailableError
from tests.support import eventually
from tests.support.postgres import PrivateServer, execute
from tests.support.proxy import Proxy

__all__ = ["Cluster", "family", "kill", "why_not"]

_SETTINGS = {
    "max_connections": "100",
    "shared_buffers": "32MB",
    "max_wal_size": "128MB",
    "log_min_messages": "fatal",
    "wal_receiver_status_interval": "1",
    "wal_retrieve_retry_interval": "200ms",
    "wal_receiver_timeout": "60s",  # a stalled network shall look like lag, not like a lost primary
    "wal_sender_timeout": "60s",
    "hot_standby_feedback": "off",
}


def why_not() -> str | None:
    """Why there can be no cluster here, or None."""
    try:
        directory = _binaries(None)
    except DatabaseUnavailableError as error:
        return str(error)
    return None if (directory / "pg_basebackup").exists() else f"there is no pg_basebackup in {directory}"


class Cluster:
    """`dsn` names all members and takes the one that accepts writes; `primary` is who was made first."""

    def __init__(self, standbys: Mapping[str, bool], settings: Mapping[str, str] | None = None) -> None:
        self._stack = ExitStack()
        self._settings = {**_SETTINGS, **(settings or {})}
        self.proxies: dict[str, Proxy] = {}  # of the standbys that lag on demand
        self.standbys: dict[str, PrivateServer] = {}
        try:
            self.primary = self._stack.enter_context(PrivateServer(settings=self._settings))
            for name, lags in standbys.items():
                self.standbys[name] = self._standby(name, lags)
            self._await_streams()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def dsn(self) -> str:
        return self.dsn_of(self.primary, *self.standbys.values())

    def dsn_of(self, *servers: PrivateServer) -> str:
        """A connection string of these members, in this order."""
        hosts = ",".join(str(conninfo.conninfo_to_dict(server.dsn)["host"]) for server in servers)
        return conninfo.make_conninfo(
            "", host=hosts, user="postgres", dbname="postgres", target_session_attrs="read-write"
        )

    # --- replication ------------------------------------------------------------------------------------

    def wait_for(self, name: str) -> None:
        """From here on a commit waits until this standby has it on its disk."""
        execute(
            self.primary.dsn,
            sql.SQL("alter system set synchronous_standby_names = {}").format(sql.Literal(name)),
        )
        execute(self.primary.dsn, "select pg_reload_conf()")
        query = "select sync_state from pg_stat_replication where application_name = %s"
        eventually(
            lambda: execute(self.primary.dsn, query, [name]) == [("sync",)], 30, f"{name} to be synchronous"
        )

    def lag(self, name: str) -> None:
        """Nothing of what the primary writes reaches this standby any more, and neither is told."""
        self.proxies[name].stall()

    def caught_up(self, name: str) -> bool:
        """Whether this standby has replayed all that the primary has written."""
        ((here,),) = execute(self.primary.dsn, "select pg_current_wal_insert_lsn()")
        query = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
        return execute(self.standbys[name].dsn, query, [here]) == [(True,)]

    def behind(self, name: str) -> int:
        """Bytes that the primary has written and this standby has not received."""
        ((here,),) = execute(self.primary.dsn, "select pg_current_wal_insert_lsn()")
        query = "select pg_wal_lsn_diff(%s::pg_lsn, pg_last_wal_receive_lsn())::bigint"
        ((found,),) = execute(self.standbys[name].dsn, query, [here])
        return int(found)

    # --- failing over -----------------------------------------------------------------------------------

    def kill(self) -> None:
        """The primary's machine is gone; what was on its way to a standby that lags never arrives."""
        kill(self.primary)
        for proxy in self.proxies.values():
            proxy.refuse()

    def promote(self, name: str) -> None:
        """This standby takes over; returns when it accepts writes."""
        server = self.standbys[name]
        execute(server.dsn, "select pg_promote(true, 60)")
        eventually(
            lambda: execute(server.dsn, "select pg_is_in_recovery()") == [(False,)], 30, "the promotion"
        )

    def come_back(self) -> PrivateServer:
        """The old primary is started again as it was: nobody told it that it is not the primary any more."""
        self.primary.up()
        return self.primary

    # --- inside -----------------------------------------------------------------------------------------

    def _standby(self, name: str, lags: bool) -> PrivateServer:
        # Inside the primary's own, which goes with it whatever becomes of us.
        home = Path(tempfile.mkdtemp(prefix="standby-", dir=self.primary.directory))
        self._stack.callback(shutil.rmtree, home, ignore_errors=True)
        home.chmod(0o755)
        owner = self.primary.data.stat()
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            identity = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
            data = home / "data"
            data.mkdir(mode=0o700)
            os.chown(data, owner.st_uid, owner.st_gid)
        source = self.primary.dsn
        if lags:
            proxy = self.proxies[name] = self._stack.enter_context(Proxy(self.primary.dsn))
            source = proxy.dsn
        source = conninfo.make_conninfo(source, application_name=name, dbname=None)
        command = [self.primary.bin / "pg_basebackup", "-d", source, "-D", home / "data"]
        command += ["-X", "stream", "-c", "fast", "--no-sync", "-R"]
        done = subprocess.run(
            [str(part) for part in command], check=False, capture_output=True, text=True, cwd="/", **identity
        )
        if done.returncode != 0:
            raise DatabaseUnavailableError(f"pg_basebackup failed: {done.stderr.strip()}")
        return self._stack.enter_context(PrivateServer(home, settings=self._settings, bin=self.primary.bin))

    def _await_streams(self) -> None:
        query = "select count(*) from pg_stat_replication where state = 'streaming'"
        eventually(
            lambda: execute(self.primary.dsn, query) == [(len(self.standbys),)], 30, "the standbys to stream"
        )


def family(parent: int) -> list[int]:
    """A process and its children."""
    found = [parent]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
    return found


def kill(server: PrivateServer) -> None:
    """SIGKILL for a postmaster and all its children: none of them has time for a last word."""
    assert server.pid is not None
    for pid in family(server.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not server.is_running, 10, "the postmaster to be gone")
