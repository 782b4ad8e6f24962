"""Ill-behaved jobs: each ends in the right state with the right attempts, and the node goes on as if nothing was."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import structlog

from pgscheduler import Backoff, Fail, Job, JobConfig, JobState, Outcome, Scheduler, SchedulerConfig

SILENT = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
AT_ONCE = Backoff(initial=timedelta(0), jitter=0.0)
NO_HEARTBEAT = 3.0  # seconds, where it matters


@pytest.fixture
def no_heartbeat() -> float:
    """The node's no_heartbeat_timeout: long, so that a busy machine makes no run look dead."""
    return 60.0


@pytest.fixture
def scheduler(dsn: str, no_heartbeat: float) -> Iterator[Scheduler]:
    # One slot: a job that takes its thread along would leave none for the next.
    config = SchedulerConfig(
        dsn=dsn,
        logger=SILENT,
        max_concurrent_jobs=1,
        run_immediately=True,
        heartbeat_interval=timedelta(seconds=0.2),
        no_heartbeat_timeout=timedelta(seconds=no_heartbeat),
        shutdown_timeout=timedelta(seconds=3),
    )
    with Scheduler(config) as scheduler:
        scheduler.register(Healthy)
        scheduler.start()
        yield scheduler


class Healthy(Job):
    def run(self, ctx: Any) -> str:
        return "well"


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class LastWord(Fail):
    """A user's own kind of Fail."""


def _recurse() -> None:
    _recurse()


def _raise(error: BaseException | type[BaseException]) -> None:
    raise error


# What a job body may raise: every one is an attempt that failed, and nothing more.
RAISES: dict[str, Callable[[], None]] = {
    "system_exit": lambda: _raise(SystemExit(3)),
    "exit_none": lambda: _raise(SystemExit),
    "keyboard_interrupt": lambda: _raise(KeyboardInterrupt),
    "generator_exit": lambda: _raise(GeneratorExit),
    "stop_iteration": lambda: _raise(StopIteration("done")),
    "stop_async_iteration": lambda: _raise(StopAsyncIteration),
    "recursion": _recurse,
    "memory": lambda: _raise(MemoryError),
    "bare_base": lambda: _raise(BaseException("root")),
    "group": lambda: _raise(BaseExceptionGroup("many", [SystemExit(1), ValueError("x")])),
    "unreadable": lambda: _raise(UnreadableError()),
    "huge_text": lambda: _raise(ValueError("x" * 1_000_000)),
    "nul_and_surrogate": lambda: _raise(ValueError("a\x00b\ud800c")),
    "os_error_bytes": lambda: _raise(OSError(2, "no", "f\udcff")),
}


class Raiser(Job):
    def run(self, ctx: Any) -> None:
        RAISES[ctx.parameters]()


class AsyncRaiser(Job):
    async def run(self, ctx: Any) -> None:
        RAISES[ctx.parameters]()


class AsyncWithPlainInit(Job):
    def init(self, ctx: Any) -> None:
        RAISES[ctx.parameters]()

    async def run(self, ctx: Any) -> None:
        raise AssertionError("must not be reached")


def outcomes(scheduler: Scheduler, job: Any) -> list[str]:
    """The outcomes of a job's runs, in the order in which they ended."""
    return [str(run.outcome) for run in reversed(scheduler.runs(job.id))]


def assert_node_is_well(scheduler: Scheduler) -> None:
    well = scheduler.wait(scheduler.schedule(Healthy()), timeout=20)
    assert (well.state, well.result) == (JobState.COMPLETED, "well")
    assert all(loop["alive"] for loop in scheduler.node_stats()["loops"].values())


