"""The tests' own tools: a tool that lies makes every test that stands on it worthless."""

from __future__ import annotations

import os
import threading
import time

import psycopg
import pytest

from tests.support.postgres import PrivateServer, database_dsn, execute, terminate_backends

NODE = """
import os, signal, sys, threading, time
from tests.support.processes import commands, emit

signal.signal(signal.SIGTERM, lambda *_: emit("asked_to_stop"))
print("plain words")
print("complaint", file=sys.stderr)
emit("started", args=sys.argv[1:], colour=os.environ.get("COLOUR"))
for order in commands():
    if order["do"] == "exit":
        sys.exit(order["status"])
    emit("did", what=order["do"])
emit("hung_up")
"""

CLOCK = """
import datetime, time
from tests.support.processes import commands, emit
import psycopg

for order in commands():
    began = time.monotonic()
    time.sleep(0.05)
    emit(
        "clock",
        time_time=time.time(),
        datetime=datetime.datetime.now(datetime.timezone.utc).timestamp(),
        slept=time.monotonic() - began,
    )
"""


# --- databases -------------------------------------------------------------------------------------


def test_a_clone_has_the_templates_tables(server):
    """A database made from a template has its tables, and what one test does there no other test sees."""

    def prepare(dsn):
        execute(dsn, "create table t as select 1 as x")

    with server.template(prepare) as made, server.database(made) as first, server.database(made) as second:
        execute(first, "insert into t values (2)")

        assert execute(first, "select x from t order by x") == [(1,), (2,)]
        assert execute(second, "select x from t") == [(1,)]


def test_a_database_is_dropped_under_its_users(server):
    """A forgotten connection does not keep a test's database alive."""
    with server.database() as dsn:
        connection = psycopg.connect(dsn)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("select 1")
    connection.close()

    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        execute(dsn, "select 1")


def test_empty_dsn_is_empty(empty_dsn):
    """`empty_dsn` has no table of ours."""
    assert execute(empty_dsn, "select count(*) from pg_tables where schemaname = 'public'") == [(0,)]


def test_dsn_and_db_are_the_same_database(dsn, db):
    """`db` looks into the database of `dsn`, which has the schema."""
    assert execute(dsn, "select current_database()") == db.execute("select current_database()").fetchall()
    assert db.execute("select count(*) > 0 from pg_tables where schemaname = 'public'").fetchone() == (True,)


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u@/postgres?host=/tmp/x", "postgresql://u@/other?host=/tmp/x"),
        ("postgresql://u:p@h:1/a", "postgresql://u:p@h:1/other"),
        ("host=h dbname=a", "dbname=other host=h"),
    ],
)
def test_database_dsn(dsn, expected):
    """The database of a dsn is exchanged, and a URL stays a URL."""
    assert expected == database_dsn(dsn, "other")


def test_terminate_backends(empty_dsn):
    """Connections to the database are cut, and counted."""
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("select 1")
        assert terminate_backends(empty_dsn) == 1
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


def test_own_server_crashes_and_comes_back(own_server):
    """A test's own server has fsync on, loses its connections in a crash, and keeps what was committed."""
    server: PrivateServer = own_server({"max_connections": "30"})
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("create table kept as select current_setting('fsync') as fsync")
        server.crash()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    server.start()
    server.outage(0.1)

    assert execute(server.dsn, "select fsync from kept") == [("on",)]
    assert execute(server.dsn, "show max_connections") == [("30",)]


# --- waiting ---------------------------------------------------------------------------------------


def test_eventually_returns_the_value(eventually):
    """It waits for the first truthy value and hands it on."""
    values = iter([None, 0, "there"])

    assert eventually(lambda: next(values)) == "there"


def test_eventually_fails_with_a_description(eventually):
    """What did not happen is said in words, and with what was seen last."""
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: rain; last value 0"):
        eventually(lambda: 0, timeout=0.05, describe=lambda: "rain")


# --- nodes -----------------------------------------------------------------------------------------


