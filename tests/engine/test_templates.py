"""Job templates: what they refuse, what a job takes from them, and that wrong parameters never launch a job."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import (
    DuplicateJobError,
    DuplicateTemplateError,
    InvalidTypeError,
    InvalidValueError,
    Job,
    JobConfig,
    JobKindError,
    JobState,
    Outcome,
    PgSchedulerError,
    RunContext,
    Scheduler,
    SchedulerConfig,
    SchedulerStateError,
    SchemaError,
    TemplateInactiveError,
    TemplateNotFoundError,
    _migrate,
    _schema,
)
from pgscheduler._sql import Names
from pgscheduler.cli import main
from tests.engine.conftest import Call, Quiet
from tests.support import ROOT

SCHEMA = {
    "type": "object",
    "required": ["month"],
    "properties": {"month": {"type": "string"}, "copies": {"type": "integer", "minimum": 1}},
}
HOUR = timedelta(hours=1)


class Report(Job):
    """Says which of its hooks were called."""

    config = JobConfig(name="report")

    def __init__(self, config: JobConfig | None = None) -> None:
        super().__init__(config)
        self.called: list[tuple[str, Any]] = []

    def init(self, ctx: RunContext) -> None:
        self.called.append(("init", ctx.parameters))

    def run(self, ctx: RunContext) -> None:
        self.called.append(("run", ctx.parameters))

    def shutdown(self, ctx: RunContext) -> None:
        self.called.append(("shutdown", ctx.parameters))


class Asynchronous(Report):
    async def run(self, ctx: RunContext) -> None:  # type: ignore[override]
        self.called.append(("run", ctx.parameters))


@pytest.fixture
def report() -> Report:
    return Report()


@pytest.fixture
def scheduler(dsn: str, scheduler_on: Callable[..., Scheduler], report: Report) -> Scheduler:
    """A node that knows `report` and runs only by run_pending()."""
    return scheduler_on(dsn, register=(report,))


# --- the templates themselves -----------------------------------------------------------------------------


def test_what_is_created_is_read(scheduler: Scheduler) -> None:
    """Every field comes back as it was given, with the defaults of 60 minutes and 3 retries."""
    made = scheduler.templates.create("MONTHLY", handler="report")
    assert made == scheduler.templates.get("MONTHLY")
    assert made.created_at == made.updated_at
    assert made.created_at.tzinfo is UTC
    assert (made.name, made.handler, made.active, made.display_order) == ("MONTHLY", "report", True, 0)
    assert (made.timeout, made.retries, made.parameters_schema) == (HOUR, 3, None)

    made = scheduler.templates.create(
        "yearly-1.0",
        name="Grüße 🎉",
        handler="another",
        parameters_schema=SCHEMA,
        timeout=1.5,
        retries=0,
        active=False,
        display_order=-7,
    )
    assert made == scheduler.templates.get("yearly-1.0")
    assert (made.name, made.handler, made.active, made.display_order) == ("Grüße 🎉", "another", False, -7)
    assert (made.timeout, made.retries, made.parameters_schema) == (timedelta(seconds=1.5), 0, SCHEMA)
    assert scheduler.templates.create("endless", handler="report", timeout=None).timeout is None


def test_a_template_as_json_can_be_given_back(scheduler: Scheduler) -> None:
    """`to_dict()` is JSON, keeps the order of a schema's fields, and what is in it `create` takes again."""
    schema = {"type": "object", "properties": {"zoo": {}, "ape": {}, "bee": {}}}
    made = scheduler.templates.create("A", handler="report", parameters_schema=schema, timeout=90)
    found = json.loads(json.dumps(made.to_dict()))
    assert found["timeout"] == 90
    assert list(found["parameters_schema"]["properties"]) == ["zoo", "ape", "bee"]
    fields = {k: v for k, v in found.items() if k not in ("code", "created_at", "updated_at")}
    again = scheduler.templates.create("B", **fields)
    assert again.to_dict() == {**made.to_dict(), "code": "B", "created_at": again.to_dict()["created_at"],
                               "updated_at": again.to_dict()["updated_at"]}  # fmt: skip
    assert scheduler.templates.update("B", **fields).parameters_schema == schema


def test_a_code_is_there_once(scheduler: Scheduler) -> None:
    """A taken code is refused by name and nothing is changed, also when two create it at the same moment."""
    made = scheduler.templates.create("A", handler="report")
    with pytest.raises(DuplicateTemplateError, match="already exists: 'A'") as refused:
        scheduler.templates.create("A", handler="another")
    assert (refused.value.code, isinstance(refused.value, ValueError)) == ("A", True)
    assert scheduler.templates.get("A") == made
    assert scheduler.templates.create("a", handler="report").code == "a"  # another letter, another code

    refusals: list[Exception] = []
    barrier = threading.Barrier(4)

    def create() -> None:
        barrier.wait()
        try:
            scheduler.templates.create("B", handler="report")
        except DuplicateTemplateError as error:
            refusals.append(error)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refusals) == 3


