"""P10: shutdown is bounded, whatever jobs do and wherever the database is, and gives back what it cannot finish."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import structlog

from pgscheduler import Job, JobConfig, JobState, Scheduler, SchedulerConfig, _dispatcher, _node
from tests.promises.node_scripts import ask_to_end
from tests.support.processes import hears

SLACK = 2.5  # seconds that a busy machine may add; what must not be waited for takes five and more
SILENT = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))


def config(dsn: str, **more: Any) -> SchedulerConfig:
    given = {
        "logger": SILENT,
        "run_immediately": True,
        "heartbeat_interval": 0.2,
        "no_heartbeat_timeout": 60,
        "shutdown_timeout": 5,
    }
    return SchedulerConfig(dsn=dsn, **{**given, **more})


class Lines:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, dict[str, Any]]] = []

    def _keep(self, _: object, level: str, event: dict[str, Any]) -> Any:
        self.found.append((level, event.pop("event"), event))
        raise structlog.DropEvent

    @property
    def logger(self) -> Any:
        return structlog.wrap_logger(
            None, processors=[self._keep], wrapper_class=structlog.stdlib.BoundLogger
        )


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets go of every thread that a test still holds."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def bounded() -> Callable[[Scheduler, float], bool]:
    """Shut down with a timeout; fails when that took more than a second longer."""

    def shutdown(node: Scheduler, timeout: float) -> bool:
        began = time.monotonic()
        clean = node.shutdown(timeout)
        took = time.monotonic() - began
        assert took <= timeout + 1.0 + SLACK, f"shutdown({timeout}) took {took:.2f} s"
        return clean

    return shutdown


class Held(Job):
    """Runs until the test lets go of it, whatever it is asked."""

    def __init__(self, config: JobConfig, release: threading.Event) -> None:
        super().__init__(config)
        self.started = threading.Event()
        self.release = release

    def run(self, ctx: Any) -> str:
        self.started.set()
        self.release.wait(60)
        return str(ctx.cancel_reason)


class Polite(Job):
    """Goes when it is asked; isolated as its config says."""

    def run(self, ctx: Any) -> None:
        ctx.progress(1)
        ctx.wait(60)
        ctx.check()


class PoliteCoroutine(Job):
    async def run(self, ctx: Any) -> None:
        ctx.progress(1)
        await ctx.sleep(60)
        ctx.check()


class StubbornCoroutine(Job):
    """Does not look at `ctx`; only its cancellation ends it."""

    async def run(self, ctx: Any) -> None:
        import asyncio

        ctx.progress(1)
        await asyncio.sleep(60)


class Stubborn(Job):
    """In a process: only a kill ends it."""

    def run(self, ctx: Any) -> None:
        ctx.progress(1)
        time.sleep(60)


class Quick(Job):
    def run(self, ctx: Any) -> str:
        return "done"


def started(node: Scheduler, job: Any, eventually: Any) -> None:
    eventually(lambda: node.get_job(job).progress, timeout=30, describe="the job to have begun")


def once(true: Callable[[], Any], act: Callable[[], Any], eventually: Any) -> threading.Thread:
    """Do something as soon as something is so, while the test goes on."""

    def wait() -> None:
        eventually(true, timeout=30)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_what_ends_in_time_is_recorded(
    dsn: str, release: threading.Event, bounded: Any, eventually: Any
) -> None:
    """A job that ends while the shutdown waits is recorded as what it was; the answer is True."""
    node = Scheduler(config(dsn))
    node.init()
    job = Held(JobConfig(name="held"), release)
    record = node.schedule(job)
    node.start()
    assert job.started.wait(10)
    (claim,) = node._node.ledger.all()
    told = once(lambda: claim.context.cancel_reason, release.set, eventually)

    assert bounded(node, 10) is True
    told.join()

    with Scheduler(config(dsn)) as client:
        ended = client.get_job(record.id)
        assert (ended.state, ended.result) == (JobState.COMPLETED, "shutdown")


@pytest.mark.parametrize(
    ("kind", "isolation", "timeout"),
    [
        (Polite, "thread", 10),
        (PoliteCoroutine, "async", 10),
        (Polite, "process", 10),
        (StubbornCoroutine, "async", 0.5),
        (Stubborn, "process", 0.5),
    ],
)
def test_what_is_stopped_is_given_back_with_no_attempt_burned(
    dsn: str,
    bounded: Any,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Job],
    isolation: Any,
    timeout: float,
) -> None:
    """A run that goes when asked, a coroutine that is cancelled and a process that is killed at the deadline are
    interrupted: pending again at once, at the same attempt; the answer is True."""
    # Enough for all of it on an idle machine; a busy one may take longer, within what `bounded` grants it.
    monkeypatch.setattr(_node, "RELEASE_TIME", _node.RELEASE_TIME + SLACK)
    monkeypatch.setattr(_node, "MARGIN", _node.MARGIN + SLACK)
    node = Scheduler(config(dsn))
    node.init()
    record = node.schedule(kind(JobConfig(name="stopped", isolation=isolation)))
    node.start()
    started(node, record, eventually)

    assert bounded(node, timeout) is True

    with Scheduler(config(dsn)) as client:
        found = client.get_job(record)
        assert (found.state, found.attempt, found.run_at <= client._store.now()) == (
            JobState.PENDING,
            1,
            True,
        )
        assert [(str(run.outcome), run.reason) for run in client.runs(record.id)] == [
            ("interrupted", "shutdown")
        ]
        assert client.nodes()[0].stopped_at is not None


def test_a_thread_that_ignores_its_cancel_is_named_and_still_written(
    dsn: str, release: threading.Event, bounded: Any, eventually: Any
) -> None:
    """shutdown() returns False in time and names the job; its claim keeps beating, nobody takes it, and its late
    outcome is written."""
    lines = Lines()
    node = Scheduler(config(dsn, logger=lines.logger, no_heartbeat_timeout=4))
    node.init()
    job = Held(JobConfig(name="deaf"), release)
    record = node.schedule(job)
    node.start()
    assert job.started.wait(10)

    assert bounded(node, 0.3) is False

    errors = [fields for level, _, fields in lines.found if level == "error"]
    assert [fields["jobs"] for fields in errors] == [["deaf"]]
    with Scheduler(config(dsn)) as other:
        other.register(Quick)
        other.start()
        # Well over the timeout: only heartbeats keep the claim from being reset.
        beat = other.get_job(record).heartbeat_at
        later = beat + timedelta(seconds=5)
        eventually(lambda: (found := other.get_job(record).heartbeat_at) and found > later, timeout=30)
        assert other.get_job(record).state is JobState.RUNNING
        assert node.shutdown() is False  # a second call changes nothing, and still tells

        release.set()

        assert other.wait(record, timeout=20).state is JobState.COMPLETED
        assert [str(run.outcome) for run in other.runs(record.id)] == ["completed"]
        eventually(lambda: other.nodes()[-1].stopped_at, describe="the node to have said goodbye")
    assert node.shutdown() is True


def test_what_had_not_started_is_released(
    dsn: str,
    db: Any,
    release: threading.Event,
    bounded: Any,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jobs that were claimed ahead and wait for a slot go back at once, without attempt or record, while the
    running one goes on."""
    monkeypatch.setattr(_dispatcher, "HOARD_SECONDS", 60.0)  # they stay claimed until the shutdown
    node = Scheduler(config(dsn, max_concurrent_jobs=1))
    node.init()
    node._node.dispatcher._rate = 1000.0
    node._node.dispatcher._measure = lambda *_: None  # type: ignore[method-assign]  # always claims 50 ahead
    job = Held(JobConfig(name="held", priority=1), release)
    first = node.schedule(job)
    node.register(Quick)
    waiting = [node.enqueue("quick") for _ in range(20)]
    node.start()
    assert job.started.wait(10)
    # The premise: some of them are claimed, and held in memory.
    eventually(
        lambda: db.execute("select count(*) from pgscheduler_jobs where state = 'running'").fetchone()[0] > 5
    )

    asked = threading.Thread(target=node.shutdown, args=[20])
    asked.start()
    eventually(
        lambda: (
            db.execute("select count(*) from pgscheduler_jobs where state = 'pending'").fetchone() == (20,)
        )
    )
    assert asked.is_alive()
    release.set()
    asked.join(20)

    with Scheduler(config(dsn)) as client:
        assert client.get_job(first).state is JobState.COMPLETED
        assert {client.get_job(record).attempt for record in waiting} == {1}
        assert client.runs(name="quick") == []