def test_a_node_tells_and_obeys(nodes):
    """A node gets its arguments, environment and orders; the test gets its events and exit status."""
    node = nodes(NODE, "a", 1, env={"COLOUR": "red"})
    started = node.wait_for("started")
    node.send({"do": "one"})
    node.send({"do": "two"})

    assert (started["args"], started["colour"]) == (["a", "1"], "red")
    assert node.wait_for("did", what="two")
    assert node.wait_for("did")["what"] == "one"
    assert node.seen("output") == [{"event": "output", "text": "plain words"}]
    node.send({"do": "exit", "status": 7})
    assert node.wait() == 7


def test_a_node_may_be_a_file_or_a_module(nodes, tmp_path):
    """A script is given as a path, a path's text, or the name of a module."""
    file = tmp_path / "script.py"
    file.write_text("from tests.support.processes import emit; emit('here')")

    assert nodes(file).wait_for("here")
    assert nodes(str(file)).wait_for("here")
    assert nodes("this").wait_for("output", text="The Zen of Python, by Tim Peters")


def test_a_node_that_ended_fails_the_wait_at_once(nodes):
    """A wait for what can no longer come ends at once, and shows what the node wrote to stderr."""
    node = nodes("import sys\nsys.exit('broken leg')")
    began = time.monotonic()

    with pytest.raises(AssertionError, match="broken leg"):
        node.wait_for("started", timeout=30)
    assert time.monotonic() - began < 15


def test_a_paused_node_stands_still(nodes):
    """Between pause and resume a node does nothing; after it, all that was asked for."""
    node = nodes(NODE)
    node.wait_for("started")
    node.pause()
    node.send({"do": "late"})
    with pytest.raises(AssertionError, match="not within"):
        node.wait_for("did", timeout=0.2)
    assert node.is_alive
    node.resume()

    assert node.wait_for("did", what="late")


def test_a_node_hears_sigterm_and_not_sigkill(nodes):
    """SIGTERM reaches the node's handler; SIGKILL ends it, and its status says so."""
    node = nodes(NODE)
    node.wait_for("started")
    node.terminate()
    node.wait_for("asked_to_stop")

    assert node.kill() == -9
    assert "complaint" in node.stderr()


def test_a_node_without_orders_ends(nodes):
    """Closing its input ends its `commands()`."""
    node = nodes(NODE)
    node.wait_for("started")
    node.hang_up()

    assert node.wait_for("hung_up")
    assert node.wait() == 0


def test_closing_a_node_takes_its_descendants_along(nodes, eventually):
    """The processes that a node started do not outlive the test either, even if the node is dead already."""
    node = nodes(
        """
        import subprocess, sys
        from tests.support.processes import emit
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        emit("started", child=child.pid)
        child.wait()
        """
    )
    child = node.wait_for("started")["child"]
    node.kill()
    os.kill(child, 0)
    node.close()

    def gone():
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True
        return False

    assert eventually(gone)


def test_a_node_does_not_outlive_the_test_session(nodes, eventually, tmp_path):
    """A node whose parent was killed ends by itself within a few seconds."""
    child = tmp_path / "child.py"
    child.write_text("import time\nfrom tests.support.processes import emit\nemit('up')\ntime.sleep(60)")
    parent = nodes(
        """
        import sys, time
        from tests.support.processes import emit, spawn_node
        node = spawn_node(sys.argv[1])
        node.wait_for("up")
        emit("up", pid=node.pid)
        time.sleep(60)
        """,
        child,
    )
    pid = parent.wait_for("up")["pid"]
    parent.kill()

    def gone():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    assert eventually(gone)


# --- clocks ----------------------------------------------------------------------------------------


def test_a_skewed_clock_moves_only_the_wall_clock(nodes, skewed_clock):
    """A node an hour ahead is so by every wall clock, follows a step at once, and sleeps as long as ever."""
    clock = skewed_clock(3600)
    node = nodes(CLOCK, env=clock.env)
    for offset in (3600, -86400.5, 0):
        clock.set(offset)
        before = time.time()
        node.send({})
        seen = node.wait_for("clock")

        for wall in ("time_time", "datetime"):
            assert before - 0.1 <= seen[wall] - offset <= time.time() + 0.1
        assert 0.04 < seen["slept"] < 30


