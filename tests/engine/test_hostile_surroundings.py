"""What surrounds a scheduler may be hostile or broken: its database's other inhabitants, its channel, its texts, its server."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgscheduler import (
    Cron,
    DatabaseUnavailableError,
    JobConfig,
    JobState,
    PgSchedulerError,
    Scheduler,
    SchedulerConfig,
    _listener,
)
from pgscheduler._sql import Names
from pgscheduler._store import Store
from pgscheduler.cli import main
from tests.engine.conftest import Call, Quiet
from tests.support import eventually
from tests.support.postgres import execute

INJECTIONS = [
    "'; drop table pgscheduler_jobs; --",
    "' or '1'='1",
    '"; drop schema public cascade; --',
    "$$; select pg_sleep(100); $$",
    "$1", "%s", "%(name)s", "%", "_", "\\", "\\'; --", "{jobs}", "{0.__class__}", "${HOME}", "`id`", "$(id)",
    "/* */", "-- ", "E'\\x27'", "null", "NULL", "{}", "{a,b}", '{"a"', "1; commit", "<script>alert(1)</script>",
    "../../etc/passwd", "a.b.c", "os.system", "\u2028", "\U0001f600", "0x27", "ÿ'", "(select 1)", "array[1]",
]  # fmt: skip


@pytest.mark.parametrize("prepared", [True, False])
def test_injections_are_only_text(
    dsn: str, db: Any, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, prepared: bool
) -> None:
    """Whatever a name, a key, a parameter or a filter holds, it is stored, found and run as that very text."""
    tables = "select count(*) from pg_class where relname like 'pgscheduler%'"
    before = execute(dsn, tables)
    node = scheduler_on(dsn, prepared_statements=prepared)
    texts = [text for text in INJECTIONS if text.isprintable()]
    node.schedule_many([Call(JobConfig.one_time(text, {text: text}, key=text)) for text in texts])
    for text in texts:
        node.enqueue(text, {text: text}, key=text)
        (row,) = db.execute("select pgscheduler_enqueue(%s, %s, %s)", [text, json.dumps({text: text}), text])
        (found,) = node.jobs(name=text, key=text)
        assert (found.id, found.parameters) == (row[0], {text: text})
        assert node.get_job((text, text)).id == found.id
        assert node.runs(name=text, key=text) == []
        node.pause((text, text))
        node.resume((text, text))
    assert len(node.jobs(limit=1000)) == len(texts)
    monkeypatch.setenv("PGSCHEDULER_DSN", dsn)
    for text in texts:
        assert main(["jobs", "--json", f"--name={text}"]) == 0
        assert [job["name"] for job in json.loads(capsys.readouterr().out)] == [text]
    while node.run_pending().claimed:
        pass
    assert {run.name for run in node.runs(limit=1000, outcome="completed")} == set(texts)
    assert node.jobs() == []
    assert execute(dsn, tables) == before


@pytest.mark.parametrize("path", ["trap,public", "trap,pg_catalog,public"])
def test_what_comes_first_on_the_search_path_changes_nothing(
    direct_dsn: str, scheduler_on: Any, path: str
) -> None:
    """Tables and functions of the same names, in a schema that is searched before ours, are not taken for ours."""
    trap = (
        "create schema trap; create table trap.pgscheduler_jobs (id int); create view trap.pgscheduler_runs as select 1;"
        " create function trap.pgscheduler_now() returns timestamptz language sql as $$ select timestamptz '1999-01-01' $$;"
        " create function trap.now() returns timestamptz language sql as $$ select timestamptz '1999-01-01' $$;"
        " create function trap.clock_timestamp() returns timestamptz language sql as $$ select timestamptz '1999-01-01' $$;"
        " create function trap.pgscheduler_enqueue(text) returns bigint language sql as $$ select 7::bigint $$"
    )
    with psycopg.connect(direct_dsn, autocommit=True) as connection:
        connection.execute(trap)
    node = scheduler_on(
        make_conninfo(direct_dsn, options=f"-c search_path={path}"),
        register=(Call(JobConfig(name="job")),),
    )
    node.start()
    record = node.enqueue("job", key="k")
    assert node.wait(record, 20).state is JobState.COMPLETED
    (run,) = node.runs(record.id)
    assert min(record.created_at, record.run_at, run.started_at, run.finished_at).year > 2000
    with psycopg.connect(make_conninfo(direct_dsn, options=f"-c search_path={path}")) as connection:
        stored = connection.execute("select public.pgscheduler_enqueue('job')").fetchone()
    assert stored is not None
    done = node.wait(stored[0], 20)
    assert done.scheduled_at.year > 2000
    assert execute(direct_dsn, "select count(*) from trap.pgscheduler_jobs") == [(0,)]
    assert node.stats()["states"] == {}


def test_noise_on_the_channel_is_only_noise(direct_dsn: str, db: Any, scheduler_on: Any) -> None:
    """Anybody may notify: nonsense makes nobody look for work, and neither it nor hundreds of true hints do any harm."""
    node = scheduler_on(
        direct_dsn, start=True, register=(Call(JobConfig(name="job")),), job_check_interval=60
    )
    assert node.wait(node.enqueue("job"), 20).state is JobState.COMPLETED
    channel = Names("public", "pgscheduler_").channel
    before = node.node_stats()["cycles"]
    noises = ("garbage", "", "DUE", "due; drop table x", "due ", "\U0001f600" * 100)
    for n in range(1200):
        db.execute("select pg_notify(%s, %s)", [channel, noises[n % len(noises)]])
    assert node.wait(node.enqueue("job"), 20).state is JobState.COMPLETED
    assert node.node_stats()["cycles"] - before < 50
    db.execute("select pg_notify(%s, repeat('x', 7000) || n) from generate_series(1, 1000) n", [channel])
    before, began = node.node_stats()["cycles"], time.monotonic()
    for _ in range(3000):  # each a transaction of its own, several in a millisecond
        db.execute("select pg_notify(%s, 'due')", [channel])
    assert node.wait(node.enqueue("job"), 20).state is JobState.COMPLETED
    interval = node.config.notification_debounce_interval.total_seconds()
    most = (time.monotonic() - began) / interval + _listener.BURST
    assert node.node_stats()["cycles"] - before < most + 20
    assert {name for name, loop in node.node_stats()["loops"].items() if loop["failures"]} == set()


def test_a_listener_that_hears_nothing_says_so(
    direct_dsn: str, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where notifications do not arrive, as behind a pooler in transaction mode, the log says it and jobs run all the same."""
    real = Store.notify
    # A pooler's other session takes LISTEN for itself: nothing that is sent comes back.
    monkeypatch.setattr(Store, "notify", lambda self, c, hint: hint == "probe" or real(self, c, hint))
    monkeypatch.setattr(_listener, "PROBE_PATIENCE", 0.2)
    node = scheduler_on(direct_dsn, start=True, register=(Call(JobConfig(name="job")),))
    eventually(lambda: any("notifications do not arrive" in event for event in node.log.events()))
    assert node.wait(node.enqueue("job"), 20).state is JobState.COMPLETED


