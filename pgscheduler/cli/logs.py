"""`pgscheduler logs`."""

from __future__ import annotations

from typing import Any

import click

from ._group import cli
from ._options import client, database_options, debug_option, json_option, listing_options
from ._output import line_document, one_line, say_json

__all__ = ["logs"]


@cli.command()
@click.argument("run_id", metavar="RUN")
@listing_options(1000)
@database_options
@json_option
@debug_option
def logs(run_id: str, limit: int, offset: int, where: dict[str, Any], as_json: bool) -> None:
    """Show what a RUN logged with `ctx.log`, oldest first. Its id is in `runs`."""
    with client(where) as scheduler:
        lines = scheduler.logs(run_id)[offset : offset + limit]
    if as_json:
        return say_json([line_document(line) for line in lines])
    if not lines:
        print("it logged nothing")
    for line in lines:
        fields = " ".join(f"{name}={value!r}" for name, value in line_document(line)["fields"].items())
        print(one_line(f"{line.at.isoformat(timespec='milliseconds')} {line.level:<8} {line.event} {fields}"))
    return None