def test_lists_and_pages(scheduler: Scheduler) -> None:
    """In display order, then by code; all, active ones, inactive ones; in pages."""
    for code, order, active in (
        ("c", 1, True),
        ("b", 2, False),
        ("B", 2, True),
        ("a", 2, True),
        ("d", -1, False),
    ):
        scheduler.templates.create(code, handler="report", display_order=order, active=active)

    def codes(*arguments: Any, **page: int) -> str:
        return "".join(template.code for template in scheduler.templates.list(*arguments, **page))

    assert codes() == "dcBab"
    assert codes(True) == "cBa"
    assert codes(False) == "db"
    assert codes(limit=2) == "dc"
    assert codes(limit=2, offset=3) == "ab"
    assert codes(offset=5) == ""
    assert [scheduler.templates.count(which) for which in (None, True, False)] == [5, 3, 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Another"),
        ("handler", "another"),
        ("parameters_schema", {"type": "object"}),
        ("parameters_schema", None),
        ("timeout", timedelta(seconds=2)),
        ("timeout", None),
        ("retries", 0),
        ("active", False),
        ("display_order", 5),
    ],
)
def test_an_update_changes_what_is_given(
    scheduler: Scheduler, clock: Callable[..., None], field: str, value: Any
) -> None:
    """One field and `updated_at` change, the others stay."""
    made = scheduler.templates.create("A", handler="report", name="One", parameters_schema=SCHEMA)
    clock(by=HOUR)
    changed = scheduler.templates.update("A", **{field: value})
    assert changed == scheduler.templates.get("A")
    differences = {name for name, now in vars(changed).items() if now != getattr(made, name)}
    assert differences == {field, "updated_at"}
    assert getattr(changed, field) == value
    assert changed.updated_at > made.updated_at + HOUR / 2


def test_an_update_without_changes(scheduler: Scheduler) -> None:
    """It changes nothing of what the template says."""
    made = scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    changed = scheduler.templates.update("A")
    assert {**vars(changed), "updated_at": made.updated_at} == vars(made)


def test_an_unknown_code(scheduler: Scheduler) -> None:
    """Every verb says which code it does not know."""
    verbs: list[Callable[[], Any]] = [
        lambda: scheduler.templates.get("nope"),
        lambda: scheduler.templates.update("nope", retries=1),
        lambda: scheduler.templates.delete("nope"),
        lambda: scheduler.templates.enqueue("nope", {}),
    ]
    for verb in verbs:
        with pytest.raises(TemplateNotFoundError, match="not found: 'nope'") as refused:
            verb()
        assert (refused.value.code, isinstance(refused.value, LookupError)) == ("nope", True)


WRONG = [
    ("code", "", ValueError, "letters, digits"),
    ("code", "a/b", ValueError, "letters, digits"),
    ("code", "a\n", ValueError, "letters, digits"),
    ("code", "-rf", ValueError, "begin with"),
    ("code", "ä", ValueError, "letters, digits"),
    ("code", "x" * 101, ValueError, "1 to 100"),
    ("code", 5, TypeError, "str"),
    ("name", "", ValueError, "empty"),
    ("name", "a\x00", ValueError, "NUL"),
    ("handler", "", ValueError, "empty"),
    ("handler", None, TypeError, "str"),
    ("timeout", 0, ValueError, "> 0"),
    ("timeout", "1h", TypeError, "timedelta"),
    ("timeout", timedelta(days=9999), ValueError, "days"),
    ("retries", -1, ValueError, ">= 0"),
    ("retries", True, TypeError, "int"),
    ("retries", None, TypeError, "int"),
    ("active", 1, TypeError, "bool"),
    ("active", None, TypeError, "bool"),
    ("display_order", 2**31, ValueError, "<="),
    ("display_order", "1", TypeError, "int"),
    ("parameters_schema", "{}", TypeError, "mapping"),
    ("parameters_schema", True, TypeError, "mapping"),
    ("parameters_schema", {"type": "objekt"}, ValueError, r"no JSON Schema: at \$\.type: 'objekt'"),
    ("parameters_schema", {"properties": {"a": {"minimum": "1"}}}, ValueError, r"at \$\.properties\.a\.minimum"),
    ("parameters_schema", {"pattern": "("}, ValueError, r"at \$\.pattern"),
    ("parameters_schema", {"$schema": "http://example.org/mine"}, ValueError, "no draft that is known"),
    ("parameters_schema", {"$ref": "#/$defs/nothing"}, ValueError, "leads nowhere"),
    ("parameters_schema", {"$ref": "http://127.0.0.1:9/schema"}, ValueError, "leads nowhere, and none is fetched"),
    ("parameters_schema", {"items": {"$ref": "#/x"}, "x": {"not": {"$ref": "#/y"}}}, ValueError, "/y.*leads nowhere"),
    ("parameters_schema", {"anyOf": [{"$ref": "#"}]}, ValueError, "without end"),
    ("parameters_schema", {"default": float("nan")}, ValueError, "no JSON Schema"),
    ("parameters_schema", {"default": object()}, ValueError, "no JSON Schema"),
    ("parameters_schema", {"enum": [(1, 2)]}, TypeError, "not JSON"),
    ("parameters_schema", {"title": "x" * 20_000}, ValueError, "at most 16384 bytes"),
    ("parameters_schema", {"title": "\x00"}, ValueError, "NUL"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "kind", "rule"), WRONG, ids=[f"{w[0]}-{n}" for n, w in enumerate(WRONG)]
)
def test_wrong_values_are_refused(
    scheduler: Scheduler, field: str, value: Any, kind: type[Exception], rule: str
) -> None:
    """`create` and `update` name the field and the rule, and nothing is stored or changed."""
    made = scheduler.templates.create("A", handler="report")
    with pytest.raises(PgSchedulerError, match=f"(?s){field}.*{rule}") as refused:
        scheduler.templates.create(**{"code": "B", "handler": "report", field: value})
    assert isinstance(refused.value, kind)
    with pytest.raises(PgSchedulerError, match=field):
        scheduler.templates.update("A", **{field: value}) if field != "code" else scheduler.templates.get(
            value
        )
    assert scheduler.templates.list() == [made]


