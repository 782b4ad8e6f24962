"""Figures of a live node: what is counted, what is read from the table, and how they are served."""

from __future__ import annotations

import http.client
import pkgutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgscheduler import (
    Every,
    Fail,
    InvalidTypeError,
    InvalidValueError,
    JobConfig,
    ListenError,
    Scheduler,
    SchedulerConfig,
    SchedulerStateError,
    Snooze,
)
from pgscheduler._maintenance import CHORES
from pgscheduler._sql import Names
from pgscheduler._store import Store
from pgscheduler.metrics import Metrics, serve_metrics
from pgscheduler.metrics import _figures as figures
from tests.engine.conftest import Call, Gate, Quiet
from tests.support import reserved_port
from tests.support.pooler import needs_notifications

pytest.importorskip("prometheus_client")
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: bytes) -> Samples:
    return {(s.name, frozenset(s.labels.items())): s.value for f in parse(text.decode()) for s in f.samples}


class Look:
    """`look(name, **labels)`: one figure now, None if it has no sample. `total(name)`: over all labels."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def __call__(self, name: str, **labels: str) -> float | None:
        return samples(self.metrics.text()).get((name, frozenset(labels.items())))

    def total(self, name: str) -> float:
        return sum(value for (found, _), value in samples(self.metrics.text()).items() if found == name)


def get(url: str, **headers: str) -> tuple[int, str, bytes]:
    """Status, content type, body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def at_once(failures: int, error: BaseException) -> timedelta:
    return timedelta(0)


def fails(ctx: Any) -> None:
    raise RuntimeError("no")


# --- row 64: Kronii's endpoint -------------------------------------------------------------------------


def test_row_64_metrics_endpoint(
    dsn: str, scheduler_on: Callable[..., Scheduler], eventually: Any, call: type[Call]
) -> None:
    """GET /metrics has the names of Kronii's README and of its code; a failed attempt counts once, each has a duration."""
    scheduler = scheduler_on(dsn)
    scheduler.register(call(JobConfig(name="good")))
    scheduler.register(call(JobConfig(name="bad", retries=2, backoff=at_once), fails))
    with serve_metrics(scheduler, port=0) as server:
        scheduler.start()
        for _ in range(3):
            scheduler.enqueue("good")
        scheduler.enqueue("bad")
        look = Look(Metrics.of(scheduler))
        eventually(lambda: look("scheduler_jobs_total") == 6)
        status, kind, body = get(server.url)

    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = samples(body)
    assert {
        "job_executions_total", "job_failures_total", "jobs_running", "job_duration_seconds_count",
        "scheduler_jobs_total", "scheduler_jobs_running", "scheduler_jobs_failed", "scheduler_jobs_success",
    } <= {name for name, _ in found}  # fmt: skip

    def of(name: str, job: str | None = None) -> float:
        return found[name, frozenset() if job is None else frozenset({("job_name", job)})]

    assert [of("job_executions_total", job) for job in ("good", "bad")] == [3, 3]
    assert [of("job_failures_total", job) for job in ("good", "bad")] == [0, 3]
    assert [of("job_duration_seconds_count", job) for job in ("good", "bad")] == [3, 3]
    assert of("job_duration_seconds_sum", "bad") > 0
    assert [of(f"scheduler_jobs_{word}") for word in ("total", "failed", "success", "running")] == [
        6,
        3,
        3,
        0,
    ]
    assert of("jobs_running") == 0
    assert min(found.values()) >= 0


def test_row_64_running_is_what_runs(
    dsn: str, scheduler_on: Callable[..., Scheduler], eventually: Any, call: type[Call], gate: Gate
) -> None:
    """The gauge counts runs in progress, not those that wait for a slot, and is 0 after failures too."""
    scheduler = scheduler_on(dsn, max_concurrent_jobs=2)
    look = Look(Metrics(scheduler))

    def held(ctx: Any) -> None:
        gate(ctx)
        fails(ctx)

    scheduler.register(call(JobConfig(name="held"), held))
    for _ in range(3):
        scheduler.enqueue("held")
    scheduler.start()
    gate.wait_for(2)
    assert look("jobs_running") == look("scheduler_jobs_running") == 2
    assert look("pgscheduler_slots") == 2
    assert (look("pgscheduler_claims_held") or 0) >= 2
    gate.open()
    eventually(lambda: look("job_failures_total", job_name="held") == 3)
    assert look("jobs_running") == 0
    eventually(lambda: look("pgscheduler_claims_held") == 0)  # let go a moment after they were counted


