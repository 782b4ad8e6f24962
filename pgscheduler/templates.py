"""Job templates: under one code, which job runs, with which policies, and what its parameters must look like.

What may surprise: a job carries all that it took from its template, the schema too. To change or delete a template
changes no job that exists, and a run needs no look at the templates.
"""

from __future__ import annotations

import builtins
import functools
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from . import _check as check
from ._json import dump_json
from ._schema import StoredSchema, check_schema
from .client import Client
from .errors import (
    DuplicateTemplateError,
    InvalidTypeError,
    InvalidValueError,
    TemplateInactiveError,
    TemplateNotFoundError,
)
from .records import TEMPLATE, Template

__all__ = ["Templates"]

F = TypeVar("F", bound=Callable[..., Any])

MAX_SCHEMA = 16 * 1024  # bytes of JSON: it travels with every job and every claim
MAX_LIST = 10_000
_ORDER = 2**31  # PostgreSQL's integer
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_CHANGES = ("name", "handler", "parameters_schema", "timeout", "retries", "active", "display_order")


def _opened(method: F) -> F:
    """The verb needs a scheduler that is initialized and not shut down."""

    @functools.wraps(method)
    def wrapped(self: Templates, *args: Any, **kwargs: Any) -> Any:
        self._require_open(f"templates.{method.__name__}")
        return method(self, *args, **kwargs)

    return cast(F, wrapped)


