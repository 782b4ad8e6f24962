"""`pgscheduler plan` and what it shares with `apply`: the file, and how a plan is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from pgscheduler.definitions import Change, Plan
from pgscheduler.jobs._secrets import shown_change

from ._group import cli
from ._options import client, database_options, debug_option, json_option, load_definitions
from ._output import one_line, say_json, say_table

__all__ = ["file_options", "plan", "say_changes"]

F = TypeVar("F", bound=Callable[..., Any])


def file_options(function: F) -> F:
    """FILE and --source."""
    source = click.option("--source", help="Whose jobs these are. [default: as the file says, else its name]")
    return click.argument("file", type=click.Path())(source(function))


@cli.command()
@file_options
@database_options
@json_option
@debug_option
def plan(file: str, source: str | None, where: dict[str, Any], as_json: bool) -> int:
    """Show what an `apply` of a definitions FILE would do.

    Changes nothing. Ends with 1 if the apply would refuse, because a job exists that is not the file's.
    """
    wanted = load_definitions(file, source)
    with client(where) as scheduler:
        found = scheduler.plan(wanted)
    if as_json:
        say_json(found.to_dict(shown_change))
    else:
        say_changes(found, found.changes)
    return 1 if found.of("conflict") else 0


def say_changes(plan: Plan, changes: Iterable[Change]) -> None:
    """Changes as a table, and how many jobs are as they should be."""
    rows = [(change.action, change.name, change.key, _what(change)) for change in changes]
    say_table(f"Source {one_line(plan.source)}", ["action", "name", "key", "what"], rows, "nothing to change")
    print(f"{plan.unchanged} unchanged")


def _what(change: Change) -> str:
    if change.action == "conflict":
        return f"exists already, {change.differences['reason'][0]}"
    if change.action == "retire":
        return "runs now, and is asked to stop" if change.running else "its history stays"
    sides = {field: shown_change(*difference) for field, difference in change.differences.items()}
    parts = [
        f"{field}: {json.dumps(before, ensure_ascii=False)} → {json.dumps(after, ensure_ascii=False)}"
        for field, (before, after) in sides.items()
    ]
    return "; ".join([*parts, *(["runs now"] if change.running else [])])