# --- what is counted -------------------------------------------------------------------------------------


def test_figures_are_those_of_history(
    dsn: str,
    db: psycopg.Connection[Any],
    scheduler_on: Callable[..., Scheduler],
    eventually: Any,
    call: type[Call],
) -> None:
    """Once all is quiet, runs by name and outcome are the lines of history, and durations those that have a start."""
    scheduler = scheduler_on(dsn)
    look = Look(Metrics(scheduler))
    tries: list[int] = []

    def wavers(ctx: Any) -> Any:
        tries.append(ctx.attempt)
        return Snooze(timedelta(0)) if len(tries) == 1 else "done"

    def slow(ctx: Any) -> None:
        ctx.wait(60)
        ctx.check()

    for job in (
        call(JobConfig(name="plain")),
        call(JobConfig(name="says"), lambda ctx: {"a": 1}),
        call(JobConfig(name="fails", retries=1, backoff=at_once), fails),
        call(JobConfig(name="gives_up", retries=5), lambda ctx: Fail("for good")),
        call(JobConfig(name="wavers"), wavers),
        call(JobConfig(name="too_slow", timeout=timedelta(seconds=0.2)), slow),
        call(JobConfig(name="cancelled"), slow),
        call(JobConfig(name="expired", expires_in=timedelta(seconds=1))),
    ):
        scheduler.register(job)
    each = call(JobConfig.recurring("each", Every(timedelta(hours=1)), misfire="run_once"))
    hourly = scheduler.schedule(each)
    never = scheduler.schedule(call(JobConfig.recurring("never", Every(timedelta(hours=1)), misfire="skip")))
    db.execute(
        "update pgscheduler_jobs set run_at = run_at - interval '5.5 hours', scheduled_at = scheduled_at - interval '5.5 hours'"
        " where id = any (%s)",
        [[hourly.id, never.id]],
    )
    for name in ("plain", "plain", "says", "fails", "gives_up", "wavers", "too_slow", "expired"):
        scheduler.enqueue(name)
    db.execute(
        "update pgscheduler_jobs set scheduled_at = now() - interval '1 minute' where name = 'expired'"
    )
    cancelled = scheduler.enqueue("cancelled")
    scheduler.start()
    eventually(lambda: look("jobs_running") and scheduler.get_job(cancelled).state == "running")
    scheduler.cancel(cancelled)
    eventually(
        lambda: db.execute("select count(*) from pgscheduler_jobs where schedule is null").fetchone() == (0,)
    )
    eventually(lambda: look("pgscheduler_claims_held") == 0)

    history = {
        (name, outcome): (lines, started)
        for name, outcome, lines, started in db.execute(
            "select name, outcome, count(*), count(started_at) from pgscheduler_runs group by name, outcome"
        )
    }
    assert {outcome for _, outcome in history} == {
        "completed", "failed", "timed_out", "cancelled", "interrupted", "skipped",
    }  # fmt: skip
    found = samples(look.metrics.text())
    counted = {
        (dict(labels)["job_name"], dict(labels)["outcome"]): value
        for (name, labels), value in found.items()
        if name == "pgscheduler_runs_total" and value
    }
    assert counted == {key: lines for key, (lines, _) in history.items()}
    started: dict[str, int] = {}
    for (name, _), (_, lines) in history.items():
        started[name] = started.get(name, 0) + lines
    timed = {
        dict(labels)["job_name"]: value
        for (name, labels), value in found.items()
        if name == "job_duration_seconds_count"
    }
    assert timed == started
    assert look.total("pgscheduler_run_duration_seconds_count") == sum(started.values())
    assert look.total("job_failures_total") == 4
    assert look.total("scheduler_jobs_total") == sum(started.values())


