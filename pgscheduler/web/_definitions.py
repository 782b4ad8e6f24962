"""`/api/v1/definitions`: the recurring jobs of a source, as a definitions file has them, in JSON.

What may surprise: `plan` changes nothing, so it takes a token that may only read. But whoever compares can guess: what
would be shown as `***` is compared only for those who may write it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any

from fastapi import Body, Request
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    RootModel,
    Tag,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError
from starlette.concurrency import run_in_threadpool

from pgscheduler import errors as e
from pgscheduler._declared import MARK, Action, Definitions, Plan
from pgscheduler.client._declaring import whose
from pgscheduler.definitions import DefinitionError, schema
from pgscheduler.definitions._document import definitions_in
from pgscheduler.definitions._yaml import MAX_DEPTH, MAX_VALUES, Node
from pgscheduler.jobs._secrets import shown, shown_change

from ._audit import note
from ._common import NoQuery, Open, router
from ._errors import ApiError, Code, answers
from ._fields import MAX_ID, Answer, Given, Json, Name, Seconds, camel_to_snake, integral
from ._guard import caller_of
from ._waiting import Patience

__all__ = ["definitions"]

definitions = router("definitions", "/api/v1/definitions")

MAX_JOBS = 5000  # the schema's
TIMEOUTS = frozenset({"timeout", "timeout_seconds"})
KEY = 1  # the column of a key, for it stands where its value does
LEAST = 0.001  # seconds of a timeout, as of any job's here
_FIRST = re.compile(r", first on line (\d+)\Z")


# --- what is sent -------------------------------------------------------------------------------------------


@cache
def _schema_of(part: str) -> dict[str, Any]:
    """A part of the shipped schema, whole, and with what only a description can say to its reader."""
    shipped = schema()

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(one) for one in value]
        if not isinstance(value, dict):
            return value
        found = {name: plain(one) for name, one in value.items() if name != "$ref"}
        if "$ref" in value:
            found = {**plain(shipped["$defs"][value["$ref"].rpartition("/")[2]]), **found}
        return found

    found: dict[str, Any] = plain({"job": {"$ref": "#/$defs/job"}, **shipped["properties"]}[part])
    fields = found["properties"]
    limit = {"type": "number", "minimum": LEAST, "maximum": fields["timeout"]["maximum"]}
    for name in TIMEOUTS:
        fields[name] = {"description": fields[name]["description"], **limit}
    formats = {"name": "name", "job": "name", "cron": "cron", "schedule": "cron", "timezone": "timezone"}
    for name in fields.keys() & formats.keys():
        fields[name]["format"] = formats[name]
    if part == "job":
        fields["metadata"]["not"] = {"required": [MARK]}
        fields["job"]["pattern"] = r"^[^.:/\\]+$"
        fields["command"] = {
            "description": fields["command"]["description"],
            "anyOf": [
                {"type": "string", "pattern": r"\S"},
                {
                    "type": "array",
                    "minItems": 1,
                    "prefixItems": [{"type": "string", "pattern": r"\S"}],
                    "items": {"type": "string"},
                },
            ],
        }
        beside = {"timeout": {"type": ["number", "null"], **{k: v for k, v in limit.items() if k != "type"}}}
        found["allOf"].append(
            {
                "if": {"required": ["command"]},
                "then": {
                    "properties": {
                        "parameters": {"type": "object", "additionalProperties": False, "properties": beside}
                    }
                },
            }
        )
    return found


class _Described(RootModel[dict[str, Any]]):
    """An object that the shipped schema describes, and that is checked by it."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """Its own keys in the spelling of the schema; and 3.0 is an integer in JSON."""
        found = camel_to_snake(value)
        if not isinstance(found, dict):
            return found
        inner = found.get("parameters") if "command" in found else None
        for place, fields in (("", found), ("parameters.", inner if isinstance(inner, dict) else {})):
            for name in TIMEOUTS & fields.keys():
                if isinstance(fields[name], float) and 0 < fields[name] < LEAST:
                    raise ValueError(f"{place}{name} must be at least {LEAST}")
        return {
            name: int(one) if isinstance(one, float) and one.is_integer() and name != "parameters" else one
            for name, one in found.items()
        }


class DefinedJob(_Described):
    """One recurring job."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"title": cls.__name__, **_schema_of("job")}