def test_a_server_that_says_nothing_is_given_up_in_time(direct_dsn: str, proxy_to: Any) -> None:
    """A server that accepts and never answers is "cannot connect" after `connect_timeout`, and not after two minutes."""
    proxy = proxy_to(direct_dsn)
    proxy.stall()
    secret = make_conninfo(proxy.dsn, password="hunter2")
    scheduler = Scheduler(SchedulerConfig(dsn=secret, logger=Quiet(), connect_timeout=timedelta(seconds=2)))
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match="cannot connect") as caught:
        scheduler.init()
    assert time.monotonic() - began < 30
    assert "hunter2" not in str(caught.value)
    assert scheduler.shutdown() is True


LONG = 100_000  # characters


@pytest.mark.parametrize(
    "piece", ["a", " ", "*", "0,", "-", "%", "@", "\\", "(", "\u0301", "\x00", "://", "a."]
)
def test_long_texts_are_refused_at_once(piece: str) -> None:
    """No text of a hundred thousand characters keeps a check busy, whatever pattern it may try to lead astray."""
    text = (piece * LONG)[:LONG]
    checks = {
        "name": lambda: JobConfig(name=text),
        "key": lambda: JobConfig(key=text),
        "cron": lambda: Cron(text),
        "zone": lambda: Cron("@daily", text),
        "prefix": lambda: SchedulerConfig(dsn="dbname=x", table_prefix=text),
        "schema": lambda: SchedulerConfig(dsn="dbname=x", schema=text),
        "misfire": lambda: JobConfig(misfire=text),
        "scheme": lambda: SchedulerConfig(dsn=text + "\x00"),
    }
    for name, check in checks.items():
        began = time.thread_time()
        with pytest.raises(PgSchedulerError) as caught:
            check()
        assert time.thread_time() - began < 0.5, name
        assert len(str(caught.value)) < 600, name


def test_the_environment_is_not_read_into_texts(
    dsn: str, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks like a variable in a name or in parameters stays what it is."""
    monkeypatch.setenv("NOBODYS_SECRET", "hunter2")
    node = scheduler_on(dsn)
    given = {"a": "${NOBODYS_SECRET} $NOBODYS_SECRET %NOBODYS_SECRET% {NOBODYS_SECRET} ~"}
    seen = []
    node.register(Call(JobConfig(name="${NOBODYS_SECRET}"), lambda ctx: seen.append(ctx.parameters)))
    record = node.enqueue("${NOBODYS_SECRET}", given)
    assert record.name == "${NOBODYS_SECRET}"
    node.run_pending()
    assert seen == [given]
    assert os.environ["NOBODYS_SECRET"] not in str(node.runs(record.id))
