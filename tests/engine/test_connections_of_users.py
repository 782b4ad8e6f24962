"""Connections that are not as we would make them: what a session forgets, rows that are dictionaries, pools whose address
is a function, transactions that the caller rolls back, and processes with many files."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from pgscheduler import (
    DuplicateJobError,
    Every,
    InvalidValueError,
    Job,
    JobConfig,
    JobKindError,
    JobRunningError,
    JobState,
    SchedulerConfig,
    SchedulerStateError,
    _foreign,
)
from pgscheduler._declared import Definition, Definitions
from pgscheduler._listener import Listener
from pgscheduler._sql import Names
from pgscheduler._store import Store
from pgscheduler.jobs import CallJob
from tests.engine.conftest import Call, Quiet
from tests.support import eventually
from tests.support.pooler import needs_notifications

HOUR = timedelta(hours=1)


# --- what a session forgets -------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["a refusal", "deallocate all", "discard all", "deallocate one"])
def test_enqueue_where_the_session_has_forgotten_our_statements(
    direct_dsn: str, scheduler_on: Any, by: str
) -> None:
    """enqueue stores its job once, also where a rollback or a statement of the user's has dropped what was prepared."""
    scheduler = scheduler_on(direct_dsn, pool_size=1)
    job = scheduler.enqueue("mail", key="k")
    scheduler.enqueue("mail")
    for _ in range(7):
        scheduler.get_job(
            job
        )  # now psycopg has prepared a statement of its own, and clears up after a rollback
    if by == "a refusal":
        with pytest.raises(DuplicateJobError):
            scheduler.enqueue("mail", key="k", if_exists="error")
        scheduler.get_job(job)
    else:
        statement = "deallocate pgscheduler_insert" if by == "deallocate one" else by
        with scheduler._store.pool.connection() as connection:
            connection.execute(statement)
    before = scheduler.count_jobs()
    scheduler.enqueue("mail")
    scheduler.enqueue("mail")
    assert scheduler.count_jobs() == before + 2


def test_the_loops_statements_where_the_session_has_forgotten_them(direct_dsn: str) -> None:
    """What a node says to its own connections is said again, once, where the session has forgotten the statements."""
    store = Store(direct_dsn, Names("public", "pgscheduler_"))
    note = {"id": 1, "token": 2, "progress": None, "logs": None}
    with store.connect() as connection:
        store.prepare_outcomes(connection)
        for statement in ("select", "deallocate all", "deallocate pgscheduler_note"):
            connection.execute(statement)
            store.notify(connection, "due")
            assert store.finish(connection, [], [note]).lost == [(1, 2)]


# --- rows of any kind -------------------------------------------------------------------------------------


def test_verbs_on_a_pool_whose_rows_are_dictionaries(dsn: str, scheduler_on: Any) -> None:
    """A pool's row_factory is for its owner: every verb works, whatever it says."""
    declared = Definitions("source", (Definition(JobConfig.recurring("declared", Every(HOUR))),))
    with ConnectionPool(dsn, kwargs={"row_factory": dict_row}, min_size=1, open=True) as pool:
        scheduler = scheduler_on(None, pool=pool)
        tick = scheduler.schedule(Call(JobConfig.recurring("tick", "* * * * *")))
        keyed = Call(JobConfig.one_time("keyed", key="a"))
        assert scheduler.schedule_many([keyed, Call(JobConfig.one_time("plain"))]) == 2
        assert scheduler.enqueue_many("mail", [{}, {}]) == 2
        with pytest.raises(JobKindError):
            scheduler.enqueue_many("tick", [{}])
        assert len(scheduler.plan(declared).changes) == 1
        assert len(scheduler.apply(declared).changes) == 1
        assert scheduler.reschedule(tick, schedule=Every(HOUR)).id == tick.id
        assert scheduler.ping() > timedelta(0)
        assert len(scheduler.jobs()) == 6
        scheduler.shutdown()