@pytest.mark.parametrize("body", sorted(RAISES))
@pytest.mark.parametrize(
    ("kind", "isolation"), [(Raiser, "thread"), (AsyncRaiser, "async"), (AsyncWithPlainInit, "async")]
)
def test_whatever_a_job_raises_is_one_failed_attempt(
    scheduler: Scheduler, kind: type[Job], isolation: Any, body: str
) -> None:
    """Any BaseException of a hook is one failed attempt: retried as the policy says, then the job has failed."""
    config = JobConfig.one_time("raiser", body, retries=1, backoff=AT_ONCE, isolation=isolation)

    job = scheduler.schedule(kind(config))
    ended = scheduler.wait(job, timeout=20)

    assert ended.state is JobState.FAILED
    assert outcomes(scheduler, job) == ["failed", "failed"]
    runs = scheduler.runs(job.id)
    assert [run.attempt for run in runs] == [2, 1]
    assert all(run.error and len(run.error) < 9000 and "\x00" not in run.error for run in runs)
    assert_node_is_well(scheduler)


def test_whatever_a_process_job_raises_is_one_failed_attempt(scheduler: Scheduler) -> None:
    """The same in a process of its own: each body one failed attempt, and the process is fit for the next."""
    for body in sorted(RAISES):
        config = JobConfig.one_time("raiser", body, isolation="process")
        job = scheduler.schedule(Raiser(config))

        assert scheduler.wait(job, timeout=30).state is JobState.FAILED, body
        assert outcomes(scheduler, job) == ["failed"], body
    assert_node_is_well(scheduler)


# What a job may hand back that cannot be stored: the work is done, so the job is completed, without a result.
RETURNS: dict[str, Callable[[], Any]] = {
    "object": object,
    "set": lambda: {1, 2},
    "bytes": lambda: b"\x00",
    "nan": lambda: float("nan"),
    "nul": lambda: {"text": "a\x00b"},
    "surrogate": lambda: ["\ud800"],
    "nul_key": lambda: {"\x00": 1},
    "int_keys": lambda: {1: "x"},
    "too_big": lambda: "x" * 2_000_000,
    "huge_integer": lambda: 10**5000,
    "circular": lambda: _circular(),
    "deep": lambda: _deep(100_000),
    "exception": lambda: ValueError("returned, not raised"),
    "class": lambda: Healthy,
}


def _circular() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


class Returner(Job):
    def run(self, ctx: Any) -> Any:
        return RETURNS[ctx.parameters]()


@pytest.mark.parametrize("body", sorted(RETURNS))
def test_a_result_that_is_not_json_does_not_undo_the_work(scheduler: Scheduler, body: str) -> None:
    """A result that cannot be stored is dropped; the run stays completed, once."""
    job = scheduler.schedule(Returner(JobConfig.one_time("returner", body, retries=3)))

    ended = scheduler.wait(job, timeout=20)

    assert (ended.state, ended.result) == (JobState.COMPLETED, None)
    assert outcomes(scheduler, job) == ["completed"]
    assert_node_is_well(scheduler)


def test_a_process_result_that_is_not_json_does_not_undo_the_work(scheduler: Scheduler) -> None:
    """The same for results that would have to cross a process's pipe."""
    for body in sorted(RETURNS):
        job = scheduler.schedule(Returner(JobConfig.one_time("returner", body, isolation="process")))
        ended = scheduler.wait(job, timeout=30)
        assert (ended.state, outcomes(scheduler, job)) == (JobState.COMPLETED, ["completed"]), body
    assert_node_is_well(scheduler)


class NestedResult(Job):
    def run(self, ctx: Any) -> Any:
        return _deep(ctx.parameters)


def test_a_result_at_the_edge_of_what_python_can_nest_loses_no_job(scheduler: Scheduler) -> None:
    """However deep a result is nested, its job ends: what one thread could encode, another may not."""
    scheduler.register(NestedResult)
    jobs = [scheduler.enqueue("nested_result", depth) for depth in range(900, 1000, 4)]

    assert {scheduler.wait(job, timeout=30).state for job in jobs} == {JobState.COMPLETED}
    assert_node_is_well(scheduler)


