"""P11: an outage of the database ends no loop and loses no outcome, and full speed is back soon after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import structlog

from pgscheduler import Backoff, Job, JobConfig, JobState, Scheduler, SchedulerConfig, Snooze
from tests.support.postgres import apply_schema, execute, terminate_backends

SILENT = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
LOOPS = {"heartbeat", "fence", "dispatcher", "recorder", "maintenance", "listener"}
LOAD = 3000  # jobs
SOON = (
    10.0  # seconds until work flows again; the longest pause of a loop is two, a slow machine takes the rest
)


def config(dsn: str, **more: Any) -> SchedulerConfig:
    given = {
        "logger": SILENT,
        "run_immediately": True,
        "heartbeat_interval": 0.5,
        "no_heartbeat_timeout": 120,  # P5 has tests of its own
        "shutdown_timeout": 10,
    }
    return SchedulerConfig(dsn=dsn, **{**given, **more})


class Counted(Job):
    """Takes a moment, so that a load lasts long enough to be interrupted."""

    def __init__(self, config: JobConfig) -> None:
        super().__init__(config)
        self.begun = threading.Semaphore(0)
        self.pause = threading.Event()

    def run(self, ctx: Any) -> None:
        self.begun.release()
        self.pause.wait(0.002)


class Held(Job):
    def __init__(self, config: JobConfig) -> None:
        super().__init__(config)
        self.started = threading.Event()
        self.release = threading.Event()
        self.runs: list[int] = []

    def run(self, ctx: Any) -> Any:
        self.runs.append(ctx.attempt)
        self.started.set()
        self.release.wait(120)
        if ctx.parameters == "fail" and ctx.attempt == 1:
            raise ValueError("once")
        if ctx.parameters == "snooze" and len(self.runs) == 1:
            return Snooze(0)
        return "kept" if ctx.parameters == "result" else None


class Load:
    """A node under load, with one long run in progress; what an outage must not harm.

    A few other runs are in progress too, one of which `end_one` ends: there is then an outcome to be written, however
    fast the load was done.
    """

    def __init__(self, node_dsn: str, dsn: str) -> None:
        self.dsn = dsn
        self.node = Scheduler(config(node_dsn))
        self.node.init()
        self.held = Held(JobConfig(name="held", parameters="result"))
        self.others = [Held(JobConfig(name=f"other{n}")) for n in range(3)]
        self._held = iter(self.others)
        self.counted = Counted(JobConfig(name="counted"))
        self.record = self.node.schedule(self.held)
        for other in self.others:
            self.node.schedule(other)
        self.node.register(self.counted)
        self.node.start()
        assert all(job.started.wait(20) for job in (self.held, *self.others))
        # Committed synchronously, so whatever was committed before it (the claim) is safe from a crash too.
        self.node.schedule_many(Counted(JobConfig(name="counted")) for _ in range(LOAD))
        for _ in range(LOAD // 10):
            assert self.counted.begun.acquire(timeout=30)

    def end_one(self) -> None:
        next(self._held).release.set()

    def loops(self) -> dict[str, Any]:
        return self.node.node_stats()["loops"]

    def assert_survived(self, eventually: Any) -> None:
        """Every loop lives, the long run was not disturbed, and everything is recorded exactly once."""
        assert {name for name, loop in self.loops().items() if loop["alive"]} == LOOPS
        for job in (self.held, *self.others):
            job.release.set()
        eventually(
            self._is_done, timeout=90, describe=lambda: f"all to be recorded: {self.node.node_stats()}"
        )

        rows = execute(
            self.dsn,
            "select count(*), count(distinct job_id) from pgscheduler_runs"
            " where name = 'counted' and outcome = 'completed'",
        )
        assert rows == [(LOAD, LOAD)]
        assert execute(self.dsn, "select count(*) from pgscheduler_runs where outcome <> 'completed'") == [
            (0,)
        ]
        assert [job.runs for job in (self.held, *self.others)] == [[1]] * 4
        assert self.node.get_job(self.record).result == "kept"
        eventually(lambda: not self.node.node_stats()["held"])
        # And it goes on as before: new jobs, new notifications.
        more = [self.node.enqueue("counted") for _ in range(50)]
        assert {self.node.wait(job, timeout=30).state for job in more} == {JobState.COMPLETED}
        eventually(
            lambda: all(loop["failures"] == 0 for loop in self.loops().values()),
            timeout=30,
            describe=lambda: f"no loop to be failing: {self.loops()}",
        )

    def _is_done(self) -> bool:
        try:
            return execute(self.dsn, "select count(*) from pgscheduler_jobs") == [(0,)]
        except psycopg.OperationalError:
            return False

    def close(self) -> None:
        for job in (self.held, *self.others):
            job.release.set()
        self.counted.pause.set()
        self.node.shutdown()


@pytest.fixture
def load() -> Iterator[Callable[..., Load]]:
    made: list[Load] = []

    def make(node_dsn: str, dsn: str) -> Load:
        made.append(Load(node_dsn, dsn))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("seconds", [6, pytest.param(45, marks=pytest.mark.slow)])
def test_a_crash_of_the_server_under_load_is_survived(
    own_server: Any, load: Callable[..., Load], eventually: Any, seconds: float
) -> None:
    """PostgreSQL dies without a checkpoint under load and is back after a while: nothing is lost or doubled in
    the record, the run in progress is not disturbed, and the node is at work again."""
    server = own_server()
    apply_schema(server.dsn)
    busy = load(server.dsn, server.dsn)

    server.outage(seconds)

    busy.assert_survived(eventually)


def test_a_short_restart_over_and_over_is_survived(
    own_server: Any, load: Callable[..., Load], eventually: Any
) -> None:
    """Three crashes in a row, each as soon as work goes on after the last one."""
    server = own_server()
    apply_schema(server.dsn)
    busy = load(server.dsn, server.dsn)

    for _ in range(3):
        server.outage(0.2)
        recorded = busy.node.node_stats()["recorded"]
        busy.end_one()
        eventually(
            lambda recorded=recorded: busy.node.node_stats()["recorded"] > recorded,
            timeout=40,
            describe="work to go on",
        )

    busy.assert_survived(eventually)


def test_the_longest_outage_is_over_as_soon_as_a_short_one(
    dsn: str, proxy_to: Any, load: Callable[..., Load], eventually: Any
) -> None:
    """However often they have failed meanwhile, within seconds of the database's return all loops work again, outcomes
    are written and verbs are answered: no pause between two tries grows with the outage."""
    proxy = proxy_to(dsn)
    busy = load(proxy.dsn, dsn)
    proxy.refuse()
    busy.end_one()

    def failed_often() -> bool:
        # The dispatcher claims nothing while outcomes cannot be written, so it has nothing to fail at.
        for name in ("recorder", "heartbeat", "maintenance", "listener"):
            busy.node._node.loops[name].wake()  # its pause is over: an outage of hours in a moment
        return all(busy.loops()[name]["failures"] > 15 for name in ("recorder", "heartbeat", "listener"))

    eventually(failed_often, timeout=60, describe=lambda: f"many failures: {busy.loops()}")
    recorded = busy.node.node_stats()["recorded"]
    proxy.heal()
    began = time.monotonic()

    eventually(lambda: busy.node.node_stats()["recorded"] > recorded, timeout=SOON)
    eventually(
        lambda: all(loop["failures"] == 0 for loop in busy.loops().values()),
        timeout=began + SOON - time.monotonic(),
        describe=lambda: f"no loop to be failing: {busy.loops()}",
    )
    assert busy.node.jobs(limit=1)
    assert time.monotonic() - began < SOON

    busy.assert_survived(eventually)


def test_an_administrator_who_terminates_all_backends_is_survived(
    dsn: str, load: Callable[..., Load], eventually: Any
) -> None:
    """All connections cut, several times, under load."""
    busy = load(dsn, dsn)

    for _ in range(5):
        eventually(lambda: terminate_backends(dsn) > 0)
        for _ in range(20):
            busy.counted.begun.acquire(timeout=30)

    busy.assert_survived(eventually)


@pytest.mark.parametrize("trouble", ["refuse", "stall"])
def test_a_network_that_is_gone_for_a_while_is_survived(
    dsn: str, proxy_to: Any, load: Callable[..., Load], eventually: Any, trouble: str
) -> None:
    """Connections refused, or all bytes held back and then broken: the same."""
    proxy = proxy_to(dsn)
    busy = load(proxy.dsn, dsn)

    getattr(proxy, trouble)()
    busy.end_one()
    if trouble == "refuse":
        eventually(
            lambda: busy.loops()["recorder"]["failures"] >= 3 and busy.loops()["heartbeat"]["failures"] >= 3,
            timeout=40,
        )
    else:
        threading.Event().wait(2)
        proxy.reset()
    proxy.heal()

    busy.assert_survived(eventually)


HOW = {
    "plain": (["completed"], [1]),
    "result": (["completed"], [1]),
    "fail": (["failed", "completed"], [1, 2]),
    "snooze": (["interrupted", "completed"], [1, 1]),
}


@pytest.mark.parametrize("how", sorted(HOW))
def test_an_outcome_whose_commit_answer_was_lost_is_neither_lost_nor_doubled(
    dsn: str, db: Any, proxy_to: Any, eventually: Any, how: str
) -> None:
    """The server committed an outcome, the answer never came: it is found in history, not written again, not
    counted as lost, and its run is not repeated."""
    proxy = proxy_to(dsn)
    node = Scheduler(config(proxy.dsn, listen=False))  # no hint comes in between
    node.init()
    job = Held(JobConfig.one_time("held", how, retries=1, backoff=Backoff(initial=Backoff().initial * 0)))
    record = node.schedule(job)
    node.start()
    try:
        assert job.started.wait(10)
        # The first round of maintenance makes partitions: cut off in the middle, it would hold a lock on history.
        eventually(lambda: node.node_stats()["loops"]["maintenance"]["last_success_seconds"] is not None)
        # The dispatcher sleeps and the recorder's connection is ready, so that the next thing sent is the outcome.
        eventually(lambda: (node._node.dispatcher._look_at or 0) > time.monotonic() + 5)
        eventually(lambda: node.node_stats()["loops"]["recorder"]["last_success_seconds"] is not None)
        proxy.stall("down")  # requests arrive, answers do not
        job.release.set()
        eventually(
            lambda: db.execute("select count(*) from pgscheduler_runs").fetchone() == (1,),
            describe=lambda: (
                "the server to have committed what nobody hears of; found "
                + str(db.execute("select outcome, attempt from pgscheduler_runs").fetchall())
                + str(
                    db.execute(
                        "select left(query, 90), state, wait_event from pg_stat_activity where datname = current_database()"
                    ).fetchall()
                )
                + str(node.node_stats())
            ),
        )
        proxy.reset()
        proxy.heal()

        outcomes, attempts = HOW[how]
        assert node.wait(record, timeout=30).state is JobState.COMPLETED
        eventually(lambda: not node.node_stats()["held"])
        assert [str(run.outcome) for run in reversed(node.runs(record.id))] == outcomes
        assert job.runs == attempts
        assert node.node_stats()["lost"] == 0
        assert node.node_stats()["unwritten"] == 0
    finally:
        job.release.set()
        node.shutdown()


def test_a_claim_whose_answer_was_lost_is_given_back_unburned(
    dsn: str, db: Any, proxy_to: Any, eventually: Any
) -> None:
    """The server committed a claim, the answer never came: the job is not left running without a runner until
    its heartbeat times out, and the lost claim costs no attempt."""
    proxy = proxy_to(dsn)
    node = Scheduler(config(proxy.dsn, listen=False))  # no hint comes in between
    node.init()
    job = Held(JobConfig(name="held"))
    job.release.set()
    node.register(job)
    node.start()
    try:
        eventually(lambda: (node._node.dispatcher._look_at or 0) > time.monotonic() + 5)
        proxy.stall("down")
        (record,) = execute(dsn, "select pgscheduler_enqueue('held')")
        node._node.dispatcher.look()
        eventually(lambda: db.execute("select state from pgscheduler_jobs").fetchone() == ("running",))
        assert job.runs == []
        proxy.reset()
        proxy.heal()

        assert node.wait(record[0], timeout=30).state is JobState.COMPLETED
        assert job.runs == [1]
        assert [run.attempt for run in node.runs(record[0])] == [1]
    finally:
        node.shutdown()
