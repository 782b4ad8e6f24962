"""P13: nothing that the database holds is executed, imported or spliced into SQL, and no secret is shown."""

from __future__ import annotations

import ast
import copy
import dataclasses
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog

import pgscheduler
from pgscheduler import (
    InvalidTypeError,
    InvalidValueError,
    Job,
    JobConfig,
    JobState,
    PgSchedulerError,
    Scheduler,
    SchedulerConfig,
)

SILENT = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
PACKAGE = Path(pgscheduler.__file__).parent
CANARY = "canary-in-the-mine"
HOSTILE = [
    "os.system",
    "builtins:exec",
    "this",
    "antigravity",
    "pgscheduler.embedded:start",
    "__import__('this')",
]


class Known(Job):
    def run(self, ctx: Any) -> Any:
        return ctx.parameters


# --- names -------------------------------------------------------------------------------------------


def test_a_name_that_nobody_registered_is_neither_run_nor_imported(dsn: str, db: Any) -> None:
    """Rows that name modules and functions stay pending, and nothing is imported for them; other jobs run."""
    for name in HOSTILE:
        db.execute(
            "insert into pgscheduler_jobs (name, run_at, scheduled_at, created_at, parameters, options)"
            " values (%s, now(), now(), now(), %s, %s)",
            [name, '["echo owned"]', '{"isolation": "process", "backoff": "class"}'],
        )
    before = set(sys.modules)
    config = SchedulerConfig(dsn=dsn, logger=SILENT, run_immediately=True)
    with Scheduler(config) as node:
        node.register(Known)
        node.start()
        assert node.wait(node.enqueue("known", 1), timeout=20).result == 1

        assert {job.state for job in node.jobs()} == {JobState.PENDING}
        assert {job.name for job in node.jobs()} == set(HOSTILE)
        assert node.runs(outcome="failed") == []
    assert {"this", "antigravity"} & (set(sys.modules) - before) == set()


def test_a_schedule_that_names_a_class_is_not_resolved(dsn: str, db: Any) -> None:
    """A row's custom schedule names a class; a node that did not bring that class does not look for it."""
    db.execute(
        "insert into pgscheduler_jobs (name, key, run_at, scheduled_at, created_at, schedule)"
        """ values ('known', 'k', now(), now(), now(), '{"custom": "this.Zen", "value": "exec(1)"}')"""
    )
    with Scheduler(SchedulerConfig(dsn=dsn, logger=SILENT)) as node:
        node.register(Known)

        node.run_pending()

        (job,) = node.jobs()
        assert (job.state, job.failures) == (JobState.PENDING, 0)
    assert "this" not in sys.modules


def test_parameters_are_data(dsn: str, db: Any) -> None:
    """Parameters that look like pickles, YAML tags or code arrive as the JSON that they are."""
    hostile = {
        "__reduce__": ["os.system", ["true"]],
        "py/object": "os.system",
        "!!python/object/apply": "os.system",
        "pickle": "gASVCwAAAAAAAACMBHRoaXOULg==",
        "code": "'); drop table pgscheduler_jobs; --",
        "format": "{0.__class__} %s %(x)s ${HOME}",
    }
    with Scheduler(SchedulerConfig(dsn=dsn, logger=SILENT)) as node:
        node.register(Known)
        job = node.enqueue("known", hostile, key=hostile["code"])
        node.run_pending()
        assert node.get_job(job).result == hostile


# --- the source --------------------------------------------------------------------------------------


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield str(file.relative_to(PACKAGE)), ast.parse(file.read_text(encoding="utf-8"))


