"""Patroni, its etcd and HAProxy before it, from the distribution's packages, in directories and on ports of their own.

    with Patroni() as patroni:
        scheduler = Scheduler(SchedulerConfig(dsn=patroni.dsn))     # by way of HAProxy, always to the leader
        patroni.kill(patroni.leader())                              # that machine is gone: Patroni, PostgreSQL and all
        patroni.switchover()                                        # the same as an administrator does it

As root everything runs as `nobody`. What is started here ends with its parent, whatever happens to that.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from psycopg.conninfo import make_conninfo

from tests.failover.cluster import family
from tests.support import eventually
from tests.support.pooler import free_port

__all__ = ["Patroni", "why_not"]

#: Seconds without a word from the leader until another member takes its place: the least that Patroni allows.
TTL = 20

_PROGRAMS = ("patroni", "etcd", "haproxy", "setpriv")
_ACCOUNT = "nobody"
_PROXY = """
global
    maxconn 1000
defaults
    mode tcp
    timeout connect 3s
    timeout check 2s
    timeout client 30m
    timeout server 30m
listen leader
    bind 127.0.0.1:{port}
    option httpchk
    http-check send meth OPTIONS uri /primary
    http-check expect status 200
    default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
"""


def why_not() -> str | None:
    """Why there can be no Patroni here, or None."""
    missing = [name for name in _PROGRAMS if _program(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None if _postgres() else "there is no PostgreSQL of the distribution in /usr/lib/postgresql"


class Patroni:
    """Members by name (`m0`, `m1`, …) and the way to whichever of them leads."""

    def __init__(self, members: int = 2, *, synchronous: bool = True) -> None:
        self._stack = ExitStack()
        self._synchronous = synchronous
        self._home = Path(tempfile.mkdtemp(prefix="pgscheduler-patroni-"))
        self._stack.callback(shutil.rmtree, self._home, ignore_errors=True)
        self._home.chmod(0o755)
        self._etcd, self._proxy = free_port(), free_port()
        self._ports = {f"m{number}": (free_port(), free_port()) for number in range(members)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._start_etcd()
            for name in self._ports:
                self._configure(name)
                self.start(name)
                self._await_state(name, "running")
            self._start_proxy()
            if synchronous:
                eventually(self._has_sync_standby, 60, self.log)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dsn(self) -> str:
        """By way of HAProxy."""
        return make_conninfo("", host="127.0.0.1", port=self._proxy, user="postgres", dbname="postgres")

    @property
    def direct_dsn(self) -> str:
        """All members by name, and the one that accepts writes."""
        ports = ",".join(str(port) for port, _ in self._ports.values())
        hosts = ",".join("127.0.0.1" for _ in self._ports)
        return make_conninfo(
            "", host=hosts, port=ports, user="postgres", dbname="postgres", target_session_attrs="read-write"
        )

    def leader(self) -> str | None:
        """The member that Patroni calls the primary."""
        for name in self._ports:
            with suppress(OSError, urllib.error.URLError):
                if self._ask(name, "/primary")[0] == 200:
                    return name
        return None

    def kill(self, name: str | None) -> None:
        """This member's machine is gone: SIGKILL for its Patroni and its PostgreSQL."""
        assert name is not None
        postmaster = self._postmaster(name)
        patroni = self._running.pop(name)
        # Patroni first: it would start PostgreSQL again.
        for pid in (*family(patroni.pid), *(family(postmaster) if postmaster else ())):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        patroni.wait(30)

    def start(self, name: str) -> None:
        """A member's machine is there (again)."""
        self._running[name] = self._spawn(name, _program("patroni"), str(self._home / f"{name}.yml"))

    def rejoin(self, name: str) -> None:
        """A member that was killed comes back, and follows the leader."""
        self.start(name)
        self._await_state(name, "running", "streaming")
        if self._synchronous:
            eventually(self._has_sync_standby, 60, self.log)

    def switchover(self) -> None:
        """Planned: the leader hands over and becomes a standby; returns when Patroni says that it is done."""
        leader = self.leader()
        candidate = next(name for name in self._ports if name != leader)
        status, text = self._ask(leader or "", "/switchover", {"leader": leader, "candidate": candidate})
        assert status == 200, text

    def log(self) -> str:
        """The last words of everybody."""
        return "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-600:]}"
            for path in sorted(self._home.glob("*.log"))
        )

    def close(self) -> None:
        """End everything, and remove it. Idempotent."""
        for name in list(self._running):
            if name in self._ports:
                self.kill(name)
            else:
                process = self._running.pop(name)
                process.kill()
                process.wait(30)
        for name in self._ports:
            postmaster = self._postmaster(name)
            if postmaster is not None:
                for pid in family(postmaster):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                eventually(lambda: self._postmaster(name) is None, 10)  # noqa: B023 - asked at once
        self._stack.close()

    # --- inside -----------------------------------------------------------------------------------------

    def _directory(self, name: str) -> Path:
        path = self._home / name
        if not path.exists():
            path.mkdir(mode=0o700)
            if os.geteuid() == 0:
                shutil.chown(path, _ACCOUNT)
        return path

    def _spawn(self, name: str, program: str | None, *arguments: str) -> subprocess.Popen[bytes]:
        assert program is not None
        setpriv = [str(_program("setpriv")), "--pdeathsig", "TERM"]
        if os.geteuid() == 0:
            setpriv += ["--reuid", _ACCOUNT, "--regid", "nogroup", "--clear-groups"]
        with (self._home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*setpriv, "--", program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                # Patroni is the distribution's Python program: nothing of ours may be in its way.
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
                start_new_session=True,
            )

    def _start_etcd(self) -> None:
        peer = f"http://127.0.0.1:{free_port()}"
        client = f"http://127.0.0.1:{self._etcd}"
        arguments = {
            "name": "one",
            "data-dir": str(self._directory("etcd") / "data"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"one={peer}",
            "unsafe-no-fsync": "true",
        }
        options = [f"--{name}={value}" for name, value in arguments.items()]
        self._running["etcd"] = self._spawn("etcd", _program("etcd"), *options)
        eventually(lambda: _get(f"{client}/health")[0] == 200, 30, self.log)

    def _configure(self, name: str) -> None:
        port, rest = self._ports[name]
        directory = self._directory(name)
        account = {"username": "postgres", "password": "unused"}
        document: dict[str, Any] = {
            "scope": "pgscheduler-test",
            "name": name,
            "restapi": {"listen": f"127.0.0.1:{rest}", "connect_address": f"127.0.0.1:{rest}"},
            "etcd3": {"host": f"127.0.0.1:{self._etcd}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL,
                    "loop_wait": 2,
                    "retry_timeout": 5,
                    "synchronous_mode": self._synchronous,
                    "postgresql": {
                        "use_pg_rewind": True,
                        "parameters": {
                            "max_connections": 100,
                            "shared_buffers": "32MB",
                            "wal_log_hints": "on",
                        },
                    },
                },
                "initdb": [{"encoding": "UTF8"}, "no-locale", "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{port}",
                "connect_address": f"127.0.0.1:{port}",
                "data_dir": str(directory / "data"),
                "bin_dir": str(_postgres()),
                "pgpass": str(directory / "pgpass"),
                "authentication": {"superuser": account, "replication": account, "rewind": account},
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 trust",
                    "host replication all 127.0.0.1/32 trust",
                ],
                "parameters": {"unix_socket_directories": str(directory)},
            },
        }
        # JSON is YAML.
        path = self._home / f"{name}.yml"
        path.write_text(json.dumps(document))
        path.chmod(0o644)

    def _start_proxy(self) -> None:
        config = self._home / "haproxy.cfg"
        servers = [
            f"    server {name} 127.0.0.1:{port} check port {rest}\n"
            for name, (port, rest) in self._ports.items()
        ]
        config.write_text(_PROXY.format(port=self._proxy) + "".join(servers))
        config.chmod(0o644)
        self._running["haproxy"] = self._spawn("haproxy", _program("haproxy"), "-db", "-f", str(config))

    def _await_state(self, name: str, *states: str) -> None:
        def there() -> bool:
            assert self._running[name].poll() is None, self.log()
            with suppress(OSError, urllib.error.URLError, ValueError):
                return json.loads(self._ask(name, "/patroni")[1]).get("state") in states
            return False

        eventually(there, 90, self.log)

    def _has_sync_standby(self) -> bool:
        with suppress(OSError, urllib.error.URLError, ValueError):
            members = json.loads(self._ask(self.leader() or "m0", "/cluster")[1])["members"]
            return any(member["role"] == "sync_standby" for member in members)
        return False

    def _ask(self, name: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, str]:
        return _get(f"http://127.0.0.1:{self._ports[name][1]}{path}", body)

    def _postmaster(self, name: str) -> int | None:
        """The process id of a member's PostgreSQL, if it runs."""
        try:
            pid = int((self._home / name / "data" / "postmaster.pid").read_text().split()[0])
            status = Path(f"/proc/{pid}/status").read_text()
        except (OSError, ValueError, IndexError):
            return None
        return None if "State:\tZ" in status else pid


def _get(url: str, body: Mapping[str, Any] | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data)
    try:
        with urllib.request.urlopen(request, timeout=60 if data else 3) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except (OSError, urllib.error.URLError):
        time.sleep(0.05)
        return 0, ""


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin")


def _postgres() -> Path | None:
    """The newest of the distribution's."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "postgres").exists()]
    return max(found, key=lambda path: int(path.parent.name), default=None)