class JobDefaults(_Described):
    """Policies and time zone of all jobs that do not say otherwise."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"title": cls.__name__, **_schema_of("defaults")}


class DeclaredJobs(Given):
    """All recurring jobs of one source. A definitions file as JSON is such a document, if it names its source."""

    source: Name = Field(description="Whose jobs these are; unique per database and table prefix.")
    jobs: Annotated[list[DefinedJob], Field(max_length=MAX_JOBS)] = Field(
        description="The jobs, in any order. An empty list retires all jobs of the source."
    )
    defaults: JobDefaults = Field(default=JobDefaults({}))
    schema_: str = Field(default="", alias="$schema", description="For editors; not read.")

    def document(self) -> dict[str, Any]:
        return {"defaults": self.defaults.root, "jobs": [job.root for job in self.jobs]}


def _told_apart(value: Any) -> Any:
    if not isinstance(value, bool | list):
        raise PydanticCustomError("retire_type", "must be true, false, or a list of ids")
    return value


Ids = list[Annotated[int, Field(ge=1), integral]]
Retire = Annotated[
    Annotated[bool, Tag("tag:all")] | Annotated[Ids, Tag("tag:ids"), Field(max_length=10_000)],
    Discriminator(lambda value: "tag:all" if isinstance(value, bool) else "tag:ids"),
    BeforeValidator(_told_apart),
]


class DeclaredJobsToApply(DeclaredJobs):
    """The same, and how it is applied."""

    retire: Retire = Field(
        default=True,
        description="Whether jobs that the source no longer declares are deleted: all, none, or those with these ids.",
    )
    wait_seconds: Seconds = Field(
        default=10.0,
        description="For so long a job that must change and runs is waited for, as far as a request may take so long.",
    )


# --- what is answered ---------------------------------------------------------------------------------------


class Difference(Answer):
    """Both sides, as far as they differ and may be shown."""

    from_: Json = Field(alias="from")
    to: Json


class ChangeAnswer(Answer):
    """What happens, or happened, to one job."""

    action: Action = Field(description="Conflict: an apply would refuse.")
    name: str = Field(description="The registered name.")
    key: str = Field(description="What the document calls it.")
    id: int | None = Field(description="Null if it is yet to be created.")
    differences: dict[str, Difference] = Field(description="By field; of a conflict the `reason`.")
    running: bool = Field(description="It runs at this moment; an apply that changes it waits for its end.")


class PlanAnswer(Answer):
    """What an apply would do, or did."""

    source: str
    changes: list[ChangeAnswer]
    unchanged: int = Field(description="How many jobs are as declared.")

    @classmethod
    def of(cls, plan: Plan) -> PlanAnswer:
        return cls.model_validate(plan.to_dict(shown_change))


# --- the endpoints ------------------------------------------------------------------------------------------


@definitions.post("/plan", responses=answers(409), summary="What an apply would do")
def plan(
    body: Annotated[DeclaredJobs, BeforeValidator(camel_to_snake), Body()],
    request: Request,
    scheduler: Open,
    _: NoQuery,
) -> PlanAnswer:
    """Changes nothing, and takes a token that may only read; 403 if the document holds a secret and the token may not
    write. A conflict is no error here: it is one of the changes."""
    wanted = _definitions(body)
    if caller_of(request).scope != "write":
        _refuse_guesses(wanted)
    with _told_where(wanted):
        return PlanAnswer.of(scheduler.plan(wanted))


@definitions.post("/apply", responses=answers(409), summary="Make the jobs of a source what a document says")
async def apply(
    body: Annotated[DeclaredJobsToApply, BeforeValidator(camel_to_snake), Body()],
    request: Request,
    scheduler: Open,
    _: NoQuery,
) -> PlanAnswer:
    """In one transaction, all of it or nothing; the answer says what was done. Applied twice it changes nothing.

    409 if a job exists and is not this source's, or if one that must change still runs after `wait_seconds`.
    """
    note(source=body.source)
    wanted = await run_in_threadpool(_definitions, body)
    # A number that is too large for an id is the id of none.
    retire = body.retire if isinstance(body.retire, bool) else {one for one in body.retire if one <= MAX_ID}

    def once() -> Plan:
        with _told_where(wanted):
            return scheduler.apply(wanted, retire=retire, wait=0)

    with Patience(request.app.state.waiting, request, body.wait_seconds) as patience:
        while True:
            try:
                done = await run_in_threadpool(once)
                break
            except e.JobRunningError:
                if not await patience.pause():
                    raise
            except e.ScheduleUnknownError:
                text = "The connection was lost: it may or may not be applied. Send it again; twice does no harm."
                raise ApiError(503, "outcome_unknown", text, headers={"Retry-After": "5"}) from None
    note(changes=len(done.changes))
    return PlanAnswer.of(done)


def _refuse_guesses(wanted: Definitions) -> None:
    for number, one in enumerate(wanted.jobs):
        if shown(one.config.parameters) != one.config.parameters:
            text = "This token may only read, so it cannot compare what it would see as ***."
            raise ApiError(403, "forbidden", text, field=f"jobs.{number}.parameters")


# --- from one to the other ----------------------------------------------------------------------------------


class _Places:
    """A document as the reader of files takes it, where each value has a line. Here it is the number of its path."""

    def __init__(self) -> None:
        self._paths: list[str] = []

    def path(self, number: int) -> str:
        return self._paths[number]

    def node(self, value: Any, path: str = "", depth: int = 0) -> Node:
        """Raises ApiError for more than what a file may hold."""
        if depth > MAX_DEPTH or len(self._paths) >= MAX_VALUES:
            rule = (
                f"nested deeper than {MAX_DEPTH} levels"
                if depth > MAX_DEPTH
                else f"more than {MAX_VALUES} values"
            )
            raise ApiError(422, "invalid_value", f"{path}: the document must not be {rule}", field=path)
        found = Node(value, len(self._paths), 0)
        self._paths.append(path)
        inner = f"{path}." if path else ""
        if isinstance(value, dict):
            found.value = {name: self.node(one, f"{inner}{name}", depth + 1) for name, one in value.items()}
            found.keys = {name: (one.line, KEY) for name, one in found.value.items()}
        elif isinstance(value, list):
            found.value = [self.node(one, f"{inner}{n}", depth + 1) for n, one in enumerate(value)]
        return found


def _definitions(body: DeclaredJobs) -> Definitions:
    """Raises ApiError with the place in the body."""
    places = _Places()
    try:
        return definitions_in(places.node(body.document()), body.source, "body")
    except DefinitionError as error:
        if error.line is None:
            raise
        field, rule = places.path(error.line), error.rule
        cause = error.__context__
        first = _FIRST.search(rule)
        code: Code = "invalid_value"
        if first:
            rule = f"{rule[: first.start()]}, first at {places.path(int(first[1]))}"
            raise ApiError(409, "duplicate_job", f"{field}: {rule}", field=field) from None
        if error.column == KEY:
            code = "unknown_field"
        elif rule.endswith(" is missing"):
            code, field = "missing_field", f"{field}.{rule.removesuffix(' is missing')}"
        elif isinstance(cause, e.InvalidCronError):
            code = "invalid_cron"
        elif isinstance(cause, e.InvalidTypeError):
            code = "invalid_type"
        raise ApiError(422, code, f"{field}: {rule}", field=field) from None


@contextmanager
def _told_where(wanted: Definitions) -> Iterator[None]:
    """What the verb says of a field of some job, with the place of that job."""
    try:
        yield
    except (e.InvalidValueError, e.InvalidTypeError) as error:
        for number, one in enumerate(wanted.jobs):
            if error.rule.startswith(f"{whose(one.key)} "):
                raise type(error)(f"jobs.{number}.{error.field}", error.value, error.rule) from None
        raise