def _calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call, by its dotted name as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN = re.compile(
    r"(?:builtins\.)?(?:eval|exec|compile|execfile|__import__)"
    r"|(?:\w+\.)*(?:pickle|cPickle|marshal|shelve|dill|cloudpickle)\.\w+"
    r"|(?:\w+\.)*(?:loads|load)\b(?<!json\.loads)(?<!json\.load)"
    r"|yaml\.(?:load|unsafe_load|full_load)|os\.(?:system|popen)|\w*subprocess\.getoutput"
)
# A run's order crosses a private pipe between a node and the child that it started itself.
ALLOWED = {
    ("_processes.py", "pickle.dumps"),
    ("_processes.py", "pickle.loads"),
    # Our own reader of YAML, which makes text, numbers, lists and mappings and knows no tags.
    ("cli/_options.py", "definitions.load"),
    # Text, numbers, dates, lists and tables.
    ("_settings.py", "tomllib.loads"),
}


def test_the_package_evaluates_and_unpickles_nothing() -> None:
    """No eval, exec, pickle, marshal or unsafe YAML anywhere but in the private pipe; no shell."""
    found = set()
    for name, tree in _sources():
        for called, call in _calls(tree):
            if FORBIDDEN.fullmatch(called):
                found.add((name, called))
            shell = [k for k in call.keywords if k.arg == "shell"]
            assert not shell or ast.unparse(shell[0].value) == "False", (name, ast.unparse(call))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve", "dill"):
                found.add((name, f"from {node.module}"))
    assert found == ALLOWED


def test_no_statement_is_spliced_together() -> None:
    """What reaches execute() is never formatted text, but for the listener's channel, which is our own digest."""
    found = set()
    for name, tree in _sources():
        for called, call in _calls(tree):
            if (
                called.rpartition(".")[2] not in ("execute", "executemany", "copy", "exec_driver_sql")
                or not call.args
            ):
                continue
            first = call.args[0]
            spliced = isinstance(first, ast.JoinedStr | ast.BinOp) or (
                isinstance(first, ast.Call)
                and isinstance(first.func, ast.Attribute)
                and first.func.attr in ("format", "join")
                and "sql.SQL" not in ast.unparse(first)
            )
            if spliced:
                found.add((name, ast.unparse(first)))
    assert found <= {("_listener.py", "f'listen {self._store.names.channel}'")}


# --- identifiers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["table_prefix", "schema"])
@pytest.mark.parametrize(
    "hostile",
    ['a"; drop table x; --', "a'b", "a b", "a;", "A_", "a.b", "a-b", "1a", "ä", "a\n", "a\x00", "pg_x", "x" * 64, "%s", "{jobs}"],
)  # fmt: skip
def test_hostile_identifiers_are_refused(field: str, hostile: str) -> None:
    """A prefix or a schema that is not a plain lower-case identifier, or that PostgreSQL would cut, is refused."""
    with pytest.raises(InvalidValueError, match=field):
        SchedulerConfig(dsn="dbname=x", **{field: hostile})


def test_a_reserved_word_is_a_fine_schema_because_identifiers_are_quoted(empty_dsn: str) -> None:
    """Schema `select` and prefix `user`: everything works, so every name is quoted."""
    with psycopg.connect(empty_dsn, autocommit=True) as db:
        db.execute('create schema "select"')
    config = SchedulerConfig(
        dsn=empty_dsn, logger=SILENT, schema="select", table_prefix="user", create_schema=True
    )
    with Scheduler(config) as node:
        node.register(Known)
        job = node.enqueue("known", key="k")
        node.pause(job)
        node.resume(job)
        assert node.run_pending().completed == 1
        node._node.maintenance.step()
        assert len(node.runs(job.id)) == 1
        assert node.stats()["states"] == {}


# --- secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        f"postgresql://u:{CANARY}@h/db?bogus=1",
        f"postgresql://u:{CANARY}@h:port/db",
        f"host=h password={CANARY} nonsense",
        f"password='{CANARY}",
        f"postgresql://u:{CANARY}@[::1/db",
        f"postgresql://u:{CANARY}@h/db".encode(),
        {"dsn": CANARY},
    ],
    ids=range(7),
)
def test_a_bad_dsn_is_not_repeated(given: Any) -> None:
    """The error about a malformed DSN does not show it."""
    try:
        shown = repr(SchedulerConfig(dsn=given))
    except (InvalidValueError, InvalidTypeError) as error:
        shown = f"{error} {error!r} {vars(error)} {error.__cause__!r}"
    assert CANARY not in shown