def test_what_an_update_may_not_change(scheduler: Scheduler) -> None:
    """The code is what jobs are listed by; a field that there is not is named with those that there are."""
    made = scheduler.templates.create("A", handler="report")
    with pytest.raises(InvalidValueError, match="code cannot be changed"):
        scheduler.templates.update("A", code="B")
    with pytest.raises(InvalidValueError, match=r"(?s)one of.*handler.*'retires'"):
        scheduler.templates.update("A", retires=3)
    assert scheduler.templates.get("A") == made


def test_wrong_pages_are_refused(scheduler: Scheduler) -> None:
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"offset": -1}, {"active": "yes"}):
        with pytest.raises(PgSchedulerError, match=next(iter(wrong))):
            scheduler.templates.list(**wrong)  # type: ignore[arg-type]


def test_a_schema_of_an_older_draft(scheduler: Scheduler) -> None:
    """A schema that says its draft is read by that draft's rules; one may refer to a published schema."""
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"n": {"type": "integer"}},
        "properties": {"list": {"items": [{"$ref": "#/definitions/n"}]}},
    }
    scheduler.templates.create("old", handler="report", parameters_schema=schema)
    assert scheduler.templates.enqueue("old", {"list": [1, "x"]}).template == "old"
    with pytest.raises(InvalidValueError, match=r"at \$\.list\[0\]: must be of type integer"):
        scheduler.templates.enqueue("old", {"list": ["x"]})

    scheduler.templates.create(
        "meta", handler="report", parameters_schema={"$ref": "https://json-schema.org/draft/2020-12/schema"}
    )
    with pytest.raises(InvalidValueError, match="do not fit"):
        scheduler.templates.enqueue("meta", {"type": 5})


def test_needs_a_scheduler_that_is_open(dsn: str) -> None:
    """Before init() and after shutdown() each verb says so; the object itself may be had at any time."""
    scheduler = Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet()))
    templates = scheduler.templates
    with pytest.raises(SchedulerStateError, match=r"init\(\) before templates\.list"):
        templates.list()
    with scheduler:
        assert templates.list() == []
    with pytest.raises(SchedulerStateError, match=r"shut down.*templates\.create"):
        templates.create("A", handler="report")


# --- jobs made from them ------------------------------------------------------------------------------------


def test_a_job_takes_what_its_template_says(scheduler: Scheduler, report: Report) -> None:
    """Handler, timeout and retries are the template's, the parameters the caller's; the job says where it is from."""
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA, timeout=90, retries=2)
    job = scheduler.templates.enqueue("A", {"month": "2027-01"})
    assert (job.name, job.key, job.priority, job.state, job.template) == ("report", None, 5, "pending", "A")
    assert job.options is not None
    assert (job.options["timeout"], job.options["retries"]) == (90, 2)
    assert job.options["metadata"] == {"job_template": "A"}
    assert scheduler.get_job(job) == job

    assert scheduler.run_pending().completed == 1
    assert [hook for hook, _ in report.called] == ["init", "run", "shutdown"]
    assert report.called[1][1] == {"month": "2027-01"}
    assert scheduler.get_job(job).template == "A"
    assert scheduler.enqueue("report").template is None