class Templates:
    """The templates of one (database, schema, prefix): `scheduler.templates`.

    ::

        scheduler.templates.create(
            "MONTHLY", handler="report", parameters_schema={"required": ["month"]}, timeout=timedelta(minutes=5)
        )
        scheduler.templates.enqueue("MONTHLY", {"month": "2027-01"})
    """

    def __init__(self, client: Client, require_open: Callable[[str], None]) -> None:
        self._client = client
        self._require_open = require_open

    @_opened
    def create(
        self,
        code: str,
        *,
        handler: str,
        name: str | None = None,
        parameters_schema: Mapping[str, Any] | None = None,
        timeout: timedelta | float | None = timedelta(minutes=60),
        retries: int = 3,
        active: bool = True,
        display_order: int = 0,
    ) -> Template:
        """Store a template.

        `code`: 1 to 100 of letters, digits, `_`, `.` and `-`; it never changes. `handler`: the registered name that
        runs its jobs; no node need know it yet. `name`: for people; the code if not given. `parameters_schema`: a
        JSON Schema of at most 16 KiB (needs the extra `schema`), None: any parameters fit. `timeout` (None: no
        limit) and `retries` are those of its jobs, unless `enqueue` says otherwise.

        Raises `DuplicateTemplateError`, `InvalidValueError`, `InvalidTypeError`, `DatabaseUnavailableError`.
        """
        _code(code)  # first, for the name is made of it
        values = _checked(
            {
                "name": code if name is None else name,
                "handler": handler,
                "parameters_schema": parameters_schema,
                "timeout": timeout,
                "retries": retries,
                "active": active,
                "display_order": display_order,
            }
        )
        schema = values["parameters_schema"]
        values |= {
            "code": code,
            "parameters_schema": None if schema is None else json.dumps(schema),
        }
        row = self._client.store.row("template_create", values)
        if row is None:
            raise DuplicateTemplateError(code)
        return Template.from_row(row)

    @_opened
    def get(self, code: str) -> Template:
        """One template; `TemplateNotFoundError`."""
        row = self._client.store.row("template_get", {"code": _code(code)}, retry=True)
        if row is None:
            raise TemplateNotFoundError(code)
        return Template.from_row(row)

    @_opened
    def list(
        self, active: bool | None = None, *, limit: int = 100, offset: int = 0
    ) -> builtins.list[Template]:
        """Templates by `display_order`, then by code; only those that are `active`, or are not, if that is given."""
        values = {
            "active": None if active is None else check.boolean("active", active),
            "limit": check.integer("limit", limit, 1, MAX_LIST),
            "offset": check.integer("offset", offset, 0, 10**9),
        }
        return [Template.from_row(row) for row in self._client.store.rows("template_list", values)]

    @_opened
    def count(self, active: bool | None = None) -> int:
        """How many templates there are; only those that are `active`, or are not, if that is given."""
        values = {"active": None if active is None else check.boolean("active", active)}
        return int(self._client.store.rows("template_count", values)[0]["count"])

    @_opened
    def update(self, code: str, /, **changes: Any) -> Template:
        """Change what is given, of what `create` takes; the rest and all jobs that exist stay as they are.

        Raises `TemplateNotFoundError`, `InvalidValueError`, `InvalidTypeError`, `DatabaseUnavailableError`.
        """
        for field in changes:
            if field == "code":
                raise InvalidValueError("code", changes[field], "cannot be changed: jobs are listed by it")
            if field not in _CHANGES:
                raise InvalidValueError("field", field, f"must be one of a template's: {', '.join(_CHANGES)}")
        values = {"code": _code(code), "changes": json.dumps(_checked(changes))}
        row = self._client.store.row("template_update", values, retry=True)
        if row is None:
            raise TemplateNotFoundError(code)
        return Template.from_row(row)

    @_opened
    def delete(self, code: str) -> None:
        """Delete a template; `TemplateNotFoundError`. Jobs that were made from it stay and run, so does history."""
        if self._client.store.row("template_delete", {"code": _code(code)}) is None:
            raise TemplateNotFoundError(code)

    @_opened
    def validate(self, code: str, parameters: Any = None) -> None:
        """Raise what `enqueue` would for these parameters, and store nothing; also for a template that is not active.

        Raises `TemplateNotFoundError`; `InvalidValueError` and `InvalidTypeError` with the place and the rule.
        """
        template = self.get(code)
        schema = template.parameters_schema
        self._client.check_parameters(parameters, None if schema is None else StoredSchema(schema))
        self._client.check_fit(template.handler, None, parameters)

    @_opened
    def enqueue(
        self,
        code: str,
        parameters: Any = None,
        *,
        key: str | None = None,
        priority: int | None = None,
        timeout: timedelta | float | None = None,
        retries: int | None = None,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        connection: Any = None,
        **policies: Any,
    ) -> Any:
        """Store a one-time job of the template's handler; returns its `JobRecord`. See `Scheduler.enqueue`.

        What is None is the template's, or the usual default; `policies` is whatever else `Scheduler.enqueue` takes
        (`if_exists`, `expires_in`, …). The job carries the template's schema as it is now:
        parameters are checked here, and again before each run, where such as do not fit any more (somebody changed
        the row) end the job as failed, without a retry, before any hook is called. Its metadata says `job_template`.

        Raises `TemplateNotFoundError`, `TemplateInactiveError`; `InvalidValueError` for parameters that do not fit,
        with the place and the rule; and what `Scheduler.enqueue` raises. Nothing is stored then.
        """
        template = self.get(code)
        if not template.active:
            raise TemplateInactiveError(code)
        metadata = policies.pop("metadata", {})
        if not isinstance(metadata, Mapping):
            raise InvalidTypeError("metadata", metadata, "must be a mapping")
        if TEMPLATE in metadata:
            raise InvalidValueError(
                "metadata", TEMPLATE, "must not hold this key: it says from which template the job was made"
            )
        for field in ("name", "parameters_schema"):
            if field in policies:
                raise InvalidValueError(field, policies[field], "must not be given: it is the template's")
        if template.parameters_schema is not None:
            policies["parameters_schema"] = StoredSchema(template.parameters_schema)
        return self._client.enqueue(
            template.handler,
            parameters,
            key=key,
            priority=5 if priority is None else priority,
            timeout=template.timeout if timeout is None else timeout,
            retries=template.retries if retries is None else retries,
            run_at=run_at,
            delay=delay,
            connection=connection,
            metadata={**metadata, TEMPLATE: template.code},
            **policies,
        )


def _code(code: Any) -> str:
    """A code is written into URLs, command lines and searches, so it has no character that is special there."""
    if not isinstance(code, str):
        raise InvalidTypeError("code", code, "must be a str")
    if not _CODE.fullmatch(code):
        rule = "must be 1 to 100 letters, digits, `_`, `.` or `-`, and begin with a letter or digit"
        raise InvalidValueError("code", code, rule)
    return code


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a template, checked, as JSON values."""
    found = dict(given)
    for field in ("name", "handler"):
        if field in found:
            found[field] = check.name(field, found[field])
    if found.get("timeout") is not None:
        found["timeout"] = check.duration("timeout", found["timeout"]).total_seconds()
    if "retries" in found:
        check.integer("retries", found["retries"], 0, 10_000)
    if "active" in found:
        check.boolean("active", found["active"])
    if "display_order" in found:
        check.integer("display_order", found["display_order"], -_ORDER, _ORDER - 1)
    if found.get("parameters_schema") is not None:
        check_schema(found["parameters_schema"])
        found["parameters_schema"] = dict(found["parameters_schema"])
        dump_json("parameters_schema", found["parameters_schema"], MAX_SCHEMA)
    return found