class Forgetful(Job):
    """Forgot its `async`: the body never ran."""

    async def _work(self) -> None:
        raise AssertionError("nobody awaits this")

    def run(self, ctx: Any) -> Any:
        return self._work()


class Yielding(Job):
    """Has a `yield` in it: the body never ran."""

    def run(self, ctx: Any) -> Any:
        raise AssertionError("nobody iterates this")
        yield


@pytest.mark.parametrize("kind", [Forgetful, Yielding])
@pytest.mark.parametrize("isolation", ["thread", "async", "process"])
def test_a_body_that_never_ran_is_not_completed(
    scheduler: Scheduler, kind: type[Job], isolation: Any
) -> None:
    """A coroutine or a generator as result means that no work was done: the attempt failed, and says why."""
    job = scheduler.schedule(kind(JobConfig(name="forgot", isolation=isolation)))

    ended = scheduler.wait(job, timeout=30)

    assert ended.state is JobState.FAILED
    assert "TypeError" in (ended.last_error or "")
    assert_node_is_well(scheduler)


class Talker(Job):
    def run(self, ctx: Any) -> None:
        ctx.log.info(
            "a\x00b\ud800", **{"k\x00": "\ud800", "o": object(), "n": float("nan"), "b": UnreadableError()}
        )
        ctx.log.bind(deep=_deep(1000)).error("x" * 100_000)
        for _ in range(3000):
            ctx.log.debug("again")
        ctx.progress(float("inf"), float("nan"), "p\x00\ud800")


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_what_a_job_says_cannot_fail_it(scheduler: Scheduler, isolation: Any) -> None:
    """Log lines and progress with NUL, surrogates, NaN, objects and too much of everything are stored as far as
    they can be, and the run completes."""
    job = scheduler.schedule(Talker(JobConfig(name="talker", isolation=isolation)))

    assert scheduler.wait(job, timeout=30).state is JobState.COMPLETED
    (run,) = scheduler.runs(job.id)
    lines = scheduler.logs(run)
    assert lines[0].event == "a\\x00b\\ud800"
    assert len(lines) < 2500
    assert "\x00" not in str(run.progress)
    assert_node_is_well(scheduler)


class BadInit(Job):
    called: list[str] = []  # noqa: RUF012 - shared on purpose

    def init(self, ctx: Any) -> None:
        raise SystemExit("init")

    def run(self, ctx: Any) -> None:
        self.called.append("run")

    def shutdown(self, ctx: Any) -> None:
        self.called.append("shutdown")


def test_an_init_that_raises_fails_the_attempt_and_run_is_not_called(scheduler: Scheduler) -> None:
    """After an init error neither run nor shutdown is called, and the attempt is a counted failure."""
    BadInit.called.clear()
    job = scheduler.schedule(BadInit(JobConfig(name="bad_init", retries=1, backoff=AT_ONCE)))

    assert scheduler.wait(job, timeout=20).state is JobState.FAILED
    assert (outcomes(scheduler, job), BadInit.called) == (["failed", "failed"], [])
    assert_node_is_well(scheduler)


class BadCopy(Job):
    def __copy__(self) -> Any:
        raise SystemExit("copy")

    def run(self, ctx: Any) -> None:
        raise AssertionError("must not be reached")


class AsyncBadCopy(BadCopy):
    async def run(self, ctx: Any) -> None:  # type: ignore[override]
        raise AssertionError("must not be reached")


