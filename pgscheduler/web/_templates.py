"""`/api/v1/templates`: job templates, and jobs made from them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import Body, Path, Request, Response
from fastapi import Query as InQuery
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.json_schema import WithJsonSchema

from pgscheduler.errors import TemplateNotFoundError
from pgscheduler.records import Template

from ._audit import about
from ._bodies import HTTP_JOB, ONE_TIME, OneTime, Policies, Retries
from ._common import LINKS, NoQuery, Open, Page, page, router
from ._errors import ApiError, answers, or_missing
from ._fields import (
    Answer,
    Flag,
    Given,
    Json,
    Limit,
    Limited,
    Name,
    Offset,
    Query,
    Seen,
    camel_to_snake,
    excluding,
    integral,
)
from ._jobs import AGAIN, JobMade
from ._once import Once
from ._show import JobAnswer

__all__ = ["templates"]

templates = router("templates", "/api/v1/templates")

PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
Code = Annotated[str, Path(description="A template's code.", pattern=PATTERN)]

#: The little of JSON Schema's own schema that most schemas need; the verb checks it whole.
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"enum": ["object", "array", "string", "number", "integer", "boolean", "null"]},
        "required": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "properties": {"type": "object", "additionalProperties": {"type": ["boolean", "object"]}},
    },
}
Order = Annotated[int, Field(ge=-(2**31), le=2**31 - 1), integral]
Schema = Annotated[dict[str, Any], WithJsonSchema(_SCHEMA)]


class TemplateFilter(Query):
    active: Flag | None = None
    limit: Limit = 100
    offset: Offset = 0


class TemplateAnswer(Answer):
    """What jobs of one kind have in common."""

    code: str
    name: str
    handler: str = Field(description="The registered name that runs its jobs.")
    active: bool
    display_order: int
    retries: int
    timeout_seconds: float | None
    parameters_schema: dict[str, Any] | None
    created_at: Seen
    updated_at: Seen

    @classmethod
    def of(cls, template: Template) -> TemplateAnswer:
        return cls(
            **{name: getattr(template, name) for name in cls.model_fields if name != "timeout_seconds"},
            timeout_seconds=None if template.timeout is None else template.timeout.total_seconds(),
        )


class TemplateFields(Given):
    """What a template says."""

    name: Name | None = Field(default=None, description="For people; the code if not given.")
    parameters_schema: Schema | None = Field(default=None, description="A JSON Schema; null: anything fits.")
    timeout_seconds: Limited | None = Field(default=3600, description="Of its jobs; null: no limit.")
    retries: Retries = 3
    active: bool = True
    display_order: Order = 0

    def changes(self) -> dict[str, Any]:
        """What was given, as the verbs take it."""
        found = {name: getattr(self, name) for name in self.model_fields_set if name != "code"}
        if "timeout_seconds" in found:
            seconds = found.pop("timeout_seconds")
            found["timeout"] = None if seconds is None else timedelta(seconds=seconds)
        if found.get("name", "") is None:
            del found["name"]
        return found


class NewTemplate(TemplateFields):
    """A template."""

    code: Annotated[str, Field(pattern=PATTERN)]
    handler: Name = Field(description="The registered name that runs its jobs.")


class TemplateChange(TemplateFields):
    """What shall be another: only what is given changes; jobs that exist stay as they are."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    handler: Name | None = None


class TemplateJob(Policies, OneTime):
    """A one-time job of a template."""

    model_config = ConfigDict(json_schema_extra={"allOf": excluding(ONE_TIME)})

    parameters: Json = Field(default=None, description="They must fit the template's schema.")
    key: Name | None = None
    expires_in_seconds: Limited | None = Field(
        default=None, description="After this long it fails instead of running."
    )
    if_exists: Literal["update", "keep", "error"] = Field(
        default="error", description="What happens if there is a job of its handler with this key."
    )


class TemplateParameters(Given):
    """What a job of a template could be given."""

    parameters: Json = None


class Fits(Answer):
    """They do."""

    status: Literal["valid"]


@templates.get("", responses={200: LINKS}, summary="List templates")
def list_templates(
    query: Annotated[TemplateFilter, InQuery()], request: Request, response: Response, scheduler: Open
) -> list[TemplateAnswer]:
    """By their display order, a page at a time."""
    return page(
        Page(request, response, query.limit, query.offset),
        lambda limit, offset: scheduler.templates.list(query.active, limit=limit, offset=offset),
        TemplateAnswer.of,
    )


@templates.post("", status_code=201, responses=answers(409), summary="Make a template")
def create(
    body: Annotated[NewTemplate, BeforeValidator(camel_to_snake), Body()], scheduler: Open, _: NoQuery
) -> TemplateAnswer:
    """Its code never changes."""
    given = body.changes()
    return TemplateAnswer.of(scheduler.templates.create(body.code, **given))


def _or_missing(code: str) -> AbstractContextManager[None]:
    return or_missing(TemplateNotFoundError, f"Template {code} not found.")


@templates.get("/{code}", responses=answers(404), summary="Read a template")
def read(code: Code, scheduler: Open, _: NoQuery) -> TemplateAnswer:
    with _or_missing(code):
        return TemplateAnswer.of(scheduler.templates.get(code))


@templates.patch("/{code}", responses=answers(404), summary="Change a template")
def change(
    code: Code,
    body: Annotated[TemplateChange, BeforeValidator(camel_to_snake), Body()],
    scheduler: Open,
    _: NoQuery,
) -> TemplateAnswer:
    """Only what is given."""
    changes = body.changes()
    if changes.get("handler", "") is None:
        del changes["handler"]
    if not body.model_fields_set:
        raise ApiError(422, "missing_field", "Nothing is to be changed: give at least one field.")
    with _or_missing(code):
        if not changes:
            return TemplateAnswer.of(scheduler.templates.get(code))
        return TemplateAnswer.of(scheduler.templates.update(code, **changes))


@templates.delete(
    "/{code}", status_code=204, response_model=None, responses=answers(404), summary="Delete a template"
)
def delete(code: Code, scheduler: Open, _: NoQuery) -> None:
    """Jobs that were made from it stay and run."""
    with _or_missing(code):
        scheduler.templates.delete(code)


@templates.post("/{code}/validate", responses=answers(404), summary="Do parameters fit a template?")
def validate(
    code: Code,
    body: Annotated[TemplateParameters, BeforeValidator(camel_to_snake), Body()],
    scheduler: Open,
    _: NoQuery,
) -> Fits:
    """422 if they do not, with the place and the rule; nothing is stored."""
    with _or_missing(code):
        scheduler.templates.validate(code, body.parameters)
    return Fits(status="valid")


@templates.post(
    "/{code}/jobs",
    status_code=201,
    responses={**AGAIN, **answers(404, 409)},
    summary="Store a job of a template",
)
def enqueue(
    code: Code,
    body: Annotated[TemplateJob, BeforeValidator(camel_to_snake), Body()],
    scheduler: Open,
    once: Once,
    _: NoQuery,
) -> JobMade:
    """Its parameters are checked now, and again before each run."""
    parameters = {} if body.parameters is None else body.parameters
    given = {**once.identity(body.key, body.if_exists), **body.when(), **body.policies()}
    if body.expires_in_seconds is not None:
        given["expires_in"] = body.expires_in_seconds
    with _or_missing(code):
        job = once.stored(scheduler, lambda: scheduler.templates.enqueue(code, parameters, **given))
    return JobMade(message=once.message, job=JobAnswer.of(about(job), HTTP_JOB))