def test_run_pending_is_counted(
    dsn: str, db: psycopg.Connection[Any], scheduler_on: Callable[..., Scheduler], call: type[Call]
) -> None:
    """A pass without loops counts as a node does, lateness too, which begins when the job was due."""
    scheduler = scheduler_on(dsn)
    look = Look(Metrics(scheduler))
    scheduler.register(call(JobConfig(name="late")))
    db.execute("select pgscheduler_enqueue('late', run_at => now() - interval '100 seconds')")
    scheduler.run_pending()
    assert look("job_executions_total", job_name="late") == look("pgscheduler_claims_total") == 1
    assert 100 <= (look("pgscheduler_schedule_lateness_seconds_sum", job_name="late") or 0) < 200
    assert look("pgscheduler_schedule_lateness_seconds_bucket", job_name="late", le="60.0") == 0
    assert look("pgscheduler_schedule_lateness_seconds_bucket", job_name="late", le="300.0") == 1
    assert (
        look("pgscheduler_heartbeat_age_seconds") is None
    )  # no loops, so nobody whose heartbeat could be late


def test_counters_begin_at_zero_with_each_scheduler(
    dsn: str, scheduler_on: Callable[..., Scheduler], call: type[Call]
) -> None:
    """A restarted node counts from zero, as Prometheus expects of a restart; two in one process share nothing."""
    first = scheduler_on(dsn)
    first.register(call(JobConfig(name="job")))
    first_look = Look(Metrics(first))
    first.enqueue("job")
    first.run_pending()
    first.shutdown()
    second, third = scheduler_on(dsn), scheduler_on(dsn)
    for scheduler in (second, third):
        scheduler.register(call(JobConfig(name="job")))
    second_look, third_look = Look(Metrics(second)), Look(Metrics(third))
    second.enqueue("job")
    second.enqueue("job")
    # A name that is registered has its series before the first run, so that the first failure is an increase.
    assert second_look("job_failures_total", job_name="job") == 0
    second.run_pending()
    assert [look("job_executions_total", job_name="job") for look in (first_look, second_look, third_look)] == [
        1, 2, 0,
    ]  # fmt: skip
    assert second_look("pgscheduler_node_info", node=second.id, version=_version()) == 1


def _version() -> str:
    import pgscheduler

    return pgscheduler.__version__


def test_nothing_is_told_unless_it_is_asked_for(
    dsn: str, scheduler_on: Callable[..., Scheduler], call: type[Call]
) -> None:
    """Without figures no part of a node has anybody to tell; with them a subscriber still hears all."""
    plain = scheduler_on(dsn)
    node = plain._node

    def told() -> set[Any]:
        parts = [part for part in (node, *vars(node).values()) if hasattr(part, "observer")]
        assert len(parts) == 4, "the node, what records outcomes, heartbeats, maintenance"
        return {part.observer for part in parts}

    assert told() == {None}
    heard: list[str] = []
    plain.register(call(JobConfig(name="job")))
    plain.subscribe(lambda change: heard.append(change.new))
    look = Look(Metrics(plain))
    assert told() == {look.metrics}
    plain.enqueue("job")
    plain.run_pending()
    plain.shutdown()
    assert heard == ["pending", "running", "completed"]
    assert look("job_executions_total", job_name="job") == 1


