"""What can be sent about a job: in this package's words, or in Cron Service's.

Both come to `POST /api/v1/jobs`. A body that has `task_payload` or `cron_expression`, or nothing but `name` and
`is_active`, is Cron Service's; everything else is ours. Keys may be written in snake_case or camelCase.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic.json_schema import WithJsonSchema
from pydantic_core import PydanticCustomError

from pgscheduler import errors as e
from pgscheduler.jobs import HttpParameters
from pgscheduler.jobs.http import METHODS
from pgscheduler.retry import Backoff
from pgscheduler.schedule import Cron, Every, Schedule

from ._errors import ApiError
from ._fields import (
    Given,
    Json,
    JsonObject,
    Limited,
    Moment,
    Name,
    Seconds,
    camel_to_snake,
    excluding,
    integral,
)

__all__ = [
    "HTTP_JOB",
    "CronLine",
    "CronServiceJob",
    "Interval",
    "JobBody",
    "JobChange",
    "NewJob",
    "NewJobs",
    "OneTime",
    "payload_of",
    "schedule_of",
]

HTTP_JOB = "http_job"  # the name under which nodes register `HttpJob()`

MISSING = "Missing required fields: name, cron_expression, and task_payload."
MISSING_OWN = (
    "A job of a registered class has its name and at least one field more: "
    "a schedule, or the parameters of a one-time job ({} if it needs none)."
)
ONE_TIME = {"run_at": "string", "delay_seconds": "number"}
_ONCE = {**ONE_TIME, "expires_in_seconds": "number"}
_LINES = {"schedule": "object", "cron_expression": "string"}
Priority = Annotated[int, Field(ge=0, le=32767), integral]
Retries = Annotated[int, Field(ge=0, le=10_000), integral]
Catchup = Annotated[int, Field(ge=1, le=10_000), integral]
Stalls = Annotated[int, Field(ge=1, le=1000), integral]
CRON_LINE = Field(min_length=1, max_length=1000, json_schema_extra={"format": "cron"})


_SCALAR = {"type": ["string", "number", "boolean", "null"]}
#: What is requested; checked by `HttpParameters`, whose errors say more than a schema's.
_CALL: dict[str, Any] = {
    "type": "object",
    "required": ["url", "method"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "API_CALL"},
        "url": {
            "type": "string",
            "format": "http-url",
            "description": "http or https, without user or password.",
        },
        "method": {"enum": list(METHODS)},
        "headers": {
            "type": "object",
            "propertyNames": {"format": "header-name"},
            "additionalProperties": {"type": "string", "pattern": "^[!-~]{0,100}$"},
        },
        "data": {"description": "The body: text as it is, anything else as JSON; none with GET and HEAD."},
        "params": {
            "type": "object",
            "additionalProperties": {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]},
        },
        "timeout": {
            "type": ["number", "null"],
            "minimum": 0.001,
            "maximum": 3600,
            "description": "Seconds; 30.",
        },
    },
    "not": {"required": ["data"], "properties": {"method": {"enum": ["GET", "HEAD"]}}},
}
_INNER = {
    "type": "object",
    "required": ["config"],
    "additionalProperties": False,
    "properties": {"type": {"const": "API_CALL"}, "config": _CALL},
}
Payload = Annotated[dict[str, Any], WithJsonSchema({"description": "A request.", "anyOf": [_CALL, _INNER]})]


class CronLine(Given):
    """At the times of a cron line."""

    cron: Annotated[str, CRON_LINE] = Field(description="5 fields, or 6 with seconds first; `@daily`.")
    timezone: Annotated[str, Field(json_schema_extra={"format": "timezone"})] = "UTC"
    day_or: bool = Field(default=True, description="False: day of month and day of week must both fit.")


class Interval(Given):
    """At a fixed interval."""

    every_seconds: Annotated[int, Field(ge=1, le=365 * 86400), integral] = Field(
        # As it is answered, so that what was read can be sent back.
        validation_alias=AliasChoices("every_seconds", "every"),
        description="Whole seconds.",
    )


def _line(value: Any) -> str:
    """Which of the two it is: the one whose first field is there."""
    return (
        "tag:cron"
        if isinstance(value, CronLine) or (isinstance(value, dict) and "cron" in value)
        else "tag:every"
    )


def _told_apart(value: Any) -> Any:
    rule = "must be an object with cron or every_seconds"
    if not isinstance(value, dict):
        raise PydanticCustomError("schedule_type", rule)
    if not value.keys() & {"cron", "every_seconds", "every"}:
        raise PydanticCustomError("schedule_kind", rule)
    return value


Line = Annotated[
    Annotated[CronLine, Tag("tag:cron")] | Annotated[Interval, Tag("tag:every")],
    Discriminator(_line),
    BeforeValidator(_told_apart),
]


class BackoffBody(Given):
    """The delay before each retry: `initial_seconds × factor^(failures − 1)`, at most `maximum_seconds`."""

    initial_seconds: Annotated[float, Field(ge=0, le=365 * 86400, allow_inf_nan=False)] = 1.0
    factor: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] = 2.0
    maximum_seconds: Annotated[float, Field(ge=0, le=365 * 86400, allow_inf_nan=False)] = 3600.0
    jitter: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1


class Policies(Given):
    """What happens when something goes wrong. What is not given is the default, or the registered class's."""

    priority: Priority | None = Field(default=None, description="Smaller first; 5.")
    retries: Retries | None = Field(default=None, description="Attempts after the first.")
    backoff: BackoffBody | None = None
    timeout_seconds: Limited | None = Field(default=None, description="Of one attempt; null: no limit.")
    misfire: Literal["run_once", "skip", "run_all"] | None = None
    misfire_grace_seconds: Seconds | None = None
    catchup: Catchup | None = None
    jitter_seconds: Seconds | None = None
    isolation: Literal["thread", "async", "process"] | None = None
    max_stalls: Stalls | None = None
    metadata: JsonObject | None = None

    def policies(self) -> dict[str, Any]:
        """Those that were given, as `JobConfig` takes them. A null is a wish only for `timeout_seconds`."""
        found: dict[str, Any] = {}
        for name in self.model_fields_set & Policies.model_fields.keys():
            value = getattr(self, name)
            plain = name.removesuffix("_seconds")
            if value is None and plain != "timeout":
                continue
            if isinstance(value, BackoffBody):
                initial, maximum = (
                    timedelta(seconds=s) for s in (value.initial_seconds, value.maximum_seconds)
                )
                value = Backoff(initial, value.factor, maximum, value.jitter)
            elif plain != name and value is not None:
                value = timedelta(seconds=value)
            found[plain] = value
        return found


