"""Recurring jobs as a file: `load("jobs.yaml")` reads it, `scheduler.plan(…)` compares, `scheduler.apply(…)` does it.

A file is data. Its names are looked up in no module, nothing in it is executed, and `pgscheduler/definitions.schema.json`
says which keys there are; editors can use it too. The first thing that is wrong is a `DefinitionError` with line and
column. Needs the extra `yaml`; `Definitions` made in Python needs nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from pgscheduler._declared import Change, Definition, Definitions, Plan
from pgscheduler.errors import InvalidTypeError

from ._document import definitions_in
from ._schema import schema
from ._yaml import MAX_BYTES, DefinitionError, read

__all__ = [
    "Change",
    "Definition",
    "DefinitionError",
    "Definitions",
    "Plan",
    "load",
    "parse",
    "schema",
]


def load(
    path: str | os.PathLike[str], source: str | None = None, *, fallback: str | None = None
) -> Definitions:
    """The definitions in a YAML file of at most 1 MiB, UTF-8. `source` wins over the file's own, which wins over
    `fallback`.

    Raises `DefinitionError`, which is an `InvalidValueError`.
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidTypeError("path", path, "must be a path")
    name = Path(path).name or str(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)  # the limit comes before the parser
    except FileNotFoundError:
        raise DefinitionError(name, "file not found") from None
    except IsADirectoryError:
        raise DefinitionError(name, "file not found: it is a directory") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DefinitionError(name, f"cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise DefinitionError(name, f"too large: more than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise DefinitionError(name, "is not UTF-8", line, column) from None
    return parse(text, source, file=name, fallback=fallback)


def parse(
    text: str, source: str | None = None, *, file: str = "definitions", fallback: str | None = None
) -> Definitions:
    """The definitions in YAML text, of whose `source` the same holds. `file` is what errors call it.

    Raises `DefinitionError`, which is an `InvalidValueError`.
    """
    if not isinstance(text, str):
        raise InvalidTypeError("text", text, "must be a str")
    # Characters cost at least a byte each, so this bounds what is counted.
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise DefinitionError(file, f"too large: more than {MAX_BYTES} bytes")
    root = read(text, file)
    if root is None or root.value is None:
        raise DefinitionError(
            file, "empty: there is nothing in it", hint="no jobs at all are written `jobs: []`"
        )
    return definitions_in(root, source, file, fallback)
