"""Kinds of fields: exactly one way to write each, and a schema that says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.json_schema import WithJsonSchema

from ._limits import MAX_PAGE

__all__ = [
    "MAX_ID",
    "Answer",
    "Flag",
    "Given",
    "Id",
    "Json",
    "JsonObject",
    "Limit",
    "Limited",
    "Moment",
    "Name",
    "Offset",
    "Query",
    "Seconds",
    "Seen",
    "WholeSeconds",
    "camel_to_snake",
    "excluding",
    "integral",
]

MAX_ID = 2**63 - 1
MAX_SECONDS = 10 * 365 * 86400.0
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)\Z", re.ASCII)


def _whole(value: Any) -> Any:
    """An integer of a path or query: digits and nothing else, so that `12abc`, `1_0` and ` 1` are not numbers."""
    if isinstance(value, str):
        if not re.fullmatch(r"-?(0|[1-9][0-9]{0,18})", value):
            raise ValueError("must be a whole number")
        return int(value)
    return value


def _integral(value: Any) -> Any:
    """In JSON 3.0 is an integer too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: On an integer of a body, after its bounds: before them, its schema would not have them.
integral = BeforeValidator(_integral)


def _flag(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("true", "false"):
            raise ValueError("must be true or false")
        return value == "true"
    return value


def _moment(value: Any) -> Any:
    """RFC 3339 with its offset; a number could be seconds or milliseconds, and a naive time be anywhere's."""
    if not isinstance(value, str) or not _MOMENT.match(value):
        raise ValueError("must be a time such as 2027-01-31T09:00:00+01:00 (in a query, write + as %2B)")
    return datetime.fromisoformat(value.upper())


def _utc(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


Id = Annotated[int, Field(ge=1, le=MAX_ID), BeforeValidator(_whole)]
Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        description="1 to 255 printable characters.",
        json_schema_extra={"format": "name"},
    ),
]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
#: Seconds as a query has them.
WholeSeconds = Annotated[int, Field(ge=0, le=int(MAX_SECONDS)), BeforeValidator(_whole)]
#: A time limit; a thousandth is more than no time at all.
Limited = Annotated[float, Field(ge=0.001, le=MAX_SECONDS, allow_inf_nan=False)]
#: A time as it is sent to us.
Moment = Annotated[
    datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})
]
#: A time as we send it.
Seen = Annotated[
    datetime,
    PlainSerializer(_utc, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
#: Any JSON value that PostgreSQL can store: no NUL, no lone surrogate, at most 100 levels deep.
Json = Annotated[Any, Field(description="Any JSON.")]
JsonObject = Annotated[dict[str, Any], Field(description="A JSON object.")]
Flag = Annotated[bool, BeforeValidator(_flag)]
Limit = Annotated[
    int,
    Field(ge=1, le=MAX_PAGE, description=f"Rows of this page, at most {MAX_PAGE}."),
    BeforeValidator(_whole),
]
Offset = Annotated[
    int, Field(ge=0, le=10**9, description="How many rows are left out before it."), BeforeValidator(_whole)
]


def camel_to_snake(value: Any) -> Any:
    """A body's own keys in the spelling of the models; those inside its values are somebody's data."""
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, one in value.items():
        plain = (
            re.sub(r"(?<=[a-z0-9])([A-Z])", lambda m: "_" + m[1].lower(), name) if name.isascii() else name
        )
        if plain in found:
            raise ValueError(f"{plain} is given twice, in two spellings")
        found[plain] = one
    return found


class Given(BaseModel):
    """A body. Nothing is converted, and what is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


def excluding(*groups: Mapping[str, str]) -> list[Any]:
    """For a body's schema: fields that must not be given together, each with its JSON type."""
    return [
        {"not": {"required": [*group], "properties": {name: {"type": kind} for name, kind in group.items()}}}
        for group in groups
    ]


class Query(BaseModel):
    """The parameters of a query."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """What is sent: every field is always there."""

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)