@pytest.mark.parametrize(
    ("kind", "isolation"), [(BadCopy, "thread"), (AsyncBadCopy, "async"), (BadCopy, "process")]
)
def test_an_instance_that_cannot_be_made_is_one_failed_attempt(
    scheduler: Scheduler, kind: type[Job], isolation: Any
) -> None:
    """Each run has a copy of its own; what making that raises is its counted failure, with its traceback."""
    job = scheduler.schedule(
        kind(JobConfig.one_time("bad_copy", retries=1, backoff=AT_ONCE, isolation=isolation))
    )

    ended = scheduler.wait(job, timeout=30)

    assert (ended.state, outcomes(scheduler, job)) == (JobState.FAILED, ["failed", "failed"])
    assert [run.attempt for run in scheduler.runs(job.id)] == [2, 1]
    assert "SystemExit: copy" in (ended.last_error or "")
    assert_node_is_well(scheduler)


class SlowInit(Job):
    def init(self, ctx: Any) -> None:
        time.sleep(NO_HEARTBEAT * 1.3)

    def run(self, ctx: Any) -> int:
        return int(ctx.attempt)


@pytest.mark.parametrize("no_heartbeat", [NO_HEARTBEAT])
@pytest.mark.parametrize("isolation", ["thread", "async", "process"])
def test_an_init_that_hangs_longer_than_the_timeout_is_not_stolen(
    scheduler: Scheduler, isolation: Any
) -> None:
    """The heartbeat covers init as well: however long it takes, the claim is alive and nobody resets it."""
    job = scheduler.schedule(SlowInit(JobConfig(name="slow_init", isolation=isolation)))

    ended = scheduler.wait(job, timeout=30)

    assert (ended.state, ended.result) == (JobState.COMPLETED, 1)
    assert outcomes(scheduler, job) == ["completed"]
    assert_node_is_well(scheduler)


class BadShutdown(Job):
    def run(self, ctx: Any) -> str:
        if ctx.parameters == "fail":
            raise ValueError("the run's own error")
        return "done"

    def shutdown(self, ctx: Any) -> None:
        RAISES["system_exit"]()


@pytest.mark.parametrize("isolation", ["thread", "async", "process"])
def test_a_shutdown_hook_that_raises_changes_nothing(scheduler: Scheduler, isolation: Any) -> None:
    """A good run stays completed when its shutdown hook raises, and a bad one keeps its own error."""
    good = scheduler.schedule(BadShutdown(JobConfig.one_time("bad_shutdown", "good", isolation=isolation)))
    bad = scheduler.schedule(BadShutdown(JobConfig.one_time("bad_shutdown", "fail", isolation=isolation)))

    completed, failed = (scheduler.wait(job, timeout=30) for job in (good, bad))

    assert (completed.state, completed.result) == (JobState.COMPLETED, "done")
    assert failed.state is JobState.FAILED
    assert "the run's own error" in (failed.last_error or "")
    assert_node_is_well(scheduler)


class Stubborn(Job):
    """Looks away when asked to stop."""

    def run(self, ctx: Any) -> str:
        time.sleep(0.6)
        return "late"


class StubbornCoroutine(Job):
    async def run(self, ctx: Any) -> str:
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            try:
                await asyncio.sleep(end - time.monotonic())
            except asyncio.CancelledError:
                continue
        return "late"


@pytest.mark.parametrize("kind", [Stubborn, StubbornCoroutine])
def test_a_job_that_swallows_its_timeout_has_timed_out_all_the_same(
    scheduler: Scheduler, kind: type[Job]
) -> None:
    """A run that goes on past its deadline and returns normally is recorded as timed out."""
    job = scheduler.schedule(kind(JobConfig(name="stubborn", timeout=timedelta(seconds=0.1))))

    assert scheduler.wait(job, timeout=20).state is JobState.FAILED
    assert outcomes(scheduler, job) == ["timed_out"]
    assert_node_is_well(scheduler)


class SwallowsCancel(Job):
    started: threading.Event
    asked: threading.Event

    def run(self, ctx: Any) -> str:
        self.started.set()
        while not ctx.cancelled:
            time.sleep(0.01)
        self.asked.set()
        return "as if nothing was"


