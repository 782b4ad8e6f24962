"""All SQL, read from ``sql/*.sql`` and bound to one schema and prefix.

A statement is a file; its first line says what it does. ``{jobs}`` becomes ``"public"."pgscheduler_jobs"``,
quoted by psycopg; values only ever travel as parameters.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources

from psycopg import sql

__all__ = ["SHARED_NAMES", "Names", "Statements", "migrations", "positional"]

_PACKAGE = "pgscheduler"
_TABLES = (
    "jobs", "runs", "run_logs", "nodes", "migrations", "templates", "runs_default", "run_logs_default",
)  # fmt: skip
_FUNCTIONS = ("now", "enqueue")
#: A whole job, for statements that also run on callers' connections. Not `*`: what they have prepared there would break
#: in the middle of their transaction when the next version's migration adds a column.
JOB_COLUMNS = (
    "id", "run_at", "scheduled_at", "created_at", "token", "claimed_at", "heartbeat_at", "node_id", "priority",
    "failures", "stalls", "cancel_requested", "state", "name", "key", "parameters", "options", "schedule", "after_run",
    "completed_at", "result", "progress", "last_run", "last_success", "last_failure", "consecutive_failures",
    "execution_time_ms", "last_error",
)  # fmt: skip
#: The kinds of jobs that are shipped. Each stands for any request or command, so one that recurs and one that is asked for
#: once share its name. Every other name is of one kind.
SHARED_NAMES = ("call_job", "http_job", "shell_job")
# An index or constraint lives in its table's schema and is created without naming it.
_BARE = (
    "jobs_state", "jobs_times", "jobs_claimed", "jobs_pending", "jobs_running", "jobs_key",
    "runs_job", "runs_finished", "run_logs_job", "templates_schema",
)  # fmt: skip


class Names:
    """Every object of one (schema, prefix), so that two prefixes in one database never meet."""

    def __init__(self, schema: str, prefix: str) -> None:
        self.schema = schema
        self.prefix = prefix
        # One identifier whatever the lengths; schema and prefix are separated by a character neither may hold.
        digest = hashlib.md5(f"{schema}.{prefix}".encode(), usedforsecurity=False).hexdigest()
        self.channel = f"pgscheduler_{digest}"
        #: Advisory lock keys are per (schema, prefix) too; `chore` tells maintenance tasks apart.
        self._lock_base = int(digest[:12], 16) << 8
        self._identifiers: dict[str, sql.Composable] = {
            **{name: sql.Identifier(schema, prefix + name) for name in (*_TABLES, *_FUNCTIONS)},
            **{name: sql.Identifier(prefix + name) for name in _BARE},
            "job_columns": sql.SQL(", ").join(sql.Identifier("j", column) for column in JOB_COLUMNS),
            "schema": sql.Identifier(schema),
            "channel": sql.Literal(self.channel),
            "shared_names": sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, SHARED_NAMES))),
        }

    def table(self, name: str) -> str:
        """The quoted, qualified name, as SQL text."""
        return self._identifiers[name].as_string(None)

    def identifier(self, name: str) -> sql.Identifier:
        """The quoted, qualified name of any object that carries the prefix."""
        return sql.Identifier(self.schema, self.prefix + name)

    def lock_key(self, number: int) -> int:
        """An advisory lock's key: 0 is migration, the rest belong to maintenance."""
        return self._lock_base + number

    def render(self, text: str) -> str:
        return sql.SQL(text).format(**self._identifiers).as_string(None)


@cache
def positional(statement: str) -> tuple[bytes, tuple[str, ...]]:
    """A statement with $1, $2, … for its named parameters, and their names in that order."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    return re.sub(r"%\((\w+)\)s", number, statement).encode(), tuple(names)


class Statements:
    """The statements by file name: ``statements["claim"]``."""

    def __init__(self, names: Names) -> None:
        self._rendered = {name: names.render(text) for name, text in _sources("sql").items()}

    def __getitem__(self, name: str) -> str:
        return self._rendered[name]


def migrations() -> list[tuple[int, str, str]]:
    """(number, name, template) of each migration, in order."""
    found = []
    for name, text in sorted(_sources("migrations").items()):
        number, _, label = name.partition("_")
        found.append((int(number), label, text))
    return found


@cache
def _sources(folder: str) -> dict[str, str]:
    files = resources.files(_PACKAGE).joinpath(folder)
    return {
        file.name.removesuffix(".sql"): file.read_text(encoding="utf-8").rstrip()
        for file in files.iterdir()
        if file.name.endswith(".sql")
    }
