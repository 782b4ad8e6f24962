"""One shape for whatever goes wrong: `{"error": text, "code": word, "field"?: name}`, and which status says what.

`error` is for people and may change; `code` is for programs and does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from fastapi import Request
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match

from pgscheduler import errors as e
from pgscheduler._json import printable

__all__ = [
    "ApiError",
    "Code",
    "Error",
    "answers",
    "error_answer",
    "of_framework",
    "of_scheduler",
    "of_validation",
    "or_missing",
    "plain",
    "renaming",
]

Code = Literal[
    "body_too_large", "busy", "cross_origin", "database_unavailable", "duplicate_job", "duplicate_template",
    "forbidden", "internal", "invalid_cron", "invalid_id", "invalid_type", "invalid_value", "job_kind",
    "job_not_running", "job_running", "loopback_only", "malformed_body", "method_not_allowed",
    "missing_field", "node_runs_by_itself", "not_found", "outcome_unknown", "request_timeout", "schema",
    "shutting_down", "template_inactive", "timeout", "too_many_attempts", "unauthorized", "unexpected_body", "unknown_field",
    "unsupported_job_type", "unsupported_media_type",
]  # fmt: skip

CODES: frozenset[str] = frozenset(get_args(Code))
RETRY_AFTER = {"Retry-After": "5"}  # seconds; what a restart of PostgreSQL takes

_WORDS = {
    400: "The request is malformed.",
    401: "A bearer token is missing or unknown.",
    403: "The token may only read; or the request comes from another machine or another site's page.",
    404: "There is no such thing.",
    405: "The path exists, the method does not; see `Allow`.",
    408: "The body did not arrive in time.",
    409: "It does not fit what is stored, or what is running.",
    413: "The body is too large.",
    415: "The body is not `application/json` in UTF-8.",
    422: "A value breaks a rule; `field` names it.",
    429: "Too many wrong tokens came from this address: try the right one now, or another after `Retry-After` seconds.",
    500: "A fault of the server; it is in its log.",
    503: "The database is not available, or too many requests wait: try again after `Retry-After` seconds.",
    504: "The answer took too long; a change may or may not have been made.",
}
_EVERYWHERE = (400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 504)


class Error(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="forbid")

    error: str = Field(description="For people; may change.")
    code: Code = Field(description="For programs; does not change.")
    field: str | None = Field(default=None, description="Which field, parameter or place in the body.")
    detail: str | None = Field(default=None, description="More about it.")


def answers(*more: int) -> dict[int | str, dict[str, Any]]:
    """What an endpoint may answer beside its success, for its documentation."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": Error, "description": _WORDS[status]} for status in sorted({*_EVERYWHERE, *more})
    }
    found[429]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return found


class ApiError(HTTPException):
    """An answer that is an error. An HTTPException, because FastAPI lets those pass wherever they are raised."""

    def __init__(
        self,
        status: int,
        code: Code,
        text: str,
        *,
        field: str | None = None,
        detail: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, text, dict(headers or {}))
        self.body = {"error": text, "code": code, "field": field, "detail": detail}


@contextmanager
def or_missing(kind: type[e.PgSchedulerError], text: str) -> Iterator[None]:
    """404 with this text instead of an error of that kind."""
    try:
        yield
    except kind:
        raise ApiError(404, "not_found", text) from None


@contextmanager
def renaming(name: Callable[[str], str | None]) -> Iterator[None]:
    """A verb's words for what has another name in a body; None: it has the same."""
    try:
        yield
    except (e.InvalidValueError, e.InvalidTypeError) as error:
        theirs = name(error.field)
        if theirs in (None, error.field):
            raise
        raise type(error)(theirs, error.value, error.rule) from None


def plain(text: object) -> str:
    """Text from anywhere as an answer may hold it: one line without control characters or lone surrogates."""
    return printable(str(text)[:500]).replace("\n", "\\n")


def error_answer(error: ApiError) -> JSONResponse:
    content = {name: plain(value) for name, value in error.body.items() if value is not None}
    return JSONResponse(content, error.status_code, error.headers)


#: Which status and word an error of the package gets. The first that fits counts.
_KINDS: tuple[tuple[type[e.PgSchedulerError], int, Code], ...] = (
    (e.InvalidCronError, 422, "invalid_cron"),
    (e.InvalidValueError, 422, "invalid_value"),
    (e.InvalidTypeError, 422, "invalid_type"),
    (e.JobNotFoundError, 404, "not_found"),
    (e.DuplicateJobError, 409, "duplicate_job"),
    (e.DuplicateTemplateError, 409, "duplicate_template"),
    (e.TemplateNotFoundError, 404, "not_found"),
    (e.TemplateInactiveError, 409, "template_inactive"),
    (e.JobKindError, 409, "job_kind"),
    (e.JobRunningError, 409, "job_running"),
    (e.JobNotRunningError, 409, "job_not_running"),
    (e.SchedulerStateError, 503, "shutting_down"),
    (e.SchemaError, 503, "schema"),
    (e.ScheduleUnknownError, 503, "outcome_unknown"),
    (e.DatabaseUnavailableError, 503, "database_unavailable"),
)
#: Texts that may name a host, a role or a database stay in the log.
_UNSAID: dict[str, str] = {
    "database_unavailable": "The database is not available. Nothing was changed.",
    "schema": "The tables are missing, or of another version.",
    "shutting_down": "The scheduler is not open.",
    "outcome_unknown": "The connection was lost while the job was being stored: it may or may not be. "
    "Send it again with the same key; there will be one.",
}