def test_a_claim_that_is_under_way_when_the_shutdown_begins_is_released(
    dsn: str, db: Any, bounded: Any, eventually: Any
) -> None:
    """A claim whose answer comes after the shutdown began starts nothing: its jobs go back unburned."""
    node = Scheduler(config(dsn))
    node.init()
    asked = threading.Event()
    claim = node._store.claim

    def slow(*args: Any) -> Any:
        claims = claim(*args)
        if claims:
            asked.set()
            eventually(lambda: not node._node.dispatcher.claiming, timeout=30)  # the shutdown has begun
        return claims

    node._store.claim = slow  # type: ignore[method-assign]
    job = node.schedule(Quick())
    node.start()
    assert asked.wait(10)

    assert bounded(node, 10) is True

    assert db.execute("select state, stalls from pgscheduler_jobs where id = %s", [job.id]).fetchall() == [
        ("pending", 0)
    ]


def test_a_database_that_is_gone_does_not_hold_the_shutdown(
    dsn: str, proxy_to: Any, release: threading.Event, bounded: Any, eventually: Any
) -> None:
    """With PostgreSQL refusing connections shutdown() returns in time, and says that not all is recorded."""
    proxy = proxy_to(dsn)
    node = Scheduler(config(proxy.dsn))
    node.init()
    job = Held(JobConfig(name="held"), release)
    node.schedule(job)
    node.start()
    assert job.started.wait(10)
    proxy.refuse()
    release.set()

    assert bounded(node, 0.5) is False

    proxy.heal()
    eventually(lambda: not node.node_stats()["held"], timeout=30)