def test_many_on_a_connection_whose_rows_are_dictionaries(dsn: str, scheduler_on: Any) -> None:
    """The same of a caller's connection."""
    scheduler = scheduler_on(dsn)
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        scheduler.enqueue_many("mail", [{}, {}], connection=connection)
        scheduler.schedule_many([Call(JobConfig.one_time("keyed", key="a"))], connection=connection)
    assert sorted(job.name for job in scheduler.jobs()) == ["keyed", "mail", "mail"]


# --- where a pool connects to -----------------------------------------------------------------------------


POOLS: dict[str, Callable[[str], ConnectionPool[Any]]] = {
    "in kwargs": lambda dsn: ConnectionPool("", kwargs={**conninfo_to_dict(dsn), "autocommit": True}),
    "a function": lambda dsn: ConnectionPool(lambda: dsn),
    "kwargs by a function": lambda dsn: ConnectionPool(kwargs=lambda: dict(conninfo_to_dict(dsn))),
    "both": lambda dsn: ConnectionPool(make_conninfo(dsn, dbname="none"), kwargs=conninfo_to_dict(dsn)),
}


@pytest.mark.parametrize("given", POOLS)
def test_a_node_connects_to_where_its_pool_does(dsn: str, scheduler_on: Any, given: str) -> None:
    """The loops' own connections lead to the same database, however the pool was told where that is."""
    pool = POOLS[given](dsn)
    pool.open()
    with pool:
        node = scheduler_on(
            None, start=True, pool=pool, listen=False, register=(Call(JobConfig(name="mail")),)
        )
        assert node.wait(node.enqueue("mail"), 15).state is JobState.COMPLETED
        node.shutdown()


def test_a_pools_function_is_asked_for_each_connection(dsn: str) -> None:
    """A function in place of a conninfo may give another password each time; so it is asked each time."""
    names = iter(("first", "second", "third"))
    pool = ConnectionPool(lambda: make_conninfo(dsn, application_name=next(names)), open=False)
    config = SchedulerConfig(pool=pool)
    store = Store(config.conninfo, Names("public", "pgscheduler_"), pool=pool)
    for expected in ("second", "third"):
        with store.connect() as connection:
            assert connection.info.get_parameters()["application_name"] == expected


def test_a_pools_faulty_conninfo_is_refused_without_showing_it() -> None:
    """libpq quotes what it cannot read, which may be half of a password; our error names the setting only."""
    with pytest.raises(InvalidValueError, match="pool") as caught:
        _ = SchedulerConfig(pool=ConnectionPool("host=db password=se cret", open=False)).conninfo
    assert "cret" not in f"{caught.value} {caught.value.__cause__}"
    assert caught.value.__suppress_context__


# --- a process with many files ----------------------------------------------------------------------------


@pytest.fixture
def many_files() -> Iterator[None]:
    """So many open files that whatever is opened next has a descriptor beyond 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        with ExitStack() as stack:
            for _ in range(1024):
                stack.enter_context(Path("/dev/null").open())
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@needs_notifications
@pytest.mark.usefixtures("many_files")
def test_the_listener_of_a_process_with_many_files(direct_dsn: str) -> None:
    """Notifications are heard whatever number the listener's socket has."""
    store = Store(direct_dsn, Names("public", "pgscheduler_"))
    heard: list[str] = []
    listener = Listener(store, heard.append, Quiet())
    try:
        listener.step()  # connects
        with store.connect() as connection:
            store.notify(connection, "due")
        while not heard:
            listener.step()
        assert heard == ["due"]
        listener.interrupt()
        assert listener.step() == 0.0
    finally:
        listener.close()


# --- kinds in bulk ----------------------------------------------------------------------------------------