def test_names_beyond_the_limit_share_a_series(
    dsn: str, db: psycopg.Connection[Any], scheduler_on: Callable[..., Scheduler], call: type[Call]
) -> None:
    """Thousands of names, ours or strangers', make no more series than the limit says; nothing is left out of the sums."""
    scheduler = scheduler_on(dsn)
    look = Look(Metrics(scheduler, max_names=3, interval=0.001))
    for n in range(8):
        scheduler.register(call(JobConfig(name=f"ours-{n}")))
        scheduler.enqueue(f"ours-{n}")
    scheduler.run_pending(100)
    db.execute("select pgscheduler_enqueue('stranger-' || n) from generate_series(1, 2000) n")
    found = samples(look.metrics.text())
    executed = {
        dict(labels)["job_name"]: v for (name, labels), v in found.items() if name == "job_executions_total"
    }
    assert sorted(executed.values()) == [1, 1, 1, 5]
    assert executed["other"] == 5
    live = {labels for name, labels in found if name == "pgscheduler_jobs"}
    assert len(live) == 3 * (3 + 3 + 1)  # states of ours, of strangers, of the others
    assert look.total("pgscheduler_jobs") == 2000
    series = len(found)
    db.execute("select pgscheduler_enqueue('later-' || n) from generate_series(1, 1000) n")
    assert look.total("pgscheduler_jobs") == 3000
    assert len(samples(look.metrics.text())) == series


def test_stalled_and_orphaned_jobs(
    dsn: str,
    db: psycopg.Connection[Any],
    scheduler_on: Callable[..., Scheduler],
    clock: Callable[..., None],
) -> None:
    """What this node's maintenance gave back and retired is counted; what had nothing to do is not."""
    scheduler = scheduler_on(dsn, no_heartbeat_timeout=20, orphaned_job_timeout=60)
    look = Look(Metrics(scheduler))
    for name in ("gone", "gone", "unknown"):
        scheduler.enqueue(name)
    db.execute(
        "update pgscheduler_jobs set state = 'running', token = id, node_id = gen_random_uuid(), claimed_at = now()"
        " where name = 'gone'"
    )
    scheduler._node.maintenance.do(CHORES[0])
    assert look.total("pgscheduler_stalled_resets_total") == 0
    clock(by=timedelta(seconds=30))
    scheduler._node.maintenance.do(CHORES[0])
    assert look("pgscheduler_stalled_resets_total", job_name="gone") == 2
    assert look("pgscheduler_orphaned_jobs_total") == 0
    clock(by=timedelta(hours=1))
    scheduler._node.maintenance.do(CHORES[1])
    assert look("pgscheduler_orphaned_jobs_total") == 3


@needs_notifications
def test_lost_claims_and_heartbeats(
    dsn: str,
    db: psycopg.Connection[Any],
    scheduler_on: Callable[..., Scheduler],
    eventually: Any,
    call: type[Call],
    gate: Gate,
) -> None:
    """A run whose job another node took is counted as lost, not as failed; heartbeats say how late they are."""
    scheduler = scheduler_on(dsn)
    look = Look(Metrics(scheduler))
    scheduler.register(call(JobConfig(name="job"), gate))
    job = scheduler.enqueue("job")
    scheduler.start()
    gate.wait_for(1)
    db.execute("update pgscheduler_jobs set token = token # 1 where id = %s", [job.id])
    eventually(lambda: look("pgscheduler_claims_lost_total") == 1)
    eventually(lambda: look("pgscheduler_claims_held") == 0)
    assert look.total("job_executions_total") == look.total("job_failures_total") == 0
    eventually(lambda: (look("pgscheduler_heartbeat_lateness_seconds_count") or 0) >= 3)
    assert (look("pgscheduler_heartbeat_age_seconds") or 0) < 10
    assert look("pgscheduler_fenced") == 0
    names = set(scheduler._node.loops)
    assert {"heartbeat", "dispatcher", "listener"} <= names
    assert {name: look("pgscheduler_loop_up", loop=name) for name in names} == dict.fromkeys(names, 1)
    assert {name: look("pgscheduler_loop_failures", loop=name) for name in names} == dict.fromkeys(names, 0)
    scheduler.shutdown()
    assert look("pgscheduler_loop_up", loop="dispatcher") == 0


