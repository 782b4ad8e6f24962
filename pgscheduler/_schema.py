"""JSON Schema, as far as parameters need it: is it one, and do they fit. Needs the extra `schema`.

What may surprise: no `$ref` is ever fetched. It leads to a place in the schema itself or to a published draft, or
the schema is refused; else whoever may write a schema could make a node call any address.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from .errors import InvalidTypeError, InvalidValueError, show

__all__ = ["SchemaExtraError", "StoredSchema", "UnfitError", "check_parameters", "check_schema"]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"  # unless a schema names another
#: What the rule of a keyword means for a value.
_WORDS = {
    "const": "must be {}",
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "multipleOf": "must be a multiple of {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "pattern": "must match the pattern {}",
    "format": "must have the format {}",
    "minItems": "must hold at least {} items",
    "maxItems": "must hold at most {} items",
}
MOST = 10  # names or values that a text lists
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class StoredSchema(dict[str, Any]):
    """A JSON Schema that is stored with the job: its parameters are checked again before each run, on any node."""


class UnfitError(InvalidValueError):
    """Parameters do not fit their schema. `value` is the place, `$.month`: what stands there may be a secret."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(field, value, rule)
        self.args = (f"{field} {rule}",)  # "got" the place, it would else say


class SchemaExtraError(InvalidValueError):
    """jsonschema is not installed here. Another node may have it."""


def check_schema(schema: Any) -> None:
    """Raise InvalidValueError, with the place and the reason, unless `schema` is a JSON Schema."""
    _validator(_text(schema))


def check_parameters(schema: Mapping[str, Any] | str, parameters: Any) -> None:
    """Raise InvalidValueError, with the place and the rule, unless `parameters` fit `schema`, a mapping or its text."""
    validator = _validator(schema if isinstance(schema, str) else _text(schema))
    from jsonschema.exceptions import best_match

    try:
        error = best_match(validator.iter_errors(parameters))
    except (RecursionError, OverflowError) as problem:
        text = f"cannot be compared with their schema: {problem}"
        raise InvalidValueError("parameters", "$", text) from None
    if error is None:
        return
    place = error.json_path
    where = "" if place == "$" else f" at {show(place)[1:-1]}"
    raise UnfitError("parameters", place, f"do not fit their schema{where}: {_rule(error)}") from None


def _rule(error: Any) -> str:
    """The rule that is broken. Not in jsonschema's words: they repeat the value, which may be a secret."""
    keyword, value = error.validator, error.validator_value
    if keyword == "required":
        return f"required but missing: {_listed(key for key in value if key not in error.instance)}"
    if keyword == "additionalProperties":
        patterns = error.schema.get("patternProperties", {})
        known = error.schema.get("properties", {})
        other = (
            key
            for key in error.instance
            if key not in known and not any(re.search(one, key) for one in patterns)
        )
        return f"must not hold {_listed(other)}"
    if keyword == "type":
        return f"must be of type {value if isinstance(value, str) else ' or '.join(value)}"
    if keyword == "enum":
        return f"must be one of {_listed(value)}"
    words = _WORDS.get(keyword)
    return f"{keyword} {show(value)}" if words is None else words.format(show(value))


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(show, itertools.islice(values, MOST)))


def _text(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        raise InvalidTypeError("parameters_schema", schema, "must be a JSON Schema: a mapping")
    try:
        return json.dumps(dict(schema), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal(schema, error) from error


@lru_cache(maxsize=512)
def _validator(text: str) -> Any:
    """The validator of a schema that has been checked; memoised, for a fleet has few, and a check takes milliseconds."""
    try:
        import jsonschema
        from jsonschema_specifications import REGISTRY
        from referencing import Resource
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012
    except ImportError as error:
        raise SchemaExtraError(
            "parameters_schema", "a JSON Schema", 'needs jsonschema: pip install "pgscheduler[schema]"'
        ) from error
    schema = json.loads(text)
    draft = schema.get("$schema", _DRAFT)
    unknown: Any = None
    kind = (
        jsonschema.validators.validator_for({"$schema": draft}, unknown) if isinstance(draft, str) else None
    )
    if kind is None:
        raise _refusal(schema, f"$schema {show(draft)} is no draft that is known")
    try:
        kind.check_schema(schema)
        _follow(Resource.from_contents(schema, DRAFT202012), REGISTRY)
        validator = kind(schema, registry=REGISTRY)
        validator.is_valid({})  # a reference without end shows with any value
    except jsonschema.SchemaError as error:
        raise _refusal(schema, f"at {error.json_path}: {error.message}") from error
    except Unresolvable as error:
        raise _refusal(schema, f"$ref {show(error.ref)} leads nowhere, and none is fetched") from error
    except RecursionError as error:
        raise _refusal(schema, "it refers to itself without end") from error
    return validator


def _follow(resource: Any, registry: Any) -> None:
    """Raise Unresolvable for the first reference, also in what one leads to, that has no target."""
    todo = [(resource, registry.resolver_with_root(resource))]
    seen: set[int] = set()
    while todo:
        part, resolver = todo.pop()
        if id(part.contents) in seen or not isinstance(part.contents, Mapping):
            continue
        seen.add(id(part.contents))
        for keyword in _REFERENCES:
            reference = part.contents.get(keyword)
            if isinstance(reference, str):
                found = resolver.lookup(reference)
                todo.append((type(part)(found.contents, part._specification), found.resolver))
        todo += [(inner, resolver.in_subresource(inner)) for inner in part.subresources()]


def _refusal(schema: Mapping[str, Any], reason: object) -> InvalidValueError:
    return InvalidValueError("parameters_schema", dict(schema), f"is no JSON Schema: {str(reason)[:300]}")
