"""The shipped kinds stand for any request or command, so one that recurs and one that is asked for once share a name."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import Every, JobConfig, JobKindError, JobState, Scheduler, SchedulerConfig
from pgscheduler._sql import SHARED_NAMES
from pgscheduler.jobs import CallJob, HttpJob, ShellJob
from pgscheduler.jobs._shapes import SHAPES

SAY = {"shell": "echo said"}
HOURLY = Every(timedelta(hours=1))


@pytest.fixture
def shell() -> ShellJob:
    return ShellJob(enabled=True)


@pytest.fixture
def scheduler(dsn: str, shell: ShellJob) -> Iterator[Scheduler]:
    with Scheduler(SchedulerConfig(dsn=dsn)) as found:
        found.register(shell)
        yield found


def test_the_names_are_those_of_the_shipped_kinds() -> None:
    kinds = (HttpJob(), CallJob(modules=["json"]), ShellJob(enabled=True))
    assert set(SHARED_NAMES) == {kind.name for kind in kinds} == {kind.own_name for kind in kinds}
    assert {kind.own_name: kind.parameters for kind in kinds} == SHAPES


def test_whichever_comes_first(dsn: str, scheduler: Scheduler, shell: ShellJob) -> None:
    """One-time jobs beside recurring ones and the other way round, by every call that stores; all of them run."""
    first = [
        scheduler.enqueue("shell_job", SAY, key="once"),
        scheduler.schedule(shell.with_config(JobConfig.one_time("shell_job", key="object", parameters=SAY))),
    ]
    recurring = [
        scheduler.schedule_by_name("shell_job", HOURLY, SAY, key="hourly"),
        scheduler.schedule(
            shell.with_config(JobConfig(name="shell_job", key="another", schedule=HOURLY, parameters=SAY))
        ),
        scheduler.schedule_by_name("shell_job", HOURLY, SAY, key="third", if_exists="keep"),
    ]
    scheduler.templates.create("say", handler="shell_job")
    later = [
        scheduler.enqueue("shell_job", SAY),
        scheduler.enqueue("shell_job", SAY, key="twice", if_exists="error"),
        scheduler.templates.enqueue("say", SAY),
    ]
    with psycopg.connect(dsn) as connection:
        later.append(scheduler.enqueue("shell_job", SAY, connection=connection))
        connection.execute("""select pgscheduler_enqueue('shell_job', '{"shell": "echo said"}')""")
    many = [
        shell.with_config(JobConfig(name="shell_job", key="fourth", schedule=HOURLY, parameters=SAY)),
        shell.with_config(JobConfig(name="shell_job", parameters=SAY)),
        shell.with_config(JobConfig(name="shell_job", key="thrice", parameters=SAY)),
    ]
    assert scheduler.schedule_many(many) == 3

    done = scheduler.run_pending()
    assert (done.completed, done.failed) == (len(first) + len(later) + 1 + 2, 0)
    assert {job.key for job in scheduler.jobs()} == {"hourly", "another", "third", "fourth"}
    assert all(scheduler.get_job(job).state is JobState.COMPLETED for job in first + later)
    assert all(scheduler.get_job(job).recurring for job in recurring)


def test_one_name_and_key_is_of_one_kind(dsn: str, scheduler: Scheduler) -> None:
    """A recurring job is not overwritten by a one-time one of its key, through any door, nor the other way round."""
    hourly = scheduler.schedule_by_name("shell_job", HOURLY, SAY, key="hourly")
    calls: list[Any] = [
        lambda how=how: scheduler.enqueue("shell_job", SAY, key="hourly", if_exists=how)
        for how in ("update", "keep", "error")
    ]
    for call in calls:
        with pytest.raises(JobKindError, match="'shell_job' with key 'hourly' is recurring"):
            call()
    with psycopg.connect(dsn) as connection, pytest.raises(psycopg.errors.ObjectInUse, match="recurring"):
        connection.execute("select pgscheduler_enqueue('shell_job', '{}', 'hourly')")
    assert scheduler.get_job(hourly) == hourly

    once = scheduler.enqueue("shell_job", SAY, key="once", delay=timedelta(hours=1))
    with pytest.raises(JobKindError, match="'once' is one-time"):
        scheduler.schedule_by_name("shell_job", HOURLY, SAY, key="once")
    assert scheduler.get_job(once) == once


def test_a_kind_under_a_name_of_its_own_is_of_one_kind(scheduler: Scheduler) -> None:
    """Whoever names it says what it is."""
    scheduler.register(ShellJob(JobConfig(name="backup"), enabled=True))
    scheduler.schedule_by_name("backup", HOURLY, SAY)
    with pytest.raises(JobKindError, match="'backup' is recurring"):
        scheduler.enqueue("backup", SAY)
