"""All SQL, read from ``sql/*.sql`` and bound to one schema and prefix.

A statement is a file; its first line says what it does. ``{jobs}`` becomes ``"public"."pgscheduler_jobs"``,
quoted by psycopg; values only ever travel as parameters.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

from psycopg import sql

__all__ = ["Names", "Statements", "migrations"]

_PACKAGE = "pgscheduler"
_TABLES = ("jobs", "runs", "run_logs", "nodes", "migrations", "runs_default", "run_logs_default")
_FUNCTIONS = ("now", "enqueue")
# An index or constraint lives in its table's schema and is created without naming it.
_BARE = (
    "jobs_state", "jobs_times", "jobs_claimed", "jobs_pending", "jobs_running", "jobs_key",
    "runs_job", "runs_finished", "run_logs_job",
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
            "schema": sql.Identifier(schema),
            "channel": sql.Literal(self.channel),
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
