"""`pgscheduler migrate`: make the tables; `pgscheduler schema`: print the SQL that would."""

from __future__ import annotations

from typing import Any

import click

from pgscheduler import _migrate
from pgscheduler._sql import Names
from pgscheduler._store import Store

from ._group import cli
from ._options import configuration, database_options, debug_option, json_option
from ._output import say_json

__all__ = ["migrate", "schema"]


@cli.command()
@click.option(
    "--print", "only_print", is_flag=True, help="Print the SQL for a DBA instead; needs no database."
)
@database_options
@json_option
@debug_option
def migrate(only_print: bool, where: dict[str, Any], as_json: bool) -> None:
    """Create or upgrade the tables."""
    if only_print:
        return _print(where, as_json)
    config = configuration(where, create_schema=True)
    names = Names(config.schema, config.table_prefix)
    connection = Store(
        config.conninfo, names, connect_timeout=config.connect_timeout.total_seconds()
    ).connect()
    try:
        connection.prepare_threshold = None  # migrations hold many statements each
        connection.execute("select set_config('lock_timeout', '0', false)")
        done = _migrate.migrate(connection, names)
        _migrate.check(connection, names)
    finally:
        connection.close()
    if as_json:
        say_json({"migrations": done, "schema": config.schema, "table_prefix": config.table_prefix})
    else:
        print(f"{done} migration{'s' * (done != 1)} applied" if done else "the tables are up to date")
    return None


@cli.command()
@database_options
@json_option
@debug_option
def schema(where: dict[str, Any], as_json: bool) -> None:
    """Print the SQL that makes the tables, as `migrate --print`.

    For psql or a DBA; needs no database. One transaction. What is there already is left alone, so it may be applied
    twice.
    """
    _print(where, as_json)


def _print(where: dict[str, Any], as_json: bool) -> None:
    config = configuration({"dsn": "dbname=unused", **where})
    text = _migrate.script(Names(config.schema, config.table_prefix))
    say_json({"sql": text}) if as_json else print(text)