def test_a_caller_may_say_otherwise(scheduler: Scheduler) -> None:
    """Key, priority, timeout, retries, time, and any other policy; metadata is added to."""
    scheduler.templates.create("A", handler="report", timeout=None)
    at = datetime(2099, 1, 1, tzinfo=UTC)
    job = scheduler.templates.enqueue(
        "A", key="k", priority=1, timeout=HOUR, retries=0, run_at=at, max_stalls=9, metadata={"who": "Ada"}
    )
    assert (job.key, job.priority, job.run_at) == ("k", 1, at)
    assert job.options == {"timeout": 3600, "max_stalls": 9, "metadata": {"who": "Ada", "job_template": "A"}}
    later = scheduler.templates.enqueue("A", key="k", delay=HOUR)
    assert (later.id, later.options) == (job.id, {"retries": 3, "metadata": {"job_template": "A"}})

    for wrong in (
        {"metadata": {"job_template": "B"}},
        {"parameters_schema": {}},
        {"name": "x"},
        {"metadata": 5},
    ):
        with pytest.raises((InvalidValueError, InvalidTypeError), match=next(iter(wrong))):
            scheduler.templates.enqueue("A", **wrong)


def test_a_key_that_is_taken(scheduler: Scheduler) -> None:
    """What happens then is the caller's choice, as with `enqueue`."""
    scheduler.templates.create("A", handler="report")
    first = scheduler.templates.enqueue("A", {"n": 1}, key="k")
    assert scheduler.templates.enqueue("A", {"n": 2}, key="k").parameters == {"n": 2}
    kept = scheduler.templates.enqueue("A", {"n": 3}, key="k", if_exists="keep")
    assert (kept.id, kept.parameters) == (first.id, {"n": 2})
    with pytest.raises(DuplicateJobError, match="report"):
        scheduler.templates.enqueue("A", {"n": 4}, key="k", if_exists="error")
    assert [job.parameters for job in scheduler.jobs()] == [{"n": 2}]


def test_a_schema_is_stored_only_if_it_is_meant_to_be() -> None:
    """A class's own schema stays with the class; a template's travels, whatever else there is to store."""
    assert JobConfig(parameters_schema=SCHEMA).options_json() == "{}"
    stored = JobConfig(parameters_schema=_schema.StoredSchema(SCHEMA)).options_json()
    assert json.loads(stored) == {"parameters_schema": SCHEMA}


def test_in_the_callers_transaction(scheduler: Scheduler, dsn: str) -> None:
    """With `connection` the job exists if and only if the caller commits."""
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    with psycopg.connect(dsn) as connection:
        scheduler.templates.enqueue("A", {"month": "x"}, connection=connection)
        connection.rollback()
        assert scheduler.jobs() == []
        scheduler.templates.enqueue("A", {"month": "x"}, connection=connection)
    assert [job.template for job in scheduler.jobs()] == ["A"]


async def _enqueue(scheduler: Scheduler, dsn: str) -> Any:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        return await scheduler.templates.enqueue("A", {"month": "x"}, connection=connection)


def test_in_an_async_transaction(scheduler: Scheduler, dsn: str) -> None:
    """With an async connection the answer is awaited."""
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    assert asyncio.run(_enqueue(scheduler, dsn)).template == "A"
    assert len(scheduler.jobs()) == 1


@pytest.mark.parametrize(
    ("parameters", "rule"),
    [
        (None, "schema: required but missing: 'month'"),
        ({"copies": 1}, "required but missing: 'month'"),
        ({"month": 1}, r"at \$\.month: must be of type string"),
        ({"month": "x", "copies": 0}, r"at \$\.copies: must be at least 1"),
        ([], "must be of type object"),
        ({"month": {1}}, r"not JSON.*\$\.month"),
        ({"month": "x" * 100_000}, "size"),
    ],
)
def test_parameters_that_do_not_fit_are_not_stored(scheduler: Scheduler, parameters: Any, rule: str) -> None:
    """The error names the place and the rule, not the value; nothing is stored."""
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    with pytest.raises((InvalidValueError, InvalidTypeError), match=f"parameters.*{rule}") as refused:
        scheduler.templates.enqueue("A", parameters)
    with pytest.raises(type(refused.value), match=re.escape(str(refused.value))):
        scheduler.templates.validate("A", parameters)
    assert scheduler.jobs() == []