@pytest.mark.parametrize("trouble", ["refuse", "stall"])
@pytest.mark.parametrize("begun", [True, False], ids=["node", "client"])
def test_a_database_that_is_gone_does_not_hold_an_idle_shutdown(
    dsn: str, proxy_to: Any, bounded: Any, eventually: Any, trouble: str, begun: bool
) -> None:
    """With nothing to record shutdown() returns in time too, whether the server refuses or says nothing more."""
    proxy = proxy_to(dsn)
    node = Scheduler(config(proxy.dsn))
    node.init()
    node.schedule(Quick())
    if begun:
        node.start()
        eventually(lambda: not node.jobs() and not node.node_stats()["held"])
    getattr(proxy, trouble)()
    node._client.notifier.poke("due")  # a message that cannot be sent

    bounded(node, 0.5)

    proxy.heal()


def test_a_server_that_says_nothing_does_not_hold_the_shutdown(
    dsn: str, proxy_to: Any, release: threading.Event, bounded: Any, eventually: Any
) -> None:
    """With a server that accepts and never answers shutdown() returns in time; the outcome is written after."""
    proxy = proxy_to(dsn)
    node = Scheduler(config(proxy.dsn, no_heartbeat_timeout=30))
    node.init()
    job = Held(JobConfig(name="held"), release)
    record = node.schedule(job)
    node.start()
    assert job.started.wait(10)
    proxy.stall()
    release.set()

    assert bounded(node, 0.5) is False

    proxy.heal()
    with Scheduler(config(dsn)) as client:
        assert client.wait(record, timeout=30).state is JobState.COMPLETED
    eventually(lambda: not node.node_stats()["held"], timeout=30)


def test_a_subscriber_that_hangs_does_not_hold_the_shutdown(
    dsn: str, release: threading.Event, bounded: Any, eventually: Any
) -> None:
    """A callback that never returns is left behind."""
    node = Scheduler(config(dsn))
    node.init()
    called = threading.Event()
    node.subscribe(lambda change: (called.set(), release.wait(60)))
    node.schedule(Quick())
    node.start()
    assert called.wait(10)

    bounded(node, 0)


def test_a_second_call_is_a_no_op(dsn: str, release: threading.Event, bounded: Any) -> None:
    """Also while the first one still waits, and before start(), a second shutdown() returns at once."""
    node = Scheduler(config(dsn))
    node.init()
    job = Held(JobConfig(name="held"), release)
    node.schedule(job)
    node.start()
    assert job.started.wait(10)
    first = threading.Thread(target=node.shutdown, args=[20])
    first.start()
    while node.node_stats()["state"] == "started":
        time.sleep(0.01)

    assert bounded(node, 0) is False
    assert first.is_alive()
    release.set()
    first.join(20)
    assert bounded(node, 0) is True

    idle = Scheduler(config(dsn))
    assert idle.shutdown() is True
    assert idle.shutdown() is True


