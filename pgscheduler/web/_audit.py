"""Who changed what: one line in the log for each request that may change something, whatever came of it.

What may surprise: the line names the job, never what was sent; a body may hold a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from fastapi.routing import APIRoute

from pgscheduler.records import JobRecord

from ._errors import plain

__all__ = ["about", "facts", "note", "noting", "operation"]

_ID = re.compile(r"[0-9]{1,19}\Z")
#: Of the request that is being answered: endpoints add to it, on whichever thread they run.
_noted: ContextVar[dict[str, Any] | None] = ContextVar("pgscheduler_api_change", default=None)


def operation(route: APIRoute) -> str:
    """What an endpoint is called, in the log and by the generators of clients: `jobs_create`."""
    return f"{route.tags[0]}_{route.name}" if route.tags else route.name


def noting() -> dict[str, Any]:
    """From here on, in this request, `about` adds to what comes back."""
    found: dict[str, Any] = {}
    _noted.set(found)
    return found


def about(job: JobRecord) -> JobRecord:
    """Say which job this request is about; returns it."""
    note(job_id=job.id, job=job.name, key=job.key)
    return job


def note(**known: Any) -> None:
    """Say what this request is about, if it is not one job."""
    found = _noted.get()
    if found is not None:
        found.update(known)


def facts(scope: Mapping[str, Any], noted: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the line says of the request: the operation's id in the description, and what it is about.

    None: no endpoint was reached, or it is one that changes nothing.
    """
    route = scope.get("route")
    if not isinstance(route, APIRoute) or scope["method"] not in (route.methods or ()):
        return None
    found: dict[str, Any] = {"verb": operation(route)}
    for name, value in scope.get("path_params", {}).items():
        text = plain(value)  # what is no id was refused, and is only text
        found["template" if name == "code" else name] = int(text) if _ID.match(text) else text
    return {**found, **{name: value for name, value in noted.items() if value is not None}}
