"""`pgscheduler apply`: make the jobs of a source what its file says."""

from __future__ import annotations

from typing import Any

import click

from pgscheduler.jobs._secrets import shown_change

from ._group import cli
from ._options import client, confirm, database_options, debug_option, finite, json_option, load_definitions
from ._output import one_line, say_json
from .plan import file_options, say_changes

__all__ = ["apply"]


@cli.command()
@file_options
@click.option("--yes", is_flag=True, help="Do not ask before jobs that left the file are retired.")
@click.option("--no-retire", is_flag=True, help="Leave jobs that left the file.")
@click.option(
    "--wait",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for jobs that must change and run.",
)
@database_options
@json_option
@debug_option
def apply(
    file: str,
    source: str | None,
    yes: bool,
    no_retire: bool,
    wait: float,
    where: dict[str, Any],
    as_json: bool,
) -> None:
    """Make the jobs of a definitions FILE exist as it says.

    In one transaction. Jobs that left the file are retired, without --no-retire: deleted, while their history stays.
    Asks first.
    """
    wanted = load_definitions(file, source)
    with client(where) as scheduler:
        retire: bool | frozenset[int] = not no_retire
        if retire and not yes:
            leaving = scheduler.plan(wanted).of("retire")
            # Only what was shown: somebody else may apply another file of this source meanwhile.
            retire = frozenset(change.id for change in leaving if change.id is not None)
            if leaving:
                _confirm([f"{change.name}/{change.key}" for change in leaving])
        done = scheduler.apply(wanted, retire=retire, wait=finite(wait))
    if as_json:
        say_json(done.to_dict(shown_change))
    else:
        say_changes(done, done.changes)


def _confirm(labels: list[str]) -> None:
    shown = ", ".join(map(one_line, labels[:20])) + (
        f" and {len(labels) - 20} more" if len(labels) > 20 else ""
    )
    jobs = "1 job that is" if len(labels) == 1 else f"{len(labels)} jobs that are"
    confirm(f"Retire {jobs} not in the file ({shown})?", "nothing was applied")