def test_pool(dsn: str, scheduler_on: Callable[..., Scheduler]) -> None:
    """The pool's own figures, also while a connection is out; none while it is closed."""
    scheduler = scheduler_on(dsn, pool_size=3)
    look = Look(Metrics(scheduler, interval=3600))
    look("pgscheduler_queue_depth")  # the one reading of the table, which takes a connection too
    before = look("pgscheduler_pool_requests_total")
    with scheduler._store.pool.connection():
        assert look("pgscheduler_pool_connections", state="in_use") == 1
    assert look("pgscheduler_pool_requests_total") == (before or 0) + 1
    assert look("pgscheduler_pool_size_limit") == 3
    assert look("pgscheduler_pool_requests_waiting") == look("pgscheduler_pool_errors_total") == 0
    scheduler.shutdown()
    assert look("pgscheduler_pool_size_limit") is None


# --- the table of jobs ---------------------------------------------------------------------------------------


def test_live_jobs(dsn: str, db: psycopg.Connection[Any], scheduler_on: Callable[..., Scheduler]) -> None:
    """Live jobs by name and state, how many are due, and for how long the oldest one has been."""
    scheduler = scheduler_on(dsn)
    look = Look(Metrics(scheduler, interval=0.001))
    assert look("pgscheduler_queue_depth") == look("pgscheduler_oldest_due_seconds") == 0
    for n in range(4):
        scheduler.enqueue("mail", priority=n)
    scheduler.enqueue("mail", delay=timedelta(hours=1))
    paused = scheduler.enqueue("report", delay=timedelta(hours=1))
    scheduler.pause(paused)
    db.execute("update pgscheduler_jobs set run_at = now() - interval '500 seconds' where priority = 3")
    found = {
        state: look("pgscheduler_jobs", job_name="mail", state=state)
        for state in ("pending", "running", "paused")
    }
    assert found == {"pending": 5, "running": 0, "paused": 0}
    assert look("pgscheduler_jobs", job_name="report", state="paused") == 1
    assert look("pgscheduler_queue_depth") == 4
    assert 500 <= (look("pgscheduler_oldest_due_seconds") or 0) < 600
    assert look("pgscheduler_jobs_estimated") == 0
    assert look("pgscheduler_database_up") == 1


def test_the_table_is_read_once_per_interval(dsn: str, scheduler_on: Callable[..., Scheduler]) -> None:
    """Many scrapes cost one reading; nothing is read, and no thread runs, before the first."""
    scheduler = scheduler_on(dsn)
    metrics = Metrics(scheduler, interval=3600)
    look = Look(metrics)
    own = f"{scheduler._name}-metrics"
    assert own not in {thread.name for thread in threading.enumerate()}
    asked = scheduler._store.pool.get_stats().get("requests_num", 0)
    assert look("pgscheduler_queue_depth") == 0
    assert scheduler._store.pool.get_stats()["requests_num"] == asked + 1
    scheduler.enqueue("mail")
    asked = scheduler._store.pool.get_stats()["requests_num"]
    assert [look("pgscheduler_queue_depth") for _ in range(3)] == [0, 0, 0]
    assert scheduler._store.pool.get_stats()["requests_num"] == asked
    scheduler.shutdown()
    assert own not in {thread.name for thread in threading.enumerate()}


