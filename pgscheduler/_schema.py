"""JSON Schema, as far as parameters need it: is it one, and do they fit. Needs the extra `schema`.

What may surprise: no `$ref` is ever fetched. It leads to a place in the schema itself or to a published draft, or
the schema is refused; else whoever may write a schema could make a node call any address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from .errors import InvalidTypeError, InvalidValueError, show

__all__ = ["SchemaExtraError", "StoredSchema", "check_parameters", "check_schema"]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"  # unless a schema names another
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class StoredSchema(dict[str, Any]):
    """A JSON Schema that is stored with the job: its parameters are checked again before each run, on any node."""


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
    rule = error.validator_value
    if error.validator == "required":
        rule = [key for key in rule if key not in error.instance]
    # jsonschema's text repeats the value, which may be a secret; the place and the rule say enough.
    raise InvalidValueError(
        "parameters", error.json_path, f"do not fit their schema: {error.validator} {show(rule)}"
    ) from None


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
