"""`pgscheduler demo`."""

from __future__ import annotations

import click

from ._group import cli
from ._options import debug_option, json_option

__all__ = ["demo"]


@cli.command()
@click.option("--keep", is_flag=True, help="Leave the database running at the end, and say where it is.")
@json_option
@debug_option
def demo(keep: bool, as_json: bool) -> int:
    """Watch a hundred jobs survive a kill -9.

    Starts a private PostgreSQL, two node processes, a recurring job and a hundred one-time jobs that read,
    total and compress files; kills one node while it works; then checks that nothing was lost or doubled.
    Takes about a quarter of a minute and leaves nothing behind. Needs the extra `embedded`.
    """
    from pgscheduler import demo as show  # loads a PostgreSQL that only this command needs

    return show.play(keep=keep, as_json=as_json)
