"""Random verbs, legal and not, against a small model of what a job is.

The database's clock stands still and is moved by hand, so the model predicts every time exactly. Jobs run in
`run_pending`; what a verb does to a *running* job is covered by jobs that turn verbs on themselves.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgscheduler import (
    Backoff,
    Cancel,
    Cron,
    DuplicateJobError,
    Fail,
    Job,
    JobConfig,
    JobKindError,
    JobNotFoundError,
    JobNotRunningError,
    JobRunningError,
    Retry,
    Scheduler,
    SchedulerConfig,
    Snooze,
)
from tests.engine.conftest import NOW, Quiet

BEGIN = datetime(2031, 3, 1, 12, 0, 30, tzinfo=UTC)
CRONS = {"ten": 600, "hour": 3600}  # periods in seconds; both begin at the full hour
EXPRESSIONS = {"ten": "*/10 * * * *", "hour": "0 * * * *"}
BACKOFF, RETRY, SNOOZE = (timedelta(seconds=s) for s in (60, 120, 300))
KEPT = 100  # skipped occurrences with a line each

#: What a job does in its run: first perhaps a verb on itself, then how it ends.
VERBS = ("", "cancel", "pause", "delete", "trigger", "change")
ENDS = ("succeed", "fail", "retry", "snooze", "cancel", "give up")
SCRIPTS = st.integers(0, len(VERBS) * len(ENDS) - 1).map(
    lambda n: (VERBS[n % len(VERBS)], ENDS[n // len(VERBS)])
)


class Scripted(Job):
    """Does what its parameters say."""

    def __init__(self, config: JobConfig, tell: Any) -> None:
        super().__init__(config)
        self.tell = tell

    def run(self, ctx: Any) -> Any:
        end = ctx.parameters["end"]
        self.tell(ctx)
        if end == "fail":
            raise ValueError("as told")
        if end == "retry":
            return Retry(RETRY)
        if end == "snooze":
            raise Snooze(SNOOZE)
        if end == "cancel":
            raise Cancel("as told")
        if end == "give up":
            return Fail("as told")
        return None


@dataclass
class Modelled:
    """A live job as it ought to be."""

    id: int
    name: str
    key: str | None
    verb: str
    end: str
    retries: int
    priority: int
    run_at: datetime
    scheduled_at: datetime
    cron: str | None = None
    paused: bool = False
    pause_after: bool = False  # paused again after its next run
    failures: int = 0
    cancel: bool = False
    deleted: bool = False

    def seen(self) -> tuple[Any, ...]:
        state = "paused" if self.paused else "pending"
        return (
            self.name,
            self.key,
            state,
            self.priority,
            self.run_at,
            self.scheduled_at,
            self.failures,
            self.cancel,
        )


@dataclass
class World:
    """All jobs, and how often each outcome was recorded for each."""

    now: datetime = BEGIN
    jobs: dict[int, Modelled] = field(default_factory=dict)
    runs: Counter[tuple[int, str]] = field(default_factory=Counter)

    def following(self, cron: str, after: datetime) -> datetime:
        period = CRONS[cron]
        return datetime.fromtimestamp((int(after.timestamp()) // period + 1) * period, UTC)

    def by_key(self, name: str, key: str | None) -> Modelled | None:
        return next((j for j in self.jobs.values() if (j.name, j.key) == (name, key)), None) if key else None

    def due(self, limit: int) -> list[Modelled]:
        ready = [
            j for j in self.jobs.values() if not j.paused and j.run_at <= self.now and j.name != "unknown"
        ]
        return sorted(ready, key=lambda j: (j.priority, j.run_at, j.id))[:limit]

    # What a run makes of a job.

    def perform(self, job: Modelled) -> None:
        if job.cancel:
            self.finish(job, "cancelled", job.scheduled_at)
            return
        occurrence = job.scheduled_at
        if job.cron is not None and job.failures == 0:
            while (later := self.following(job.cron, occurrence)) <= self.now:
                occurrence = later
            missed = self.count(job.cron, job.scheduled_at, occurrence)
            self.runs[(job.id, "skipped")] += min(missed, KEPT + 1)
        job.cancel = job.verb == "cancel"
        if job.verb == "pause":
            job.pause_after = True
        job.deleted = job.verb == "delete"
        if job.end in ("fail", "retry") and job.failures < job.retries:
            self.runs[(job.id, "failed")] += 1
            job.failures += 1
            job.run_at = self.now + (BACKOFF if job.end == "fail" else RETRY)
            self.again(job, occurrence)
        elif job.end == "snooze":
            self.runs[(job.id, "interrupted")] += 1
            job.run_at = self.now + SNOOZE
            self.again(job, occurrence)
        else:
            outcome = {"succeed": "completed", "cancel": "cancelled"}.get(job.end, "failed")
            self.finish(job, outcome, occurrence)

    def count(self, cron: str, first: datetime, last: datetime) -> int:
        """How many occurrences there are in [first, last), where `first` counts as one."""
        found = 0
        while first < last:
            found, first = found + 1, self.following(cron, first)
        return found

    def again(self, job: Modelled, occurrence: datetime) -> None:
        job.scheduled_at = occurrence
        job.paused, job.pause_after = job.pause_after, False
        if job.deleted:
            del self.jobs[job.id]

    def finish(self, job: Modelled, outcome: str, occurrence: datetime) -> None:
        self.runs[(job.id, outcome)] += 1
        if job.cron is None:
            del self.jobs[job.id]
            return
        first = self.following(job.cron, occurrence)
        following = max(first, self.following(job.cron, self.now))
        overlapped = self.count(job.cron, first, following)
        self.runs[(job.id, "skipped")] += min(overlapped, KEPT + 2)
        job.failures, job.cancel = 0, False
        job.run_at = following
        self.again(job, following)


@pytest.mark.slow
def test_verbs_and_runs_do_what_the_model_says(dsn: str, direct_dsn: str) -> None:
    """Whatever is said and done in whatever order, each job's row and history are as the model predicts."""
    connection = psycopg.connect(direct_dsn, autocommit=True)
    worlds: list[Counter[str]] = []

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world = World()
            self.errors: list[str] = []
            self.seen: Counter[str] = Counter()
            worlds.append(self.seen)
            self.objects: dict[str, tuple[str, Scripted]] = {}  # by key: the recurring object of this process
            self.scheduler = Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet(), listen=False))

        @initialize(
            first=st.lists(
                st.tuples(SCRIPTS, st.integers(0, 2), st.sampled_from([None, "a"])), min_size=2, max_size=4
            ),
            second=SCRIPTS,
        )
        def begin(
            self, first: list[tuple[tuple[str, str], int, str | None]], second: tuple[str, str]
        ) -> None:
            connection.execute(
                "truncate pgscheduler_jobs, pgscheduler_runs, pgscheduler_run_logs, pgscheduler_nodes"
            )
            self.travel(timedelta(0))
            self.scheduler.init()
            for name in ("once", "keyed", "tick"):
                self.scheduler.register(self.job(JobConfig(name=name)))
            for script, retries, key in first:
                self.schedule_one_time(script, retries, 0, 5, key)
            self.schedule_recurring("x", "ten", second)

        def teardown(self) -> None:
            self.scheduler.shutdown()

        # Helpers.

        def job(self, config: JobConfig) -> Scripted:
            return Scripted(config, self.interfere)

        def interfere(self, ctx: Any) -> None:
            """A verb on the running job itself; those that need a job that is not running must say so."""
            verb, me = ctx.parameters["verb"], ctx.job_id
            refused = verb in ("trigger", "change")
            answer: Any
            try:
                if verb == "cancel":
                    answer = self.scheduler.cancel(me)
                elif verb == "delete":
                    answer = self.scheduler.delete(me)
                elif verb == "pause":
                    answer = self.scheduler.pause(me).state
                elif verb == "trigger":
                    answer = self.scheduler.trigger(me)
                elif verb == "change" and ctx.name == "keyed":
                    answer = self.scheduler.enqueue("keyed", {}, key=ctx.key)
                elif verb == "change" and ctx.name == "tick":
                    answer = self.scheduler.reschedule(me, schedule="* * * * *")
                elif verb == "change":
                    answer = self.scheduler.reschedule(me, delay=timedelta(seconds=1))
                else:
                    return
            except JobRunningError:
                answer = "refused"
            expected = "refused" if refused else "running" if verb == "pause" else "requested"
            self.seen[f"{verb} while running"] += 1
            if answer != expected:
                self.errors.append(f"{verb}: {answer!r} instead of {expected!r}")

        def pick(self, index: int, *, recurring: bool | None = None) -> Modelled | None:
            found = [
                j for j in self.world.jobs.values() if recurring is None or (j.cron is not None) == recurring
            ]
            return found[index % len(found)] if found else None

        def travel(self, by: timedelta) -> None:
            self.world.now += by
            connection.execute(
                NOW.format(
                    schema="public",
                    prefix="pgscheduler_",
                    moment=f"timestamptz '{self.world.now.isoformat()}'",
                )
            )

        # Rules.

        @rule(by=st.sampled_from([1, 60, 120, 300, 599, 600, 1800, 3600, 5 * 3600]))
        def time_passes(self, by: int) -> None:
            self.travel(timedelta(seconds=by))

        @rule(
            script=SCRIPTS,
            retries=st.integers(0, 2),
            delay=st.sampled_from([0, 0, 60, 3600]),
            priority=st.sampled_from([1, 5, 9]),
            key=st.sampled_from([None, None, "a", "b"]),
        )
        def schedule_one_time(
            self, script: tuple[str, str], retries: int, delay: int, priority: int, key: str | None
        ) -> None:
            verb, end = script
            name = "once" if key is None else "keyed"
            config = JobConfig(
                name=name,
                key=key,
                parameters={"verb": verb, "end": end},
                retries=retries,
                delay=timedelta(seconds=delay),
                priority=priority,
                backoff=Backoff(initial=BACKOFF, factor=1, jitter=0),
            )
            record = self.scheduler.schedule(self.job(config))
            due = self.world.now + timedelta(seconds=delay)
            old = self.world.by_key(name, key)
            job = Modelled(record.id, name, key, verb, end, retries, priority, due, due)
            if old is not None:
                assert record.id == old.id
                job.paused, job.pause_after = old.paused, old.pause_after
                self.seen["replaced"] += 1
            self.world.jobs[record.id] = job

        @rule(key=st.sampled_from(["x", "y"]), cron=st.sampled_from(["ten", "hour"]), script=SCRIPTS)
        def schedule_recurring(self, key: str, cron: str, script: tuple[str, str]) -> None:
            verb, end = script
            known = self.objects.get(key)
            config = JobConfig.recurring(
                "tick", EXPRESSIONS[cron], key=key, parameters={"verb": verb, "end": end}, retries=1,
                backoff=Backoff(initial=BACKOFF, factor=1, jitter=0),
            )  # fmt: skip
            if known is not None and known[0] != cron:
                with pytest.raises(DuplicateJobError):
                    self.scheduler.schedule(self.job(config))
                return
            if known is None:
                known = self.objects[key] = (cron, self.job(config))
            _, job = known
            record = self.scheduler.schedule(job)
            parameters = job.config.parameters
            live = self.world.by_key("tick", key)
            following = self.world.following(cron, self.world.now)
            if live is None:
                self.world.jobs[record.id] = Modelled(
                    record.id,
                    "tick",
                    key,
                    parameters["verb"],
                    parameters["end"],
                    1,
                    5,
                    following,
                    following,
                    cron,
                )
            elif live.cron != cron:
                live.cron, live.run_at, live.scheduled_at, live.failures, live.cancel = (
                    cron,
                    following,
                    following,
                    0,
                    False,
                )

        @rule()
        def enqueue_unknown_name(self) -> None:
            record = self.scheduler.enqueue("unknown")
            self.world.jobs[record.id] = Modelled(
                record.id, "unknown", None, "", "", 0, 5, self.world.now, self.world.now
            )

        @rule()
        def one_time_under_a_recurring_name(self) -> None:
            if any(j.name == "tick" for j in self.world.jobs.values()):
                with pytest.raises(JobKindError):
                    self.scheduler.enqueue("tick", key="z")

        @rule(limit=st.integers(1, 4), wait=st.sampled_from([0, 60, 120, 300, 3600]))
        def run_pending(self, limit: int, wait: int) -> None:
            self.travel(timedelta(seconds=wait))
            expected = self.world.due(limit)
            summary = self.scheduler.run_pending(limit)
            assert summary.claimed == len(expected)
            for job in expected:
                self.seen[f"ran: {job.end}"] += 1
                self.world.perform(job)
                if job.deleted and job.name == "tick":
                    assert job.key is not None
                    self.objects.pop(job.key, None)
            assert self.errors == []

        @precondition(lambda self: self.world.jobs)
        @rule(index=st.integers(0, 9))
        def pause(self, index: int) -> None:
            job = self.pick(index)
            assert job is not None
            assert self.scheduler.pause(job.id).state == "paused"
            job.paused = True

        @precondition(lambda self: self.world.jobs)
        @rule(index=st.integers(0, 9))
        def resume(self, index: int) -> None:
            job = self.pick(index)
            assert job is not None
            assert self.scheduler.resume(job.id).state == "pending"
            if job.paused and job.cron is not None:
                job.run_at = job.scheduled_at = self.world.following(job.cron, self.world.now)
                job.failures = 0
            job.paused = job.pause_after = False

        @precondition(lambda self: self.world.jobs)
        @rule(index=st.integers(0, 9))
        def trigger(self, index: int) -> None:
            job = self.pick(index)
            assert job is not None
            self.scheduler.trigger(job.id)
            job.run_at = min(job.run_at, self.world.now)
            if job.cron is not None:
                job.scheduled_at = min(job.scheduled_at, self.world.now)
            if job.paused:
                job.paused, job.pause_after = False, True

        @precondition(lambda self: self.world.jobs)
        @rule(index=st.integers(0, 9), delay=st.sampled_from([0, 60]), cron=st.sampled_from(["ten", "hour"]))
        def reschedule(self, index: int, delay: int, cron: str) -> None:
            job = self.pick(index)
            assert job is not None
            wait = timedelta(seconds=delay)
            if job.cron is None:
                with pytest.raises(JobKindError):
                    self.scheduler.reschedule(job.id, schedule=Cron(EXPRESSIONS[cron]))
                self.scheduler.reschedule(job.id, delay=wait)
                job.run_at = job.scheduled_at = self.world.now + wait
            else:
                with pytest.raises(JobKindError):
                    self.scheduler.reschedule(job.id, delay=wait)
                self.scheduler.reschedule(job.id, schedule=EXPRESSIONS[cron])
                job.cron = cron
                job.run_at = job.scheduled_at = self.world.following(cron, self.world.now)
            job.failures, job.cancel = 0, False

        @precondition(lambda self: self.world.jobs)
        @rule(index=st.integers(0, 9))
        def cancel(self, index: int) -> None:
            job = self.pick(index)
            assert job is not None
            if job.cron is not None:
                with pytest.raises(JobNotRunningError):
                    self.scheduler.cancel(job.id)
                return
            assert self.scheduler.cancel(job.id) == "cancelled"
            self.world.runs[(job.id, "cancelled")] += 1
            del self.world.jobs[job.id]

        @precondition(lambda self: self.world.jobs)
        @rule(index=st.integers(0, 9))
        def delete(self, index: int) -> None:
            job = self.pick(index)
            assert job is not None
            assert self.scheduler.delete(job.id) == "deleted"
            self.world.runs[(job.id, "cancelled")] += 1
            del self.world.jobs[job.id]
            if job.name == "tick":
                assert job.key is not None
                self.objects.pop(job.key, None)

        @rule(
            verb=st.sampled_from(["cancel", "pause", "resume", "trigger", "delete", "reschedule"]),
            never=st.booleans(),
        )
        def verbs_on_what_is_gone(self, verb: str, never: bool) -> None:
            gone = sorted({id_ for id_, _ in self.world.runs} - set(self.world.jobs))
            target = 2**62 if never or not gone else gone[-1]
            expected = JobNotFoundError if target == 2**62 else JobNotRunningError
            more = {"delay": 1} if verb == "reschedule" else {}
            with pytest.raises(expected):
                getattr(self.scheduler, verb)(target, **more)

        @invariant()
        def the_database_agrees(self) -> None:
            rows = connection.execute(
                "select id, name, key, state, priority, run_at, scheduled_at, failures, cancel_requested from pgscheduler_jobs"
            ).fetchall()
            assert {row[0]: tuple(row[1:]) for row in rows} == {
                j.id: j.seen() for j in self.world.jobs.values()
            }
            runs = connection.execute(
                "select job_id, outcome, count(*) from pgscheduler_runs group by 1, 2"
            ).fetchall()
            assert {(job, outcome): count for job, outcome, count in runs} == {
                k: n for k, n in self.world.runs.items() if n
            }

    quick = settings(
        max_examples=80,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[
            Phase.generate
        ],  # shrinking would run into the test's timeout; a walk is short enough to read
    )
    try:
        run_state_machine_as_test(Machine, settings=quick)
    finally:
        connection.close()
    # The walks went through nearly every corner that they are there for (which ones is Hypothesis's choice).
    reached = sum(worlds, Counter())
    wanted = (
        {f"ran: {end}" for end in ENDS} | {f"{verb} while running" for verb in VERBS if verb} | {"replaced"}
    )
    assert len(wanted - set(reached)) <= 2
    assert sum(reached.values()) >= 100