NODE = """
import sys, time
import structlog
from pgscheduler import Job, Scheduler, SchedulerConfig, _node
from tests.support.processes import emit

_node.RELEASE_TIME, _node.MARGIN = 2.0, 10.0  # seconds to give jobs back in, which a busy machine may need

class Stubborn(Job):
    def run(self, ctx):
        emit("started", attempt=ctx.attempt, isolation=ctx.parameters)
        time.sleep(60)

class Polite(Job):
    def run(self, ctx):
        emit("started", attempt=ctx.attempt)
        ctx.wait(60)
        emit("asked", why=ctx.cancel_reason)
        return "done"

if __name__ == "__main__":
    silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
    config = SchedulerConfig(dsn=sys.argv[1], logger=silent, run_immediately=True, heartbeat_interval=1,
                             no_heartbeat_timeout=60, shutdown_timeout=float(sys.argv[2]))
    with Scheduler(config) as scheduler:
        scheduler.register(Stubborn)
        scheduler.register(Polite)
        scheduler.start()
        emit("ready")
        clean = scheduler.wait_for_signal()
        emit("shut down", clean=clean)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_graceful_shutdown(dsn: str, nodes: Any, eventually: Any, number: int) -> None:
    """SIGTERM or SIGINT: the running job is asked, ends, is recorded; exit code 0."""
    with Scheduler(config(dsn)) as client:
        job = client.enqueue("polite")
        node = nodes(NODE, dsn, 20)
        node.wait_for("started", timeout=20)
        eventually(lambda: hears(node.pid, signal.SIGTERM), timeout=20)  # of the two, it hears this one last

        node.signal(number)

        assert node.wait_for("asked")["why"] == "shutdown"
        assert node.wait_for("shut down")["clean"] is True
        assert node.wait(20) == 0
        assert (client.get_job(job).state, client.get_job(job).result) == (JobState.COMPLETED, "done")


def test_a_second_signal_is_now(dsn: str, nodes: Any, eventually: Any) -> None:
    """While a shutdown waits for a stubborn job, a second signal ends the process at once, with exit code 130."""
    with Scheduler(config(dsn)) as client:
        client.enqueue("stubborn")
        client.enqueue("polite")
        node = nodes(NODE, dsn, 600)
        for _ in range(2):
            node.wait_for("started", timeout=20)
        ask_to_end(node)
        node.wait_for("asked")  # the shutdown has begun

        node.terminate()

        assert node.wait(10) == 130


def test_a_rolling_restart_hands_jobs_over_at_once(dsn: str, nodes: Any, eventually: Any) -> None:
    """SIGTERM to a node whose jobs outlast the shutdown timeout: thread and process jobs are both given back
    within a second of the deadline, with no attempt burned, and the next node runs them at once, although the
    heartbeat timeout is a minute away."""
    with Scheduler(config(dsn)) as client:
        thread = client.enqueue("stubborn", "thread")
        process = client.enqueue("stubborn", "process", isolation="process")
        node = nodes(NODE, dsn, 0.5)
        for _ in range(2):
            node.wait_for("started", timeout=30)
        heir = nodes(NODE, dsn, 0.5)
        heir.wait_for("ready", timeout=30)

        asked = time.monotonic()
        ask_to_end(node)

        assert node.wait_for("shut down", timeout=20)["clean"] is False
        assert node.wait(20) == 0
        again = [heir.wait_for("started", timeout=30) for _ in range(2)]
        assert time.monotonic() - asked < 30  # and not the minute of the heartbeat timeout
        assert [event["attempt"] for event in again] == [1, 1]
        for job in (thread, process):
            (run,) = client.runs(job.id)
            assert (str(run.outcome), run.reason, run.attempt) == ("interrupted", "shutdown", 1)


def test_a_process_that_forgot_its_shutdown_gives_its_jobs_back(dsn: str, nodes: Any) -> None:
    """A program that just ends, with its scheduler running, gives its running jobs back at exit."""
    script = NODE.replace(
        "with Scheduler(config) as scheduler:", "if scheduler := Scheduler(config):"
    ).replace("clean = scheduler.wait_for_signal()", "sys.stdin.readline(); clean = None")
    script = script.replace("scheduler.register(Stubborn)", "scheduler.init(); scheduler.register(Stubborn)")
    with Scheduler(config(dsn)) as client:
        job = client.enqueue("stubborn")
        node = nodes(script, dsn, 1)
        node.wait_for("started", timeout=20)

        node.hang_up()

        assert node.wait(20) == 0
        record = client.get_job(job)
        assert (record.state, record.attempt) == (JobState.PENDING, 1)
