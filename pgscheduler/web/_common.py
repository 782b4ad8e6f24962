"""What endpoints share: the scheduler behind the app, strict parameters, and pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi import Query as InQuery
from starlette.convertors import Convertor, register_url_convertor

from pgscheduler.scheduler import Scheduler

from ._errors import answers
from ._fields import Answer, Id, Query
from ._strict import StrictRoute

__all__ = ["LINKS", "Count", "JobId", "NoQuery", "Open", "Page", "page", "router"]

R = TypeVar("R")
A = TypeVar("A")


def _scheduler(request: Request) -> Scheduler:
    found: Scheduler = request.app.state.scheduler
    return found


class _IdConvertor(Convertor[str]):
    """What may be an id in a path: anything, so that a wrong one is told; but not what is a path of its own."""

    regex = "(?!(?:bulk|count|retry)$)[^/]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("pgscheduler_id", _IdConvertor())

#: The scheduler that the app was made for.
Open = Annotated[Scheduler, Depends(_scheduler)]
JobId = Annotated[Id, Path(description="A job's id.")]


class _Nothing(Query):
    """No parameter at all."""


#: For endpoints that take no query: an unknown parameter is a mistake, and said to be one.
NoQuery = Annotated[_Nothing, InQuery()]


class Count(Answer):
    """How many rows the list with these filters has."""

    count: int


#: What a list says beside its rows.
LINKS: dict[str, Any] = {
    "headers": {
        "Link": {
            "description": 'The `rel="next"` and `rel="prev"` pages, if there are such.',
            "schema": {"type": "string"},
        }
    }
}


def router(tag: str, prefix: str = "") -> APIRouter:
    """A router whose every endpoint is strict and documented with what may go wrong."""
    return APIRouter(prefix=prefix, tags=[tag], route_class=StrictRoute, responses=answers())


class Page:
    """One page of a list: how many rows, and how many before it."""

    def __init__(self, request: Request, response: Response, limit: int, offset: int) -> None:
        self._request = request
        self._response = response
        self.limit = limit
        self.offset = offset

    def link(self, more: bool) -> None:
        """Say where the pages beside this one are; `more`: there is one after it."""
        found = []
        if more:
            found.append(self._to("next", self.offset + self.limit))
        if self.offset:
            found.append(self._to("prev", max(self.offset - self.limit, 0)))
        if found:
            self._response.headers["Link"] = ", ".join(found)

    def _to(self, relation: str, offset: int) -> str:
        query = {**self._request.query_params, "limit": self.limit, "offset": offset}
        # A path of our own and an encoded query: nothing of the Host header, and nothing that ends the `<`.
        return f'<{self._request.scope.get("root_path", "")}{_path(self._request)}?{urlencode(query)}>; rel="{relation}"'


def _path(request: Request) -> str:
    path, root = request.scope["path"], request.scope.get("root_path", "")
    return str(path[len(root) :] if root and path.startswith(root) else path)


def page(at: Page, read: Callable[[int, int], Sequence[R]], show: Callable[[R], A]) -> list[A]:
    """One page of what `read(limit, offset)` lists. One row more is read, to know whether there is a next page."""
    rows = read(at.limit + 1, at.offset)
    at.link(len(rows) > at.limit)
    return [show(row) for row in rows[: at.limit]]