def test_parameters_are_checked_without_a_job(scheduler: Scheduler) -> None:
    """`validate` accepts what fits, with or without a schema, and refuses what is too large to be stored."""
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    scheduler.templates.create("free", handler="report")
    for code, parameters in (("A", {"month": "x"}), ("free", [1, None]), ("free", None)):
        scheduler.templates.validate(code, parameters)
    with pytest.raises(InvalidValueError, match="parameters"):
        scheduler.templates.validate("free", "x" * scheduler.config.max_parameters_bytes)
    with pytest.raises(TemplateNotFoundError):
        scheduler.templates.validate("nope")
    assert scheduler.jobs() == []


def test_a_template_of_a_shipped_kind_asks_that_kind(scheduler: Scheduler) -> None:
    """Whatever its own schema says: what the kind would refuse is stored by nobody, and `validate` says so."""
    scheduler.templates.create("CALL", handler="http_job", parameters_schema={"type": "object"})
    good, bad = (
        {"url": "https://example.com/", "method": "GET"},
        {"url": "ftp://example.com/", "method": "GET"},
    )
    scheduler.templates.validate("CALL", good)
    with pytest.raises(InvalidValueError, match="HttpParameters") as refused:
        scheduler.templates.enqueue("CALL", bad)
    with pytest.raises(InvalidValueError, match=re.escape(str(refused.value))):
        scheduler.templates.validate("CALL", bad)
    assert scheduler.jobs() == []


def test_an_inactive_template_makes_no_job(scheduler: Scheduler) -> None:
    """It is refused by its code until it is active again."""
    scheduler.templates.create("A", handler="report", active=False)
    scheduler.templates.validate("A")
    with pytest.raises(TemplateInactiveError, match="not active: 'A'") as refused:
        scheduler.templates.enqueue("A")
    assert (refused.value.code, isinstance(refused.value, RuntimeError)) == ("A", True)
    assert scheduler.jobs() == []
    scheduler.templates.update("A", active=True)
    assert scheduler.templates.enqueue("A").template == "A"


def test_a_recurring_handler_is_refused(scheduler: Scheduler) -> None:
    """One-time jobs may not share a recurring job's name, whoever makes them."""
    scheduler.schedule(Call(JobConfig.recurring("nightly", "@daily")))
    scheduler.templates.create("A", handler="nightly")
    with pytest.raises(JobKindError, match="nightly"):
        scheduler.templates.enqueue("A")


def test_jobs_and_runs_are_listed_by_template(scheduler: Scheduler) -> None:
    """Live jobs and history, and their numbers; what only looks like a template's is not listed."""
    for code in ("A", "AB"):
        scheduler.templates.create(
            code, handler="report", parameters_schema={"default": {"job_template": "AB"}}
        )
    scheduler.enqueue("report", metadata={"x": {"job_template": "A"}}, priority=1)
    scheduler.enqueue("report", priority=1)
    first, other = scheduler.templates.enqueue("A"), scheduler.templates.enqueue("AB")
    assert scheduler.run_pending(4).completed == 4
    second = scheduler.templates.enqueue("A")
    scheduler.enqueue("report", metadata={"x": {"job_template": "A"}})
    assert [job.id for job in scheduler.jobs(template="A")] == [second.id]
    assert [run.job_id for run in scheduler.runs(template="A")] == [first.id]
    assert [run.job_id for run in scheduler.runs(template="AB")] == [other.id]
    assert scheduler.runs(template="B") == []
    assert (scheduler.count_jobs(template="A"), scheduler.count_runs(template="A")) == (1, 1)
    assert (scheduler.count_jobs(template="AB"), scheduler.count_runs(template="nope")) == (0, 0)


def test_changes_are_for_jobs_to_come(scheduler: Scheduler, report: Report) -> None:
    """A job keeps the schema and policies with which it was stored, also when its template is changed or deleted."""
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    job = scheduler.templates.enqueue("A", {"month": "2027-01"})
    other = {"required": ["year"]}
    scheduler.templates.update("A", parameters_schema=other, handler="another", retries=0, active=False)
    assert scheduler.get_job(job) == job
    scheduler.templates.delete("A")
    assert scheduler.get_job(job) == job

    assert scheduler.run_pending().completed == 1
    assert len(report.called) == 3
    with pytest.raises(TemplateNotFoundError):
        scheduler.templates.get("A")
    assert (
        scheduler.templates.create("A", handler="report").parameters_schema is None
    )  # the code is free again


# --- before the run -----------------------------------------------------------------------------------------


def spoil(db: psycopg.Connection[Any], parameters: str | None = '{"month": 1}') -> None:
    """Somebody changes the stored parameters behind the scheduler's back."""
    db.execute("update pgscheduler_jobs set parameters = %s", [parameters])