def test_schedule_many_keeps_kinds_apart(dsn: str, scheduler_on: Any) -> None:
    """A name of one-time jobs takes no recurring one by schedule_many either, whatever its key; nothing is stored."""
    scheduler_on(dsn).enqueue("once", key="k1", delay=HOUR)
    for key in ("k0", "k1", "k2"):
        scheduler = scheduler_on(dsn)
        jobs = [
            Call(JobConfig.one_time("good", key="g")),
            Call(JobConfig.recurring("tick", Every(HOUR))),
            Call(JobConfig.recurring("once", Every(HOUR), key=key)),
        ]
        with pytest.raises(JobKindError, match="once"):
            scheduler.schedule_many(jobs)
        with psycopg.connect(dsn) as connection, pytest.raises(JobKindError, match="once"):
            scheduler.schedule_many(jobs, connection=connection)
        assert [(job.name, job.key) for job in scheduler.jobs()] == [("once", "k1")]


def test_schedule_many_of_shared_names(dsn: str, scheduler_on: Any) -> None:
    """The shipped kinds are of both; there only a name and a key are of one."""
    scheduler = scheduler_on(dsn)
    job, parameters = CallJob(modules=["os.path"]), {"module": "os.path", "function": "join", "args": ["a"]}

    def hourly(key: str) -> CallJob:
        return job.with_config(JobConfig.recurring("call_job", Every(HOUR), key=key, parameters=parameters))

    scheduler.enqueue("call_job", parameters, key="k1", delay=HOUR)
    assert scheduler.schedule_many([hourly("k2")]) == 1
    with pytest.raises(JobKindError):
        scheduler.schedule_many([hourly("k1")])


def test_schedule_many_says_that_a_job_runs(dsn: str, db: Any, scheduler_on: Any) -> None:
    """A job of the same kind that cannot be changed is one that runs, also where only the caller can see it."""
    scheduler = scheduler_on(dsn, pool_size=1)
    jobs = [Call(JobConfig.one_time("busy", key="b"))]
    scheduler.schedule_many(jobs)
    busy = "update pgscheduler_jobs set state = 'running', token = 1, claimed_at = now()"
    with psycopg.connect(dsn) as connection:
        connection.execute(busy)
        with pytest.raises(JobRunningError):
            scheduler.schedule_many(jobs, connection=connection)
        connection.rollback()
    db.execute(busy)
    with pytest.raises(JobRunningError):
        scheduler.schedule_many(jobs)


# --- a caller's transaction -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["schedule", "keep", "error", "many", "enqueue_many", "async"])
def test_a_callers_rollback_undoes_everything(dsn: str, scheduler_on: Any, way: str) -> None:
    """After the rollback there is no job, and its name and key are free: for another instance, and another kind."""
    scheduler = scheduler_on(dsn)

    def tick() -> Job:
        return Call(JobConfig.recurring("tick", Every(HOUR)))

    async def go() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await scheduler.schedule(tick(), connection=connection)
            await connection.rollback()

    if way == "async":
        asyncio.run(go())
    else:
        with psycopg.connect(dsn) as connection:
            if way == "enqueue_many":
                scheduler.enqueue_many("mail", [{}], connection=connection)
            elif way == "many":
                scheduler.schedule_many([tick()], connection=connection)
            else:
                given = {} if way == "schedule" else {"if_exists": way}
                scheduler.schedule(tick(), connection=connection, **given)
            connection.rollback()
    assert scheduler.jobs() == []
    assert scheduler.schedule(Call(JobConfig.one_time("tick", key="tick"))).name == "tick"


def test_another_instance_after_a_callers_rollback(dsn: str, scheduler_on: Any) -> None:
    """What was rolled back was never scheduled: another instance may be, and it is the one that runs."""
    seen: list[str] = []
    node = scheduler_on(dsn)
    with psycopg.connect(dsn) as connection:
        lost = Call(JobConfig.recurring("tick", Every(HOUR)), lambda ctx: seen.append("lost"))
        node.schedule(lost, connection=connection)
        connection.rollback()
        kept = Call(JobConfig.recurring("tick", Every(HOUR)), lambda ctx: seen.append("kept"))
        record = node.schedule(kept, connection=connection)
        connection.commit()
    node.trigger(record)
    assert node.run_pending().completed == 1
    assert seen == ["kept"]


