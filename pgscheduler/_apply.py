"""Carry out what a source declares: one transaction, in which either all of it happens or nothing.

Applies of one (schema, prefix) go one after the other, by an advisory lock that ends with the transaction. What a
plan touches is locked, and the plan made again from what is there then, until it asks for nothing that is not locked:
so it holds against schedulers, nodes and people who know nothing of the advisory lock. Unchanged jobs are only read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import psycopg

from ._declared import MARK, Change, Definitions, Plan, compare
from ._sql import Names, Statements
from ._store import dicts, dump, tuples
from .errors import DuplicateJobError, JobKindError, JobRunningError
from .job import JobConfig

__all__ = ["Apply", "MovedError"]

LOCK = 200  # its number among the advisory locks of a prefix; maintenance counts up from 1

#: A job's columns as they would be stored, from its name, its configuration and the time.
Values = Callable[[str, JobConfig, datetime], dict[str, Any]]


class MovedError(Exception):
    """Somebody stored one of the jobs at the same moment; nothing was written, and another try will see it."""


class Apply:
    """One set of definitions against one set of tables."""

    def __init__(
        self,
        sql: Statements,
        names: Names,
        definitions: Definitions,
        values: Values,
        retire: frozenset[int] | bool = True,
    ) -> None:
        self._sql = sql
        self._lock = names.lock_key(LOCK)
        self._definitions = definitions
        self._values = values
        self._retire = retire
        self._wanted: dict[tuple[str, str], dict[str, Any]] = {}

    def plan(self, connection: psycopg.Connection[Any]) -> Plan:
        """What would happen; reads only."""
        if not self._wanted:
            ((now,),) = tuples(connection).execute(self._sql["now"]).fetchall()
            for one in self._definitions.jobs:
                values = self._values(one.name, self._definitions.marked(one), now)
                self._wanted[(one.name, one.key)] = values
        rows = self._rows(
            connection,
            "declared",
            names=[name for name, _ in self._wanted],
            keys=[key for _, key in self._wanted],
            mark=f'"{MARK}":{json.dumps(self._definitions.source)}',
        )
        enabled = [one.enabled for one in self._definitions.jobs]
        wanted = list(zip(self._wanted.values(), enabled, strict=True))
        return compare(self._definitions.source, wanted, rows, self._retire)

    def run(self, connection: psycopg.Connection[Any]) -> Plan:
        """Do it; what was done. Raises JobRunningError if a job that must change runs, and changes nothing then."""
        with connection.transaction():
            connection.execute("select pg_advisory_xact_lock(%s)", [self._lock])
            held: set[int] = set()
            while True:
                plan = self.plan(connection)
                _refuse(plan)
                touched = {change.id for change in plan.changes if change.id is not None}
                if touched <= held:
                    break
                connection.execute(self._sql["declare_lock"], {"ids": sorted(touched - held)})
                held |= touched
            for change in plan.of("retire"):
                self._rows(connection, "delete", id=change.id, name=None, key=None)
            self._change(connection, plan)
            self._create(connection, plan)
            for change in plan.changes:
                self._switch(connection, change)
        return plan

    def _change(self, connection: psycopg.Connection[Any], plan: Plan) -> None:
        jobs = [
            {"id": change.id, **_columns(self._wanted[(change.name, change.key)])}
            for change in plan.of("change")
        ]
        done = (
            {row["id"] for row in self._rows(connection, "declare_change", jobs=dump(jobs))}
            if jobs
            else set()
        )
        for change in plan.of("change"):
            if change.id not in done:
                raise JobRunningError((change.name, change.key))

    def _create(self, connection: psycopg.Connection[Any], plan: Plan) -> None:
        jobs = [
            {
                "name": change.name,
                "key": change.key,
                "paused": "enabled" in change.differences,
                **_columns(self._wanted[(change.name, change.key)]),
            }
            for change in plan.of("create")
        ]
        if not jobs:
            return
        done = {
            (row["name"], row["key"]) for row in self._rows(connection, "declare_create", jobs=dump(jobs))
        }
        missing = [change for change in plan.of("create") if (change.name, change.key) not in done]
        if not missing:
            return
        names = sorted({change.name for change in missing})
        keys = [change.key for change in missing]
        if self._rows(connection, "declared", names=[c.name for c in missing], keys=keys, mark="\x01"):
            raise MovedError
        raise JobKindError(f"job {names[0]!r} is one-time; a recurring job may not share its name", names[0])

    def _switch(self, connection: psycopg.Connection[Any], change: Change) -> None:
        """Pause or resume what exists."""
        if change.id is None or "enabled" not in change.differences:
            return
        if not change.differences["enabled"][1]:
            self._rows(connection, "pause", id=change.id, name=None, key=None)
            return
        values = self._wanted[(change.name, change.key)]
        kept = {key: values[key] for key in ("schedule", "run_at", "scheduled_at")}
        self._rows(connection, "resume", id=change.id, **kept)

    def _rows(
        self, connection: psycopg.Connection[Any], statement: str, **parameters: Any
    ) -> list[Mapping[str, Any]]:
        return list(dicts(connection).execute(self._sql[statement], parameters).fetchall())


def _refuse(plan: Plan) -> None:
    """Raise what keeps this plan from being carried out."""
    for change in plan.of("conflict"):
        reason = change.differences["reason"][0]
        raise DuplicateJobError(
            f"job {change.name!r} with key {change.key!r} exists already, {reason}: source {plan.source!r} may not "
            "take it; delete it first, or declare yours under another name",
            change.name,
        )
    for change in plan.of("change"):
        if change.running:
            raise JobRunningError((change.name, change.key))


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """For json_to_recordset."""
    found = {key: values[key] for key in ("priority", "parameters", "options", "schedule")}
    return {**found, **{key: values[key].isoformat() for key in ("run_at", "scheduled_at")}}
