"""The shipped JSON Schema: the one list of keys and of what each may hold. Its errors, in this package's words."""

from __future__ import annotations

import difflib
import itertools
import json
from functools import cache
from importlib import resources
from typing import Any

from pgscheduler.errors import show

from ._yaml import DefinitionError, Node

__all__ = ["check", "schema"]

_WORDS = {
    "integer": "an int",
    "string": "a str",
    "boolean": "a bool",
    "number": "a number",
    "object": "a mapping (dict)",
    "array": "a list",
}
MOST = 100  # errors that are looked at to tell the first one
_AFTER = {"additionalProperties": 0, "required": 2, "anyOf": 2}


def schema() -> dict[str, Any]:
    """The JSON Schema of a definitions file, as an editor wants it. A copy: it is yours."""
    found: dict[str, Any] = json.loads(_text())
    return found


@cache
def _text() -> str:
    return resources.files("pgscheduler").joinpath("definitions.schema.json").read_text(encoding="utf-8")


@cache
def _validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(schema())


def check(root: Node, file: str) -> None:
    """Raise DefinitionError for the first place at which the document breaks the schema."""
    try:
        validator = _validator()
    except ImportError as error:
        raise DefinitionError(
            file, 'checking it needs jsonschema: pip install "pgscheduler[yaml]"', field="yaml"
        ) from error
    found = list(itertools.islice(validator.iter_errors(root.plain()), MOST))
    if found:
        # What is misspelt comes first, for it makes other things look missing; then by place.
        first = min(found, key=lambda e: (_AFTER.get(e.validator, 1), _place(root, e), e.validator))
        line, column = _place(root, first)
        raise DefinitionError(file, _problem(first), line, column, field=_label(first) or "definitions")


def _place(root: Node, error: Any) -> tuple[int, int]:
    node = root
    for step in error.absolute_path:
        node = node.value[step]
    if error.validator == "additionalProperties":
        return min(node.keys[key] for key in _unknown(error))
    return node.line, node.column


def _unknown(error: Any) -> list[str]:
    return [key for key in error.instance if key not in error.schema["properties"]]


def _label(error: Any) -> str:
    """The key as a user would call it: `retries`, `backoff.factor`."""
    return ".".join(step for step in error.absolute_path if isinstance(step, str) and step != "jobs")


def _problem(error: Any) -> str:
    label, value = _label(error), error.validator_value
    if error.validator == "additionalProperties":
        key = _unknown(error)[0]
        close = difflib.get_close_matches(key, list(error.schema["properties"]), 1, 0.6)
        known = (
            f"did you mean {close[0]!r}?" if close else f"known are {', '.join(error.schema['properties'])}"
        )
        return f"unknown key {show(key)}: {known}"
    if error.validator == "required":
        missing = [key for key in value if key not in error.instance]
        return f"{missing[0]} is missing"
    if error.validator in ("not", "anyOf"):
        text: str = error.schema["description"]  # the schema says it in words
        return text
    label = label or ("a job" if error.absolute_path else "the document")
    if error.validator == "type":
        rule = (
            f"must be {' or '.join(_WORDS[kind] for kind in ([value] if isinstance(value, str) else value))}"
        )
        return f"{label} {rule}, got {type(error.instance).__name__} {show(error.instance)}"
    rule = {
        "minimum": "must be non-negative (>= 0)" if value == 0 else f"must be >= {value}",
        "exclusiveMinimum": f"must be > {value}",
        "maximum": f"must be <= {value}",
        "enum": f"must be one of {', '.join(map(str, value))}" if error.validator == "enum" else "",
        "minLength": "cannot be empty",
        "minItems": "cannot be empty",
        "maxLength": f"must not be longer than {value} characters (too long)",
        "maxItems": f"must not hold more than {value} (too many)",
    }.get(error.validator, error.message)
    return f"{label} {rule}, got {show(error.instance) if not isinstance(error.instance, list) else len(error.instance)}"