def test_a_job_that_is_scheduled_stays_so_after_a_callers_rollback(dsn: str, scheduler_on: Any) -> None:
    """Scheduling it once more in a transaction that is rolled back does not make room for a second instance."""
    scheduler = scheduler_on(dsn)
    tick = Call(JobConfig.recurring("tick", Every(HOUR)))
    scheduler.schedule(tick)
    with psycopg.connect(dsn) as connection:
        scheduler.schedule(tick, connection=connection)
        connection.rollback()
    with pytest.raises(DuplicateJobError, match="already exists"):
        scheduler.schedule(Call(JobConfig.recurring("tick", Every(HOUR))))


@pytest.mark.parametrize("verb", ["enqueue_many", "schedule_many"])
def test_many_that_fail_leave_the_callers_transaction_as_it_was(
    dsn: str, scheduler_on: Any, verb: str
) -> None:
    """A bulk that is refused as the first act of a transaction stores nothing, and the transaction goes on."""
    scheduler = scheduler_on(dsn)
    scheduler_on(dsn).schedule(Call(JobConfig.recurring("tick", Every(HOUR))))
    jobs = [Call(JobConfig.one_time("good")), Call(JobConfig.one_time("tick", key="k"))]
    calls: dict[str, Callable[[Any], int]] = {
        "enqueue_many": lambda c: scheduler.enqueue_many("tick", [{}], connection=c),
        "schedule_many": lambda c: scheduler.schedule_many(jobs, connection=c),
    }
    with psycopg.connect(dsn) as connection:
        with pytest.raises(JobKindError):
            calls[verb](connection)
        scheduler.enqueue("kept", connection=connection)
    assert sorted(job.name for job in scheduler.jobs()) == ["kept", "tick"]