def test_a_table_that_cannot_be_read(
    dsn: str,
    db: psycopg.Connection[Any],
    scheduler_on: Callable[..., Scheduler],
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Figures that are not true any more vanish, the others stay; a table that is locked keeps no scrape waiting for long."""
    monkeypatch.setattr(figures, "STALE", 3600)
    scheduler = scheduler_on(dsn)
    look = Look(Metrics(scheduler, interval=0.001))
    scheduler.enqueue("mail")
    assert look("pgscheduler_queue_depth") == 1
    with db.transaction():
        db.execute("lock table pgscheduler_jobs in access exclusive mode")
        eventually(lambda: look("pgscheduler_database_up") == 0)
        assert look("pgscheduler_queue_depth") is None
        assert look("jobs_running") == 0
    eventually(lambda: look("pgscheduler_queue_depth") == 1)
    assert look("pgscheduler_database_up") == 1
    assert "metrics could not read the table of jobs" in scheduler.config.logger.events()


def test_a_big_table_is_estimated(
    dsn: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit a sample of pages stands for the table; what runs is counted exactly; so is what is due, to a bound."""
    monkeypatch.setattr(figures, "SAMPLE_PAGES", 200)
    monkeypatch.setattr(figures, "MOST_DUE", 500)
    db.execute(
        "insert into pgscheduler_jobs (name, priority, run_at, scheduled_at, created_at, parameters)"
        " select (array['a', 'b'])[1 + n %% 2], 5 + n %% 3, now() + (n - 10000) * interval '1 second', now(), now(), %s"
        " from generate_series(1, 40000) n",
        [Jsonb({"text": "x" * 100})],
    )
    db.execute(
        "update pgscheduler_jobs set state = 'running', token = id, claimed_at = now() where id in (select id from"
        " pgscheduler_jobs where run_at > now() limit 7)"
    )
    store = Store(dsn, Names("public", "pgscheduler_"))
    store.open()
    try:
        exact = figures.read(store, most=40_000)
        assert not exact.estimated
        assert exact.jobs["a", "pending"] + exact.jobs["b", "pending"] == 40_000 - 7
        assert exact.due == pytest.approx(
            10_000, abs=5
        )  # beyond MOST_DUE it is what the first statement found
        rough = figures.read(store, most=100)
        assert rough.estimated
        assert sum(jobs for (_, state), jobs in rough.jobs.items() if state == "running") == 7
        assert rough.jobs["a", "pending"] == pytest.approx(20_000, rel=0.4)
        assert rough.due >= 500
        assert rough.oldest_due == pytest.approx(exact.oldest_due, abs=60)
        # Less due than the bound: exact, whatever the sample says.
        db.execute("update pgscheduler_jobs set run_at = now() + interval '1 day' where id % 97 <> 0")
        (due,) = db.execute(
            "select count(*) from pgscheduler_jobs where state = 'pending' and run_at <= now()"
        ).fetchone() or (0,)
        assert 50 < due < 150
        assert figures.read(store, most=100).due == pytest.approx(due, abs=2)
    finally:
        store.close()


def test_readings_walk_indexes(dsn: str, db: psycopg.Connection[Any]) -> None:
    """No statement of a reading reads the table whole, also when the statistics are those of an empty one."""
    db.execute(
        "insert into pgscheduler_jobs (name, priority, run_at, scheduled_at, created_at)"
        " select 'a', 5, now(), now(), now() from generate_series(1, 30000)"
    )
    store = Store(dsn, Names("public", "pgscheduler_"))
    where = {"most": 100, "levels": 10, "pages": 20, "jobs": store.names.table("jobs")}
    with psycopg.connect(dsn) as connection:
        connection.execute(store.sql["metrics_bound"], {"milliseconds": "5000"})
        assert connection.execute("show statement_timeout").fetchone() == ("5s",)
        for name in ("metrics_jobs", "metrics_sample", "metrics_due"):
            rows = connection.execute(f"explain (analyze, timing off) {store.sql[name]}", where).fetchall()
            plan = "\n".join(row[0] for row in rows)
            assert "Seq Scan" not in plan, plan
            if name != "metrics_sample":
                assert "30000" not in plan, plan


# --- the server --------------------------------------------------------------------------------------------


def test_only_metrics_is_served(dsn: str, scheduler_on: Callable[..., Scheduler]) -> None:
    """One path, one method; OpenMetrics for those who ask for it, and both formats can be read by their parsers."""
    scheduler = scheduler_on(dsn)
    with serve_metrics(scheduler, port=0) as server:
        assert server.host == "127.0.0.1"
        root = server.url.removesuffix("/metrics")
        assert get(server.url)[0] == get(server.url + "/")[0] == 200
        assert [get(root + path)[0] for path in ("/", "/metricsx", "/metrics/x", "/favicon.ico")] == [404] * 4
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("POST", "/metrics", body="x")
        with connection.getresponse() as answer:
            assert answer.status == 405
        connection.close()
        status, kind, body = get(server.url, Accept="application/openmetrics-text; version=1.0.0")
        assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
        open_names = {family.name for family in parse_openmetrics(body.decode())}
        plain_names = {family.name for family in parse(get(server.url)[2].decode())}
        assert open_names == plain_names
        assert get(server.url)[2].startswith(b"# HELP job_executions_total ")


def test_a_silent_client_keeps_nobody_waiting(dsn: str, scheduler_on: Callable[..., Scheduler]) -> None:
    """Connections on which nothing is said do not stop a scrape, nor the end."""
    scheduler = scheduler_on(dsn)
    server = serve_metrics(scheduler, port=0)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    try:
        assert get(server.url)[0] == 200
        server.close()
    finally:
        for connection in silent:
            connection.close()


def test_a_silent_client_is_dropped(
    dsn: str, scheduler_on: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Whoever connects and says nothing is let go after a while, without a word about it."""
    handler = "pgscheduler.metrics._server._Handler.timeout"
    assert pkgutil.resolve_name(handler.replace("_server._", "_server:_")) == 5
    with serve_metrics(scheduler_on(dsn), port=0) as server:
        with monkeypatch.context() as patch:
            patch.setattr(handler, 0.05)
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent:
                assert silent.recv(1) == b""
        assert get(server.url)[0] == 200
    assert capfd.readouterr().err == ""


def test_an_address_that_cannot_be_had(dsn: str, scheduler_on: Callable[..., Scheduler]) -> None:
    """A taken port is an error at once, with the address; so is what is no address at all."""
    scheduler = scheduler_on(dsn)
    with reserved_port() as port:
        with serve_metrics(scheduler, port=port) as server:
            with pytest.raises(
                ListenError, match=rf"cannot listen on '127\.0\.0\.1' port {server.port}"
            ) as caught:
                serve_metrics(scheduler, port=server.port)
            assert (caught.value.host, caught.value.port) == ("127.0.0.1", server.port)
            assert isinstance(caught.value, OSError)
        with serve_metrics(scheduler, port=port) as again:  # what was closed can be had again
            assert get(again.url)[0] == 200
    with pytest.raises(ListenError, match=r"203\.0\.113\.1"):
        serve_metrics(scheduler, port=0, host="203.0.113.1")
    for bad in (-1, 65536):
        with pytest.raises(InvalidValueError, match="port"):
            serve_metrics(scheduler, port=bad)
    with pytest.raises(InvalidTypeError, match="port"):
        serve_metrics(scheduler, port="3000")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="host cannot be empty"):
        serve_metrics(scheduler, port=0, host="")


def test_it_answers_until_the_last_run_has_ended(
    dsn: str, scheduler_on: Callable[..., Scheduler], eventually: Any, call: type[Call]
) -> None:
    """While a shutdown waits for a run one can still look; then the port is free and no thread is left."""
    scheduler = scheduler_on(dsn)
    inside, leave = threading.Event(), threading.Event()

    def stays(ctx: Any) -> None:
        inside.set()
        leave.wait(30)

    scheduler.register(call(JobConfig(name="stays"), stays))
    server = serve_metrics(scheduler, port=0)
    scheduler.start()
    scheduler.enqueue("stays")
    assert inside.wait(15)
    stopping = threading.Thread(target=scheduler.shutdown)
    stopping.start()
    try:
        eventually(lambda: scheduler.node_stats()["state"] == "stopping")
        assert samples(get(server.url)[2])["jobs_running", frozenset()] == 1
    finally:
        leave.set()
        stopping.join(20)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(server.url, timeout=20)
    server.close()  # once more does no harm
    left = {t.name for t in threading.enumerate() if t.name.startswith(scheduler._name)}
    assert left & {f"{scheduler._name}-http", f"{scheduler._name}-metrics"} == set()
    with pytest.raises(SchedulerStateError, match="shut down"):
        serve_metrics(scheduler, port=0)
    assert b'job_executions_total{job_name="stays"} 1.0' in Metrics.of(scheduler).text()


def test_it_ends_with_a_scheduler_that_was_never_started(dsn: str) -> None:
    """A client may show figures too, and takes its server along."""
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet())) as scheduler:
        server = serve_metrics(scheduler, port=0)
        assert get(server.url)[0] == 200
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(server.url, timeout=20)