@pytest.mark.parametrize("isolation", ["thread", "async", "process"])
def test_wrong_parameters_never_launch_a_job(
    dsn: str, db: psycopg.Connection[Any], scheduler_on: Callable[..., Scheduler], isolation: str
) -> None:
    """No hook is called, the run has failed with place and rule as its reason, and there is no other attempt."""
    job = (Asynchronous if isolation == "async" else Report)()
    scheduler = scheduler_on(dsn, register=(job,))
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA, retries=3)
    stored = scheduler.templates.enqueue("A", {"month": "x"}, isolation=isolation)
    spoil(db)

    assert scheduler.run_pending().failed == 1

    assert job.called == []
    (run,) = scheduler.runs(stored)
    reason = "parameters do not fit their schema at $.month: must be of type string"
    assert (run.outcome, run.reason, run.started_at) == (Outcome.FAILED, reason, None)
    ended = scheduler.get_job(stored)
    assert (ended.state, ended.last_error, ended.template) == (JobState.FAILED, reason, "A")
    assert scheduler.jobs() == []


@pytest.mark.parametrize("parameters", [None, "0", "[]", "null", "{}"])
def test_absent_and_empty_parameters_are_checked_too(
    scheduler: Scheduler, report: Report, db: psycopg.Connection[Any], parameters: str | None
) -> None:
    """What is false in Python is not taken for nothing."""
    schema = {"type": "object", "required": ["month"]}
    scheduler.templates.create("A", handler="report", parameters_schema=schema)
    scheduler.templates.enqueue("A", {"month": "x"})
    spoil(db, parameters)
    assert scheduler.run_pending().failed == 1
    assert report.called == []


def test_a_started_node_checks_too(
    dsn: str, db: psycopg.Connection[Any], scheduler_on: Callable[..., Scheduler], report: Report
) -> None:
    """The same on a node's own threads; its slot goes on to the next job."""
    scheduler = scheduler_on(dsn)
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    wrong = scheduler.templates.enqueue("A", {"month": "x"})
    spoil(db)
    good = scheduler.templates.enqueue("A", {"month": "y"})
    scheduler.register(report)
    scheduler.start()
    assert scheduler.wait(wrong, 20).state is JobState.FAILED
    assert scheduler.wait(good, 20).state is JobState.COMPLETED
    assert [parameters for hook, parameters in report.called if hook == "run"] == [{"month": "y"}]


def test_a_retry_is_checked_too(scheduler: Scheduler, report: Report, db: psycopg.Connection[Any]) -> None:
    """`retry` of a run stores the job with the schema that it had."""
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    scheduler.templates.enqueue("A", {"month": "x"})
    scheduler.run_pending()
    again = scheduler.retry(scheduler.runs()[0])
    assert again.template == "A"
    spoil(db)
    assert scheduler.run_pending().failed == 1
    assert len(report.called) == 3


def test_an_update_of_a_job_is_checked(scheduler: Scheduler, report: Report) -> None:
    """`Scheduler.update` refuses parameters that do not fit, and keeps what says where the job is from."""
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    job = scheduler.templates.enqueue("A", {"month": "x"})
    with pytest.raises(InvalidValueError, match=r"at \$\.month: must be of type string"):
        scheduler.update(job, parameters={"month": 5})
    changed = scheduler.update(job, parameters={"month": "y"}, metadata={"who": "Ada"}, retries=1)
    assert (changed.parameters, changed.template) == ({"month": "y"}, "A")
    assert changed.options is not None
    assert changed.options["metadata"] == {"who": "Ada", "job_template": "A"}
    assert changed.options["parameters_schema"] == SCHEMA
    assert scheduler.run_pending().completed == 1