@pytest.mark.parametrize("kind", ["sync", "async", "own transaction"])
def test_what_is_refused_on_an_autocommit_connection_is_never_seen(
    dsn: str, db: Any, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """`if_exists="error"` stores and takes back in one transaction: between the two no node sees the job."""
    scheduler = scheduler_on(dsn, register=(Call(JobConfig(name="mail")),))
    scheduler.enqueue("mail", key="k")
    assert scheduler.run_pending().completed == 1
    others_see: list[int] = []

    def look() -> None:
        others_see.append(db.execute("select count(*) from pgscheduler_jobs").fetchone()[0])

    execute, execute_async = _foreign.execute, _foreign.execute_async

    def watched(*given: Any) -> Any:
        row = execute(*given)
        look()
        return row

    async def watched_async(*given: Any) -> Any:
        row = await execute_async(*given)
        look()
        return row

    monkeypatch.setattr(_foreign, "execute", watched)
    monkeypatch.setattr(_foreign, "execute_async", watched_async)

    def refused(connection: Any) -> Any:
        return scheduler.enqueue("mail", key="k", if_exists="error", connection=connection)

    async def go() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            with pytest.raises(DuplicateJobError, match="ended already"):
                await refused(connection)
            assert (
                await scheduler.enqueue("new", key="k", if_exists="error", connection=connection)
            ).name == "new"

    if kind == "async":
        asyncio.run(go())
    else:
        with psycopg.connect(dsn, autocommit=True) as connection:
            with ExitStack() as stack:
                if kind == "own transaction":
                    stack.enter_context(connection.transaction())
                with pytest.raises(DuplicateJobError, match="ended already"):
                    refused(connection)
            scheduler.enqueue("new", key="k", if_exists="error", connection=connection)
    assert others_see == [0, 0, 0, 0]
    eventually(lambda: [job.name for job in scheduler.jobs()] == ["new"])


# --- a connection that cannot be used ---------------------------------------------------------------------


class Djangos:
    """As much of Django's wrapper as is asked: it connects at its first use, and knows that an atomic block has failed."""

    vendor = "postgresql"

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self.connect = connect
        self.connection: psycopg.Connection[Any] | None = None
        self.in_atomic_block = self.needs_rollback = False
        self.healthy: bool | None = None  # what its health check says, if the settings ask for one

    def close_if_health_check_failed(self) -> None:
        if self.healthy is False:
            self.connection = None

    def cursor(self) -> psycopg.Cursor[Any]:
        self.connection = self.connection or self.connect()
        return self.connection.cursor()

    def close(self) -> None:
        """By the library: the next statement connects again, but not in an atomic block."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None


class Broken:
    """Connections of each kind, made useless in each way. What is made is closed at the end."""

    def __init__(self, dsn: str) -> None:
        self._stack = ExitStack()
        self._dsn = dsn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def psycopg(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self._dsn)
        self._stack.callback(connection.close)
        return connection

    def engine(self) -> Any:
        sqlalchemy = pytest.importorskip("sqlalchemy")
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(self._dsn), poolclass=sqlalchemy.NullPool
        )
        self._stack.callback(engine.dispose)
        return engine

    def alchemy(self) -> Any:
        connection = self.engine().connect()
        self._stack.callback(connection.close)
        return connection

    def session(self, **given: Any) -> Any:
        from sqlalchemy.orm import Session

        session = Session(self.engine(), **given)
        self._stack.callback(session.close)
        return session

    def django(self) -> Djangos:
        connection = Djangos(self.psycopg)
        connection.cursor()
        self._stack.callback(connection.close)
        return connection

    def psycopg_closed(self) -> Any:
        connection = self.psycopg()
        connection.close()
        return connection

    def psycopg_failed(self) -> Any:
        connection = self.psycopg()
        with suppress(psycopg.errors.DivisionByZero):
            connection.execute("select 1 / 0")
        return connection

    def psycopg_ended_by_the_server(self) -> Any:
        connection = self.psycopg()
        with psycopg.connect(self._dsn, autocommit=True) as other:
            other.execute("select pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])
        with suppress(psycopg.OperationalError):
            connection.execute("select 1")
        return connection

    def alchemy_closed(self) -> Any:
        connection = self.alchemy()
        connection.close()
        return connection

    def alchemy_closed_below(self) -> Any:
        connection = self.alchemy()
        connection.connection.driver_connection.close()
        return connection

    def alchemy_failed(self) -> Any:
        connection = self.alchemy()
        with suppress(Exception):
            connection.exec_driver_sql("select 1 / 0")
        return connection

    def alchemy_lost_in_its_transaction(self) -> Any:
        connection = self.alchemy()
        connection.begin()
        connection.connection.driver_connection.close()
        with suppress(Exception):
            connection.exec_driver_sql("select 1")
        return connection

    def session_closed(self) -> Any:
        session = self.session(close_resets_only=False)
        session.close()
        return session

    def session_on_a_closed_connection(self) -> Any:
        from sqlalchemy.orm import Session

        return Session(self.alchemy_closed())

    def session_failed(self) -> Any:
        session = self.session()
        with suppress(Exception):
            session.connection().exec_driver_sql("select 1 / 0")
        return session

    def session_whose_flush_failed(self) -> Any:
        from sqlalchemy import Column, Integer
        from sqlalchemy.orm import declarative_base

        base: Any = declarative_base()
        absent = type("Absent", (base,), {"__tablename__": "absent", "id": Column(Integer, primary_key=True)})
        session = self.session()
        session.add(absent(id=1))
        with suppress(Exception):
            session.flush()
        return session

    def django_closed_in_its_block(self) -> Any:
        connection = self.django()
        connection.in_atomic_block = connection.needs_rollback = True
        connection.close()
        return connection

    def django_closed_below(self) -> Any:
        connection = self.django()
        assert connection.connection is not None
        connection.connection.close()
        return connection

    def django_failed(self) -> Any:
        connection = self.django()
        with suppress(psycopg.errors.DivisionByZero):
            connection.cursor().execute("select 1 / 0")
        return connection

    def django_whose_block_failed(self) -> Any:
        connection = self.django()
        connection.in_atomic_block = connection.needs_rollback = True
        return connection


CLOSED, FAILED = "^connection is closed$", "^connection is in a failed transaction: roll it back first$"
BROKEN = [
    ("psycopg_closed", CLOSED),
    ("psycopg_failed", FAILED),
    ("psycopg_ended_by_the_server", CLOSED),
    ("alchemy_closed", CLOSED),
    ("alchemy_closed_below", CLOSED),
    ("alchemy_failed", FAILED),
    ("alchemy_lost_in_its_transaction", FAILED),
    ("session_closed", CLOSED),
    ("session_on_a_closed_connection", CLOSED),
    ("session_failed", FAILED),
    ("session_whose_flush_failed", FAILED),
    ("django_closed_in_its_block", CLOSED),
    ("django_closed_below", CLOSED),
    ("django_failed", FAILED),
    ("django_whose_block_failed", FAILED),
]


@pytest.mark.parametrize(("way", "said"), BROKEN)
def test_a_connection_that_cannot_be_used(
    dsn: str, direct_dsn: str, scheduler_on: Any, way: str, said: str
) -> None:
    """Every verb that takes it says so in the same words, whoever's it is; nothing is stored."""
    scheduler = scheduler_on(dsn)
    scheduler.templates.create("T", handler="mail")
    job = Call(JobConfig.one_time("mail", key="k"))
    with Broken(direct_dsn) as broken:
        connection = getattr(broken, way)()
        verbs: list[Callable[[], Any]] = [
            lambda: scheduler.schedule(job, connection=connection),
            lambda: scheduler.enqueue("mail", connection=connection),
            lambda: scheduler.enqueue("mail", key="k", if_exists="error", connection=connection),
            lambda: scheduler.templates.enqueue("T", {}, connection=connection),
        ]
        if way.startswith("psycopg"):
            verbs.append(lambda: scheduler.schedule_many([job], connection=connection))
            verbs.append(lambda: scheduler.enqueue_many("mail", [{}], connection=connection))
            verbs.append(lambda: scheduler.enqueue_many("mail", [], connection=connection))
        for verb in verbs:
            with pytest.raises(SchedulerStateError, match=said):
                verb()
    assert scheduler.jobs() == []


@pytest.mark.parametrize(("way", "said"), [("closed", CLOSED), ("failed", FAILED)])
def test_an_async_connection_that_cannot_be_used(dsn: str, scheduler_on: Any, way: str, said: str) -> None:
    """The same, once it is awaited."""
    scheduler = scheduler_on(dsn)

    async def go() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            if way == "closed":
                await connection.close()
            else:
                with suppress(psycopg.errors.DivisionByZero):
                    await connection.execute("select 1 / 0")
            for given in ({}, {"key": "k", "if_exists": "keep"}):
                with pytest.raises(SchedulerStateError, match=said):
                    await scheduler.enqueue("mail", connection=connection, **given)

    asyncio.run(go())
    assert scheduler.jobs() == []


@pytest.mark.parametrize("way", ["psycopg", "alchemy", "session", "django"])
def test_a_connection_that_works_again(dsn: str, scheduler_on: Any, way: str) -> None:
    """After its rollback it is as good as any; one that has never been used, or was replaced, is good too."""
    scheduler = scheduler_on(dsn)
    with Broken(dsn) as broken:
        fresh = getattr(broken, way)()
        scheduler.enqueue("mail", connection=fresh)
        again = getattr(broken, f"{way}_failed")()
        (again.connection if way == "django" else again).rollback()
        scheduler.enqueue("mail", connection=again)
        if way == "django":
            for each in (fresh, again):
                each.connection.commit()
            fresh.close()  # it connects again
            again.connection.close()
            again.healthy = False  # and so does this one
            for each in (fresh, again):
                scheduler.enqueue("mail", connection=each)
                each.connection.commit()
        else:
            fresh.commit()
            again.commit()
        if way == "alchemy":
            lost = broken.alchemy_closed_below()
            with suppress(Exception):
                lost.exec_driver_sql("select 1")  # now it knows, and connects again
            scheduler.enqueue("mail", connection=lost)
            lost.commit()
    assert len(scheduler.jobs()) == {"alchemy": 3, "django": 4}.get(way, 2)
