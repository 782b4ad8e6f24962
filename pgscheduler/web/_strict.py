"""Requests as they were meant: JSON without surprises, no parameter twice, no body where none is read.

FastAPI's own reader takes NaN and the last of two equal keys; a route class with its own kind of request is the
place that it offers for another one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.routing import APIRoute

from ._errors import ApiError

__all__ = ["StrictRoute", "read_json"]

MAX_DIGITS = 1300  # of an integer: 4096 bits, the most that parameters may hold, have 1234
MAX_FIELDS = 100  # parameters of a query


def read_json(body: bytes) -> Any:
    """A JSON document; ApiError 400 for what is none, or could be read in two ways."""
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        text = f"The body is not JSON: {error.msg} at line {error.lineno} column {error.colno}."
        raise ApiError(400, "malformed_body", text, field="body") from None
    except UnicodeDecodeError:
        raise ApiError(400, "malformed_body", "The body is not UTF-8.", field="body") from None
    except RecursionError:
        raise ApiError(400, "malformed_body", "The body is nested too deep.", field="body") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ApiError(400, "malformed_body", f"The key {twice!r} is given twice.", field=twice)
    return found


def _constant(word: str) -> Any:
    raise ApiError(400, "malformed_body", f"The body is not JSON: {word} is no number.", field="body")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ApiError(400, "malformed_body", "The body holds a number out of range.", field="body")
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ApiError(400, "malformed_body", "The body holds an integer out of range.", field="body")
    return int(text)


class _StrictRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


class StrictRoute(APIRoute):
    """Refuses what the endpoint would silently leave out of account."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            request = _StrictRequest(request.scope, request.receive)
            _check_query(request)
            if self.body_field is None and await request.body():
                raise ApiError(400, "unexpected_body", "Nothing is read from a body here.", field="body")
            return await handler(request)

        return strict


def _check_query(request: Request) -> None:
    raw = request.scope["query_string"].decode("latin-1")
    try:
        names = [name for name, _ in parse_qsl(raw, keep_blank_values=True, max_num_fields=MAX_FIELDS)]
    except ValueError:
        raise ApiError(400, "invalid_value", "The query has too many parameters.") from None
    for name in names:
        if names.count(name) > 1:
            raise ApiError(400, "invalid_value", f"{name} is given twice", field=name)
