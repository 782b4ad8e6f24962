"""`pgscheduler api`: REST in the foreground, in a process that runs no jobs by itself."""

from __future__ import annotations

from typing import Any

import click

from pgscheduler.scheduler import Scheduler

from ._group import cli
from ._options import configuration, configure_log, database_options, debug_option
from ._serve import Work, serve
from ._target import load_target

__all__ = ["api"]


@cli.command()
@click.argument("target", metavar="[MODULE[:OBJECT]]", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, envvar="PGSCHEDULER_API_HOST")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    envvar="PGSCHEDULER_API_PORT",
    help="0: any free one.",
)
@click.option("--create-schema", is_flag=True, help="Create or upgrade the tables first.")
@database_options
@click.option(
    "--json", "as_json", is_flag=True, help="Start and end as JSON lines on stdout; the log is JSON too."
)
@debug_option
def api(
    target: str | None, host: str, port: int, create_schema: bool, where: dict[str, Any], as_json: bool
) -> int:
    """Answer REST until SIGINT or SIGTERM.

    Tokens come from PGSCHEDULER_API_READ_TOKENS and PGSCHEDULER_API_WRITE_TOKENS, separated by commas. Without any,
    only this machine is answered, and no other address is listened on.

    It runs no jobs, but those of MODULE when POST /jobs/engine/run asks for a pass. `pgscheduler run --role api
    --role worker` is both in one process.
    """
    configure_log(as_json)
    found = [] if target is None else load_target(target)
    if isinstance(found, Scheduler):
        raise click.UsageError(
            f"{target} is a Scheduler, which runs jobs: name Job classes, or use `run --role api`",
            click.get_current_context(),
        )
    settings = {"create_schema": True} if create_schema else {}
    scheduler = Scheduler(configuration(where, **settings))
    scheduler.init()
    try:
        for item in found:
            scheduler.register(item)
        return serve(scheduler, Work(roles=frozenset(["api"]), api=(host, port)), as_json)
    finally:
        scheduler.shutdown(0)