def of_scheduler(error: e.PgSchedulerError) -> ApiError:
    """The answer to an error of a verb."""
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            field = getattr(error, "field", None)
            text = _UNSAID.get(code, str(error))
            return ApiError(status, code, text, field=field, headers=RETRY_AFTER if status == 503 else None)
    return ApiError(500, "internal", "Internal server error.")


_PATH = {
    "job_id": "Invalid job ID provided.",
    "run_id": "Invalid run ID provided.",
    "code": "Invalid template code provided.",
}
#: pydantic's words for a wrong type end so; each other word is a rule about a value.
_TYPE_ENDINGS = ("_type", "_parsing", "is_instance_of", "model_attributes_type")

#: What pydantic finds, in the words of the package's own checks, or in JSON's where those have Python's.
_RULES = {
    "bool_type": "must be a boolean",
    "dict_type": "must be a JSON object",
    "enum": "must be one of {expected}",
    "finite_number": "must be finite",
    "float_type": "must be a number",
    "greater_than_equal": "must be >= {ge}",
    "int_type": "must be an integer",
    "invalid_key": "must be valid unicode (it holds a lone surrogate)",
    "less_than_equal": "must be <= {le}",
    "list_type": "must be a list",
    "literal_error": "must be one of {expected}",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must not be longer than {max_length} characters (too long)",
    "string_too_short": "must not be shorter than {min_length} characters",
    "string_type": "must be a string",
    "string_unicode": "must be valid unicode (it holds a lone surrogate)",
    "too_long": "must not have more than {max_length} items",
    "uuid_parsing": "must be a UUID",
}


def _rule(found: Mapping[str, Any]) -> str:
    """What holds, without the value: it may be a secret."""
    kind, facts = found["type"], found.get("ctx", {})
    if kind in ("string_too_short", "too_short") and facts["min_length"] == 1:
        return "cannot be empty"
    if kind == "greater_than_equal" and facts["ge"] == 0 and isinstance(facts["ge"], int):
        return "must be non-negative (>= 0)"
    if kind not in _RULES:
        return str(found["msg"]).removeprefix("Value error, ")
    shown = {
        name: int(fact) if isinstance(fact, float) and fact.is_integer() else fact
        for name, fact in facts.items()
    }
    if "expected" in facts:  # "'a', 'b' or 'c'"
        shown["expected"] = str(facts["expected"]).replace(" or ", ", ").replace("'", "")
    return _RULES[kind].format(**shown)


def of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that pydantic found, without the value: it may be a secret."""
    found = error.errors()[0]
    place, *names = found["loc"]
    field = ".".join(str(name) for name in names if not str(name).startswith("tag:"))
    kind = str(found["type"])
    if place == "path":
        return ApiError(400, "invalid_id", _PATH[field], field=field)
    if field == "jobId":  # the one query parameter whose answer is not ours to choose
        return ApiError(400, "invalid_id", "jobId must be a valid integer.", field=field)
    shown = field or ("body" if place == "body" else str(place))
    if kind in ("missing", "extra_forbidden"):
        if kind == "missing":
            return ApiError(422, "missing_field", f"{shown} is missing", field=shown)
        return ApiError(422, "unknown_field", f"{shown} is not known here", field=shown)
    code: Code = "invalid_type" if kind.endswith(_TYPE_ENDINGS) else "invalid_value"
    rule = _rule(found)
    colon = "" if rule.startswith(("must ", "cannot ")) else ":"
    return ApiError(422, code, f"{shown}{colon} {rule}", field=shown)


def of_framework(request: Request, error: StarletteHTTPException) -> ApiError:
    """What the router and the body's reader raise."""
    if isinstance(error, ApiError):
        return error
    if error.status_code == 404:
        return ApiError(404, "not_found", "There is nothing at this path.")
    if error.status_code == 405:
        allow = ", ".join(_methods(request))
        return ApiError(405, "method_not_allowed", f"Use {allow} here.", headers={"Allow": allow})
    if error.status_code == 413:
        return ApiError(413, "body_too_large", "The body is too large.")
    if error.status_code < 500:
        return ApiError(error.status_code, "malformed_body", "The body cannot be read.")
    return ApiError(500, "internal", "Internal server error.")


def _methods(request: Request) -> Sequence[str]:
    """All methods of a path; the router knows only those of the first route that has it."""
    found: set[str] = set()
    for route in request.app.state.endpoints:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods
    return sorted(found | ({"HEAD"} if "GET" in found else set()))