class OneTime(Given):
    """When a one-time job runs; at once if nothing is given."""

    run_at: Moment | None = None
    delay_seconds: Seconds | None = None

    def when(self) -> dict[str, Any]:
        delay = None if self.delay_seconds is None else timedelta(seconds=self.delay_seconds)
        found = {"run_at": self.run_at, "delay": delay}
        return {name: value for name, value in found.items() if value is not None}


class NewJob(Policies, OneTime):
    """A job of a registered class: recurring with a `schedule`, else one-time.

    Beside `name` it has at least one field more; give `parameters` if there is nothing else to say.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                # Such a body is Cron Service's, and something is missing in it.
                {"not": {"propertyNames": {"enum": ["name", "is_active"]}}},
                {
                    "not": {
                        "required": ["is_active"],
                        "properties": {"is_active": {"const": False}, "schedule": {"type": "null"}},
                    }
                },
                *excluding(ONE_TIME, *({"schedule": "object", name: kind} for name, kind in _ONCE.items())),
            ]
        }
    )

    name: Name = Field(description="Which registered class runs it.")
    key: Name | None = Field(
        default=None, description="Which of several jobs of that name. Recurring: the name."
    )
    schedule: Line | None = None
    parameters: Json = Field(default=None, description="Any JSON; null is {}.")
    expires_in_seconds: Limited | None = Field(
        default=None, description="One-time: after this long it fails instead of running."
    )
    is_active: bool = Field(default=True, description="False: stored paused. Recurring jobs only.")
    if_exists: Literal["update", "keep", "error"] = Field(
        default="error", description="What happens if there is a job with this name and key."
    )


class NewJobs(OneTime):
    """One-time jobs of one name. Policies are those of the class that runs them."""

    model_config = ConfigDict(json_schema_extra={"allOf": excluding(ONE_TIME)})

    name: Name = Field(description="Which registered class runs them.")
    parameters: list[Json] = Field(description="Those of each job: any JSON; null is {}.")
    priority: Priority = Field(default=5, description="Smaller first.")


class CronServiceJob(Policies):
    """Cron Service's job: an HTTP request, again and again.

    Stored as a job of the name `http_job` with the key `name`; a node with `HttpJob()` registered runs it. Two
    retries after 5 and 10 s, unless said otherwise.
    """

    name: Name = Field(description="Its own name: no other such job may have it.")
    cron_expression: Annotated[str, CRON_LINE]
    task_payload: Payload
    timezone: Annotated[str, Field(json_schema_extra={"format": "timezone"})] = "UTC"
    is_active: bool = True


class JobChange(Policies, OneTime):
    """What shall be another: only what is given changes."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 1,
            "allOf": excluding(
                ONE_TIME,
                {"schedule": "object", "cron_expression": "string"},
                *({line: kind, once: how} for line, kind in _LINES.items() for once, how in _ONCE.items()),
            ),
        }
    )

    schedule: Line | None = None
    cron_expression: Annotated[str, CRON_LINE] | None = Field(
        default=None, description="Instead of `schedule`: a cron line in UTC."
    )
    parameters: Json = None
    task_payload: Payload | None = Field(default=None, description="Instead of `parameters`, for a request.")
    expires_in_seconds: Limited | None = None
    is_active: bool | None = Field(default=None, description="True resumes it, false pauses it.")