def test_a_server_with_a_skewed_clock(own_server, skewed_clock):
    """PostgreSQL's clock can be stepped while it runs; a session sees it in its next statement."""
    clock = skewed_clock(-7200)
    server = own_server(env=clock.env)
    ask = "select extract(epoch from clock_timestamp())::float8, pg_sleep(0.01)"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for offset in (-7200, 3600):
            clock.set(offset)
            before = time.time()
            now = connection.execute(ask).fetchone()[0]

            assert before - 0.1 <= now - offset <= time.time() + 0.1


# --- networks --------------------------------------------------------------------------------------


def ask_in_thread(connection):
    """Send a statement whose answer may be late; returns the thread and the list for the answer."""
    answers: list[object] = []

    def ask():
        try:
            answers.append(connection.execute("select 1").fetchone())
        except psycopg.Error as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def test_a_proxy_passes(proxy_to, empty_dsn):
    """In its usual mode a proxy is not noticed, also not by large answers and by a clean end."""
    proxy = proxy_to(empty_dsn)

    assert [(len(x),) for (x,) in execute(proxy.dsn, "select repeat('x', 3000000)")] == [(3_000_000,)]


@pytest.mark.parametrize("way", ["both", "up", "down"])
def test_a_stalled_proxy_holds_back_and_heals(proxy_to, empty_dsn, way):
    """Nothing arrives during a stall, and what was held back arrives after it."""
    proxy = proxy_to(empty_dsn)
    with psycopg.connect(proxy.dsn, autocommit=True) as connection:
        proxy.stall(way)
        thread, answers = ask_in_thread(connection)
        thread.join(0.2)
        assert answers == []
        proxy.heal()
        thread.join(30)

        assert answers == [(1,)]


def test_a_stall_hides_a_client_that_left(proxy_to, server, empty_dsn, eventually):
    """During a stall the server does not learn that its client is gone; after it, it does."""
    proxy = proxy_to(empty_dsn)
    connection = psycopg.connect(proxy.dsn, autocommit=True)
    pid = connection.info.backend_pid
    proxy.stall()
    connection.close()
    alive = ("select count(*) from pg_stat_activity where pid = %s", [pid])
    time.sleep(0.1)

    assert execute(server.dsn, *alive) == [(1,)]
    proxy.heal()
    assert eventually(lambda: execute(server.dsn, *alive) == [(0,)])


def test_a_stalled_proxy_hangs_new_connections(proxy_to, empty_dsn):
    """A connection attempt during a stall ends only by its own timeout."""
    proxy = proxy_to(empty_dsn)
    proxy.stall()

    with pytest.raises(psycopg.OperationalError, match="timeout"):
        psycopg.connect(proxy.dsn, connect_timeout=2)


def test_a_reset_breaks_present_connections_only(proxy_to, empty_dsn, eventually):
    """A reset is an error for those who were connected, and nothing for those who come after."""
    proxy = proxy_to(empty_dsn)
    with psycopg.connect(proxy.dsn, autocommit=True) as connection:
        connection.execute("select 1")
        proxy.reset()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")

    assert execute(proxy.dsn, "select 1") == [(1,)]
    assert eventually(lambda: proxy.connections == 0)


def test_a_reset_also_breaks_a_stall(proxy_to, empty_dsn):
    """Whoever waits in a stalled connection is freed, with an error, by a reset."""
    proxy = proxy_to(empty_dsn)
    with psycopg.connect(proxy.dsn, autocommit=True) as connection:
        proxy.stall()
        thread, answers = ask_in_thread(connection)
        time.sleep(0.1)
        proxy.reset()
        thread.join(30)

        assert isinstance(answers[0], psycopg.OperationalError)


def test_a_refusing_proxy_comes_back_on_its_port(proxy_to, empty_dsn):
    """Refused connections fail at once; after healing the same dsn works again."""
    proxy = proxy_to(empty_dsn)
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        execute(proxy.dsn, "select 1")
    proxy.heal()

    assert execute(proxy.dsn, "select 1") == [(1,)]


def test_a_delay_adds_to_every_round_trip(proxy_to, empty_dsn):
    """With a delay of 50 ms each way, a statement takes 100 ms, and not seconds."""
    proxy = proxy_to(empty_dsn)
    with psycopg.connect(proxy.dsn, autocommit=True) as connection:
        proxy.delay(0.05)
        began = time.monotonic()
        connection.execute("select 1")

        assert 0.1 <= time.monotonic() - began < 5