def test_a_job_that_swallows_its_cancel_is_cancelled_all_the_same(scheduler: Scheduler) -> None:
    """A running job that was cancelled ends as cancelled, without retry, even when it returns normally."""
    job = SwallowsCancel(JobConfig(name="swallows", retries=3))
    job.started, job.asked = threading.Event(), threading.Event()
    record = scheduler.schedule(job)
    assert job.started.wait(10)

    assert scheduler.cancel(record) == "requested"

    assert scheduler.wait(record, timeout=20).state is JobState.CANCELLED
    assert job.asked.is_set()
    assert outcomes(scheduler, record) == ["cancelled"]
    assert_node_is_well(scheduler)


class Unpicklable(Job):
    def __init__(self, config: JobConfig) -> None:
        super().__init__(config)
        self.lock = threading.Lock()

    def run(self, ctx: Any) -> None:
        raise AssertionError("must not be reached")


class PicklesBadly(Job):
    def __init__(self, config: JobConfig) -> None:
        super().__init__(config)
        self.mine = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["mine"] != os.getpid():
            raise SystemExit("cannot be loaded elsewhere")
        self.__dict__.update(state)

    def run(self, ctx: Any) -> None:
        raise AssertionError("must not be reached")


@pytest.mark.parametrize("kind", [Unpicklable, PicklesBadly])
def test_a_process_job_that_cannot_cross_the_pipe_fails(scheduler: Scheduler, kind: type[Job]) -> None:
    """A job that cannot be pickled, or not be loaded in its process, is a counted failure with the reason."""
    job = scheduler.schedule(
        kind(JobConfig(name="cannot_cross", isolation="process", retries=1, backoff=AT_ONCE))
    )

    ended = scheduler.wait(job, timeout=30)

    assert ended.state is JobState.FAILED
    assert outcomes(scheduler, job) == ["failed", "failed"]
    assert ended.last_error
    assert_node_is_well(scheduler)


class SaysLastWord(Job):
    def run(self, ctx: Any) -> None:
        raise LastWord("enough")


@pytest.mark.parametrize("isolation", ["thread", "async", "process"])
def test_a_users_own_kind_of_signal_is_that_signal(scheduler: Scheduler, isolation: Any) -> None:
    """A subclass of Fail means Fail wherever the job runs: no retry, and the reason is kept."""
    job = scheduler.schedule(SaysLastWord(JobConfig(name="last_word", isolation=isolation, retries=5)))

    ended = scheduler.wait(job, timeout=30)

    assert (ended.state, outcomes(scheduler, job)) == (JobState.FAILED, ["failed"])
    assert ended.last_error == "enough"
    assert_node_is_well(scheduler)


def _bad_backoff(answer: Any) -> Callable[[int, BaseException], Any]:
    def backoff(failures: int, error: BaseException) -> Any:
        return answer() if callable(answer) else answer

    return backoff


@pytest.mark.parametrize(
    "answer",
    [timedelta.max, timedelta.min, 5, "soon", lambda: _raise(SystemExit), lambda: _raise(UnreadableError())],
    ids=["forever", "past", "number", "text", "exit", "unreadable"],
)
def test_a_backoff_that_misbehaves_keeps_the_job_alive(scheduler: Scheduler, answer: Any) -> None:
    """Whatever a backoff answers or raises, the failure is recorded and the job waits for its retry."""
    config = JobConfig(name="raiser", parameters="memory", retries=1, backoff=_bad_backoff(answer))
    job = scheduler.schedule(Raiser(config))
    deadline = time.monotonic() + 20
    while not scheduler.runs(job.id):
        assert time.monotonic() < deadline, scheduler.get_job(job)
        time.sleep(0.01)

    assert outcomes(scheduler, job)[:1] == ["failed"]
    if answer is not timedelta.min:
        assert scheduler.get_job(job).state is JobState.PENDING
        scheduler.trigger(job)
    ended = scheduler.wait(job, timeout=20)
    assert (ended.state, outcomes(scheduler, job)) == (JobState.FAILED, ["failed", "failed"])
    assert_node_is_well(scheduler)


