"""Settings from outside a program: environment variables and a TOML file, each with where it was found.

Text and TOML become values here; whether a value is a good one is for `SchedulerConfig` to say. Its error then also
tells which variable or file the value came from, because that is what has to be corrected.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import Field
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from .errors import InvalidTypeError, InvalidValueError

__all__ = ["DEFAULT_FILE", "FILE_VARIABLE", "PREFIX", "collect", "locate", "read_file"]

PREFIX = "PGSCHEDULER_"
FILE_VARIABLE = f"{PREFIX}SETTINGS"  # names the TOML file
DEFAULT_FILE = "pgscheduler.toml"  # where the command looks, in the current directory
COMMANDS = ("run",)  # tables that belong to commands, not to a scheduler
OBJECTS = ("pool", "logger")  # no text can stand for them
MAX_FILE = 1 << 20  # bytes; settings are a page
#: The variables of Cron Service, and what libpq calls them.
PARTS = {
    "DB_USER": "user",
    "DB_HOST": "host",
    "DB_PORT": "port",
    "DB_DATABASE": "dbname",
    "DB_PASSWORD": "password",
}
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def collect(
    fields: Iterable[Field[Any]], environ: Mapping[str, str], file: str | os.PathLike[str] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings that the environment and the file name, and where each was found. The environment wins."""
    known = {item.name: str(item.type) for item in fields if item.name not in OBJECTS}
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    file = file or environ.get(FILE_VARIABLE) or None
    if file is not None:
        label = os.path.basename(file)
        for name, value in read_file(file).items():
            if name in COMMANDS:
                continue
            if name not in known:
                raise InvalidValueError(label, name, f"holds an unknown setting{_meant(name, known)}")
            found[name], origins[name] = value, label
    for name, (value, variable) in _foreign(environ).items():
        found[name], origins[name] = value, variable
    for name, kind in known.items():
        variable = f"{PREFIX}{name.upper()}"
        text = environ.get(variable)
        # An empty DSN is no answer: platforms set variables that nobody filled in.
        if text is not None and (text or name != "dsn"):
            found[name], origins[name] = _from_text(variable, text, kind), variable
    return found, origins


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file of at most 1 MiB. Errors name the file and never repeat what is in it."""
    label = os.path.basename(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidValueError("settings", os.fspath(path), f"cannot be read: {reason}") from None
    if len(content) > MAX_FILE:
        raise InvalidValueError(
            "settings", os.fspath(path), f"must not hold more than {MAX_FILE} bytes (too large)"
        )
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise InvalidValueError(label, "(not shown)", "is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidValueError(label, "(not shown)", f"is not TOML: {error}") from None


def locate(error: InvalidValueError | InvalidTypeError, origins: Mapping[str, str]) -> None:
    """Let the error's text end with where the bad value came from."""
    about = error.field if error.field in origins else next((n for n in origins if n in error.rule), None)
    if about is not None:
        error.args = (f"{error} (from {origins[about]})",)


def _foreign(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """What is set for other programs and means the same here. Empty ones count as not set."""
    found: dict[str, tuple[Any, str]] = {}
    if environ.get("DATABASE_URL"):
        found["dsn"] = environ["DATABASE_URL"], "DATABASE_URL"
    elif environ.get("DB_USER"):
        found["dsn"] = _joined(environ), "DB_USER, DB_HOST, …"
    if environ.get("WORKER_COUNT"):
        text = environ["WORKER_COUNT"]
        found["max_concurrent_jobs"] = _from_text("WORKER_COUNT", text, "int"), "WORKER_COUNT"
    return found


def _joined(environ: Mapping[str, str]) -> str:
    """A conninfo of the DB_ variables; libpq's defaults for those that are not set."""
    parts = {word: environ[name] for name, word in PARTS.items() if environ.get(name)}
    if "port" in parts and not (parts["port"].isdecimal() and 1 <= int(parts["port"]) <= 65535):
        raise InvalidValueError("DB_PORT", parts["port"], "must be a port from 1 to 65535")
    try:
        return make_conninfo(**parts)
    except psycopg.ProgrammingError:
        raise InvalidValueError(
            "DB_USER, DB_HOST, …", "(not shown)", "must be what libpq understands"
        ) from None


def _from_text(variable: str, text: str, kind: str) -> Any:
    """A variable's text as the type that its setting is declared with."""
    if kind == "bool":
        word = text.strip().lower()
        if word not in _TRUE + _FALSE:
            raise InvalidValueError(variable, text, "must be true or false")
        return word in _TRUE
    if kind.startswith("str"):
        return text
    whole = kind.startswith("int")
    try:
        return int(text) if whole else float(text)
    except ValueError:
        rule = "must be a whole number" if whole else "must be a number of seconds"
        raise InvalidValueError(variable, text, rule) from None


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f" (did you mean {close[0]}?)" if close else ""