@pytest.mark.parametrize("given", [f"postgresql://u:{CANARY}@h/db", {"dsn": f"postgresql://u:{CANARY}@h/db"}])
def test_a_dsn_in_the_place_of_a_config_is_not_repeated(given: Any) -> None:
    """Scheduler(dsn) is a likely slip; the error names the type and not the value."""
    with pytest.raises(InvalidTypeError, match="SchedulerConfig") as caught:
        Scheduler(given)
    assert CANARY not in f"{caught.value} {caught.value!r} {vars(caught.value)}"


class Transacts(Job):
    def run(self, ctx: Any) -> None:
        ctx.log.info("trying")
        with ctx.transaction():
            raise AssertionError("there is no connection to be had")


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_the_password_reaches_no_log_no_record_and_no_error(
    dsn: str, db: Any, proxy_to: Any, eventually: Any, caplog: Any, isolation: Any
) -> None:
    """Through a run whose every connection breaks and fails, at the most talkative level, the DSN's password
    appears in no log line, repr, record or error text."""
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    def keep(_: object, level: str, event: dict[str, Any]) -> Any:
        said.append(
            f"{level} {event!r} {vars(event.get('exc_info')) if event.get('exc_info') not in (None, True) else ''}"
        )
        raise structlog.DropEvent

    logger = structlog.wrap_logger(None, processors=[keep], wrapper_class=structlog.stdlib.BoundLogger)
    proxy = proxy_to(dsn)
    secret = psycopg.conninfo.make_conninfo(proxy.dsn, password=CANARY)
    config = SchedulerConfig(
        dsn=secret, logger=logger, run_immediately=True, heartbeat_interval=0.2, no_heartbeat_timeout=60,
        connect_timeout=2, shutdown_timeout=2,
    )  # fmt: skip
    errors: list[BaseException] = []
    node = Scheduler(config)
    node.init()
    job = node.schedule(Transacts(JobConfig(name="transacts", isolation=isolation, run_at=None, delay=3600)))
    node.start()
    proxy.refuse()
    for verb in (lambda: node.get_job(job), lambda: node.enqueue("x"), node.nodes):
        try:
            verb()
        except PgSchedulerError as error:
            errors.append(error)
    eventually(lambda: node.node_stats()["loops"]["heartbeat"]["failures"] >= 2, timeout=20)
    proxy.heal()
    # Its transaction goes to a port where nobody is.
    eventually(lambda: node.node_stats()["loops"]["heartbeat"]["failures"] == 0, timeout=20)
    wrong = psycopg.conninfo.make_conninfo(secret, port=1)
    broken = copy.copy(node._store)
    broken._conninfo = wrong
    node._node._store = broken  # the runs' transactions use it; the loops have the good one
    home = dataclasses.replace(node._node.processes._home(), conninfo=wrong)
    node._node.processes._home = lambda: home
    node.trigger(job)
    ended = node.wait(job, timeout=30)
    node.shutdown()

    assert ended.state is JobState.FAILED
    assert "cannot connect" in (ended.last_error or "")
    assert len(errors) == 3
    assert said
    assert caplog.text
    rows = [
        str(db.execute(f"select * from pgscheduler_{t}").fetchall())
        for t in ("jobs", "runs", "run_logs", "nodes")
    ]
    shown = [
        repr(config),
        str(config),
        repr(node),
        repr(home),
        repr(node._store),
        str(ended),
    ]
    texts = [f"{e} {e!r} {e.__cause__} {e.__cause__!r}" for e in errors]
    everything = [*said, caplog.text, *rows, *shown, *texts]
    assert [text for text in everything if CANARY in text] == []
    applications = db.execute("select application_name, query from pg_stat_activity").fetchall()
    assert CANARY not in str(applications)