@pytest.fixture
def without_jsonschema(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the extra were not installed."""
    for name in ("jsonschema", "jsonschema_specifications"):
        monkeypatch.setitem(sys.modules, name, None)
    _schema._validator.cache_clear()
    yield
    _schema._validator.cache_clear()


def test_without_the_extra(without_jsonschema: None, scheduler: Scheduler, report: Report) -> None:
    """Templates without a schema work; with one, the error names the extra and nothing is stored."""
    scheduler.templates.create("plain", handler="report")
    scheduler.templates.enqueue("plain")
    assert scheduler.run_pending().completed == 1
    with pytest.raises(InvalidValueError, match=r'pip install "pgscheduler\[schema\]"'):
        scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    assert scheduler.templates.count() == 1


def test_a_node_without_the_extra_leaves_the_job_to_others(
    scheduler: Scheduler, report: Report, request: pytest.FixtureRequest
) -> None:
    """It cannot tell whether they fit, so it does not run it: the job waits a minute, and no attempt is burned."""
    scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    job = scheduler.templates.enqueue("A", {"month": "x"})
    request.getfixturevalue("without_jsonschema")
    scheduler.run_pending()
    assert report.called == []
    (run,) = scheduler.runs(job)
    assert (run.outcome, "pgscheduler[schema]" in (run.reason or "")) == (Outcome.INTERRUPTED, True)
    waiting = scheduler.get_job(job)
    assert (waiting.state, waiting.attempt) == (JobState.PENDING, 1)
    assert waiting.run_at > job.run_at + timedelta(seconds=30)


# --- the table ------------------------------------------------------------------------------------------------


def test_a_node_goes_on_while_the_tables_are_upgraded(
    dsn: str, db: psycopg.Connection[Any], scheduler_on: Callable[..., Scheduler], report: Report
) -> None:
    """A node that was started before the migration runs jobs during and after it, and then has templates too."""
    scheduler = scheduler_on(dsn, start=True, register=(report,))
    db.execute("drop table pgscheduler_templates")
    db.execute("delete from pgscheduler_migrations where version > 1")
    assert scheduler.wait(scheduler.enqueue("report"), 20).state is JobState.COMPLETED
    with pytest.raises(SchemaError, match="pgscheduler migrate"):
        scheduler.templates.list()
    with pytest.raises(SchemaError, match="older than"):
        scheduler_on(dsn)

    with psycopg.connect(dsn) as connection:  # the migration is under way, and not committed
        connection.execute(_migrate.migrations()[1][2].replace("{templates}", "pgscheduler_templates").replace(
            "{templates_schema}", "pgscheduler_templates_schema"))  # fmt: skip
        assert scheduler.wait(scheduler.enqueue("report"), 20).state is JobState.COMPLETED
        connection.rollback()

    with psycopg.connect(dsn, autocommit=True) as connection:
        assert _migrate.migrate(connection, Names("public", "pgscheduler_")) == len(_migrate.migrations()) - 1
    assert scheduler.wait(scheduler.enqueue("report"), 20).state is JobState.COMPLETED
    assert scheduler.templates.create("A", handler="report").code == "A"
    assert scheduler.wait(scheduler.templates.enqueue("A"), 20).state is JobState.COMPLETED


def test_two_prefixes_have_templates_of_their_own(
    dsn: str, scheduler: Scheduler, scheduler_on: Callable[..., Scheduler]
) -> None:
    """What is stored under one prefix is not seen under another; `remove` takes the templates along."""
    other = scheduler_on(dsn, create_schema=True, table_prefix="p" * 40)
    scheduler.templates.create("A", handler="report")
    assert other.templates.list() == []
    assert other.templates.create("A", handler="another").handler == "another"
    other.shutdown()
    with psycopg.connect(dsn, autocommit=True) as connection:
        _migrate.remove(connection, Names("public", "p" * 40))
        left = connection.execute("select relname from pg_class where relname like 'pppp%'").fetchall()
    assert left == []
    assert scheduler.templates.count() == 1


def test_the_table_refuses_what_is_no_object(db: psycopg.Connection[Any]) -> None:
    """Nobody can store by hand a schema that the templates could not read."""
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute(
            "insert into pgscheduler_templates (code, name, handler, parameters_schema, created_at, updated_at)"
            " values ('A', 'A', 'report', '[]', now(), now())"
        )


def test_the_readmes_example_runs(scheduler: Scheduler, report: Report) -> None:
    """What the README shows can be copied."""
    (program,) = (
        text
        for text in re.findall(
            r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        if "templates.create" in text
    )
    exec(compile(program, "README.md", "exec"), {"scheduler": scheduler})
    assert scheduler.run_pending().completed == 1
    assert report.called[1] == ("run", {"month": "2027-01"})


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def say(dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run `pgscheduler …`; what it printed, as JSON if it was asked for. `status` is what it must end with."""
    monkeypatch.setenv("PGSCHEDULER_DSN", dsn)

    def run(*arguments: object, status: int = 0) -> Any:
        assert main([*map(str, arguments)]) == status
        said = capsys.readouterr()
        if status:
            assert said.out == ""
            assert len(said.err.splitlines()) == 1
            return said.err
        assert said.err == ""
        return json.loads(said.out) if "--json" in arguments else said.out

    return run


def test_the_command_from_create_to_delete(
    say: Callable[..., Any], scheduler: Scheduler, tmp_path: Any
) -> None:
    """A template is created, shown, listed, changed, used and deleted on the command line, as text and as JSON."""
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    assert say("templates", "list") == "no templates\n"
    made = say("templates", "create", "A", "--handler", "report", "--name", "Monthly", "--parameters-schema", f"@{file}",
               "--timeout", 90, "--retries", 1, "--order", 2, "--json")  # fmt: skip
    assert made == scheduler.templates.get("A").to_dict()
    assert (made["name"], made["timeout"], made["retries"], made["display_order"]) == ("Monthly", 90, 1, 2)
    assert made["parameters_schema"] == SCHEMA
    assert say("templates", "show", "A", "--json") == made
    assert "minimum" in say("templates", "show", "A")

    job = say(
        "templates",
        "enqueue",
        "A",
        "--params",
        '{"month": "x"}',
        "--key",
        "k",
        "--timeout",
        5,
        "--priority",
        1,
        "--json",
    )
    assert (job["name"], job["key"], job["priority"], job["options"]["timeout"]) == ("report", "k", 1, 5)
    assert job["options"]["retries"] == 1
    every = ("--backoff", "5:2", "--max-stalls", 7, "--isolation", "process", "--metadata", '{"team": "x"}')
    other = say("templates", "enqueue", "A", "--params", '{"month": "x"}', *every, "--json")
    assert (other["options"]["backoff"], other["options"]["max_stalls"]) == ([5, 2, 3600, 0.1], 7)
    assert other["options"]["metadata"] == {"team": "x", "job_template": "A"}
    assert other["options"]["timeout"] == 90
    scheduler.delete(other["id"], history=True)

    again = ("templates", "enqueue", "A", "--params", '{"month": "x"}', "--key", "k", "--if-exists")
    assert "exists already" in say(*again, "error", status=1)
    assert say(*again, "keep", "--expires-in", 60, "--json")["options"]["timeout"] == 5
    assert say(*again, "update", "--expires-in", 60, "--json")["options"]["expires_in"] == 60
    fits = ("templates", "validate", "A", "--params", '{"month": "x"}')
    assert say(*fits) == "the parameters fit template A\n"
    assert say(*fits, "--json") == {"code": "A", "result": "valid"}

    (listed,) = say("jobs", "--template", "A", "--json")
    assert listed["id"] == job["id"]
    assert say("runs", "--template", "A", "--json") == []

    changed = say(
        "templates", "update", "A", "--inactive", "--no-timeout", "--no-parameters-schema", "--json"
    )
    assert (changed["active"], changed["timeout"], changed["parameters_schema"]) == (False, None, None)
    assert (changed["name"], changed["retries"]) == ("Monthly", 1)
    assert "none" in say("templates", "show", "A")
    say("templates", "create", "B", "--handler", "report")
    assert [one["code"] for one in say("templates", "list", "--json")] == ["B", "A"]
    assert [one["code"] for one in say("templates", "list", "--inactive", "--json")] == ["A"]
    assert [one["code"] for one in say("templates", "list", "--limit", 1, "--offset", 1, "--json")] == ["A"]
    assert "inactive" in say("templates", "list")

    assert say("templates", "delete", "A", "--yes", "--json") == {"code": "A", "result": "deleted"}
    assert "is deleted" in say("templates", "delete", "B", "--yes")
    assert scheduler.templates.list() == []
    assert len(scheduler.jobs()) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "Missing command"),
        (["create", "B"], 2, "--handler"),
        (["create", "A", "--handler", "x"], 1, "already exists: 'A'"),
        (["create", "a b", "--handler", "x"], 2, "code"),
        (["create", "B", "--handler", "x", "--parameters-schema", "{"], 2, "--parameters-schema is not JSON"),
        (["create", "B", "--handler", "x", "--parameters-schema", '{"type": 5}'], 2, "no JSON Schema"),
        (["create", "B", "--handler", "x", "--timeout", "1", "--no-timeout"], 2, "exclude"),
        (["update", "A"], 2, "what to change"),
        (["update", "nope", "--retries", "1"], 1, "not found: 'nope'"),
        (["update", "A", "--parameters-schema", "{}", "--no-parameters-schema"], 2, "exclude"),
        (["show", "nope"], 1, "not found"),
        (["delete", "nope", "--yes"], 1, "not found"),
        (["delete", "A"], 2, "nothing was deleted.*--yes"),
        (["enqueue", "A", "--params", "{}"], 2, "required but missing: 'month'"),
        (["validate", "A", "--params", "{}"], 2, "required but missing: 'month'"),
        (["validate", "A"], 2, "required but missing: 'month'"),
        (["validate", "A", "--params", "{"], 2, "params is not JSON"),
        (["validate", "nope"], 1, "not found: 'nope'"),
        (["enqueue", "A", "--at", "2027-01-31T09:00Z", "--delay", "3"], 2, "--at.*--delay"),
        (["enqueue", "A", "--no-timeout"], 2, "--no-timeout is for the template"),
        (["list", "--limit", "0"], 2, "limit"),
    ],
)
def test_the_command_refuses(
    say: Callable[..., Any], scheduler: Scheduler, arguments: list[str], status: int, words: str
) -> None:
    """Each refusal is one line that says why, and nothing is changed or stored."""
    made = scheduler.templates.create("A", handler="report", parameters_schema=SCHEMA)
    assert re.search(words, say("templates", *arguments, status=status))
    assert scheduler.templates.list() == [made]
    assert scheduler.jobs() == []