def _kind(value: Any) -> str:
    """Whose body is it?"""
    if "task_payload" in value or "cron_expression" in value or not value.keys() - {"name", "is_active"}:
        return "tag:cron_service"
    return "tag:own"


def _read(value: Any) -> Any:
    """Cron Service's own answer to a body in which something is missing."""
    if not isinstance(value, dict):
        raise PydanticCustomError("object_type", "must be a JSON object")
    value = camel_to_snake(value)
    needed = ("name", "cron_expression", "task_payload")
    if _kind(value) == "tag:cron_service" and any(value.get(name) in (None, "", {}) for name in needed):
        theirs = "task_payload" in value or "cron_expression" in value
        raise ApiError(400, "missing_field", MISSING, detail=None if theirs else MISSING_OWN)
    return value


JobBody = Annotated[
    Annotated[NewJob, Tag("tag:own")] | Annotated[CronServiceJob, Tag("tag:cron_service")],
    Discriminator(_kind),
    BeforeValidator(_read),
]
ChangeBody = Annotated[JobChange, BeforeValidator(camel_to_snake)]


def schedule_of(given: CronLine | Interval | str, timezone: str = "UTC") -> Schedule:
    """Raises ApiError for a wrong line: 422, and for Cron Service's own 400 in its words."""
    if isinstance(given, Interval):
        return Every(timedelta(seconds=given.every_seconds))
    if isinstance(given, CronLine):
        try:
            return Cron(given.cron, given.timezone, given.day_or)
        except e.InvalidCronError as error:
            field = "schedule.timezone" if error.field == "timezone" else "schedule.cron"
            raise ApiError(422, "invalid_cron", str(error), field=field) from None
    try:
        return Cron(given, timezone)
    except e.InvalidCronError as error:
        field = "timezone" if error.field == "timezone" else "cron_expression"
        text = "Invalid cron_expression format."
        raise ApiError(400, "invalid_cron", text, field=field, detail=str(error)) from None


def payload_of(given: dict[str, Any]) -> dict[str, Any]:
    """Parameters of `HttpJob` from a `task_payload`; its own words for what Cron Service has words for."""
    found = given
    if "config" in given:
        inner = given["config"]
        strange = given.keys() - {"type", "config"}
        if strange:
            raise _unknown(strange)
        if not isinstance(inner, dict):
            raise e.InvalidTypeError("task_payload.config", type(inner), "must be an object")
        found = inner
    for kind in (given.get("type", "API_CALL"), found.get("type", "API_CALL")):
        if kind != "API_CALL":
            text = f"Unsupported job type: {str(kind)[:80]}"
            raise ApiError(400, "unsupported_job_type", text, field="task_payload.type")
    if not found.get("url") or not found.get("method"):
        text = "API_CALL task missing required 'url' or 'method' in config."
        missing = "method" if found.get("url") else "url"
        raise ApiError(400, "missing_field", text, field=f"task_payload.{missing}")
    try:
        HttpParameters(**found)
    except (e.InvalidValueError, e.InvalidTypeError) as error:
        raise type(error)(f"task_payload.{error.field}", error.value, error.rule) from None
    except TypeError:
        known = HttpParameters.__dataclass_fields__.keys()
        raise _unknown(found.keys() - known) from None
    return found


def _unknown(names: AbstractSet[str]) -> ApiError:
    field = f"task_payload.{min(names)}"
    return ApiError(422, "unknown_field", f"{field} is not known here", field=field)