class Mutates(Job):
    def run(self, ctx: Any) -> Any:
        found = list(ctx.parameters["items"])
        ctx.parameters["items"].append("mine")
        ctx.parameters["extra"] = ctx
        if ctx.attempt == 1:
            raise ValueError("once more")
        return found


def test_parameters_are_fresh_for_each_attempt(scheduler: Scheduler) -> None:
    """What a job does to its parameters, the next attempt does not see, and the database neither."""
    config = JobConfig.one_time("mutates", {"items": ["given"]}, retries=1, backoff=AT_ONCE)
    ended = scheduler.wait(scheduler.schedule(Mutates(config)), timeout=20)

    assert (ended.result, ended.parameters) == (["given"], {"items": ["given"]})


_leak: contextvars.ContextVar[str] = contextvars.ContextVar("_leak", default="clean")


class Leaks(Job):
    def run(self, ctx: Any) -> str:
        before = _leak.get()
        _leak.set("dirty")
        self.left = "dirty"
        return before


def test_nothing_leaks_from_one_run_into_the_next(scheduler: Scheduler) -> None:
    """A context variable that a run binds is not there in the next run on the same thread."""
    job = Leaks()
    found = [scheduler.wait(scheduler.schedule(job), timeout=20).result for _ in range(3)]

    assert found == ["clean"] * 3
    assert not hasattr(job, "left")


class SpeaksLater(Job):
    ended: threading.Event
    done: threading.Event

    def run(self, ctx: Any) -> None:
        def later() -> None:
            self.ended.wait(60)
            ctx.log.info("after the end")
            ctx.progress(9)
            self.done.set()

        threading.Thread(target=later, daemon=True).start()


def test_a_context_that_is_used_after_the_end_changes_nothing(scheduler: Scheduler) -> None:
    """What a left-over thread says through the context of a finished run reaches no record."""
    job = SpeaksLater(JobConfig(name="speaks_later"))
    job.ended, job.done = threading.Event(), threading.Event()
    record = scheduler.schedule(job)
    assert scheduler.wait(record, timeout=20).state is JobState.COMPLETED
    job.ended.set()
    assert job.done.wait(10)
    assert_node_is_well(scheduler)

    (run,) = scheduler.runs(record.id)
    assert (run.progress, scheduler.logs(run)) == (None, [])


class DeletesItself(Job):
    dsn = ""

    def run(self, ctx: Any) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("delete from pgscheduler_jobs where id = %s", [ctx.job_id])


def test_a_job_whose_row_vanishes_under_it_leaves_the_node_well(
    scheduler: Scheduler, dsn: str, eventually: Any
) -> None:
    """A run whose row somebody deleted by hand has lost its claim: nothing is recorded, and the node goes on."""
    job = DeletesItself(JobConfig(name="deletes_itself"))
    job.dsn = dsn
    record = scheduler.schedule(job)

    assert_node_is_well(scheduler)
    eventually(lambda: scheduler.node_stats()["lost"] == 1 and not scheduler.node_stats()["held"])
    assert scheduler.runs(record.id) == []


class Dies(Job):
    def run(self, ctx: Any) -> None:
        os._exit(7)


def test_a_process_that_dies_each_time_ends_as_failed(scheduler: Scheduler) -> None:
    """A process job that ends its process is a stall each time, and after max_stalls it has failed."""
    job = scheduler.schedule(Dies(JobConfig(name="dies", isolation="process", max_stalls=2)))

    ended = scheduler.wait(job, timeout=30)

    assert ended.state is JobState.FAILED
    assert outcomes(scheduler, job) == [Outcome.STALLED, Outcome.STALLED, Outcome.FAILED]
    assert "stalled 2 times" in (ended.last_error or "")
    assert_node_is_well(scheduler)
