"""`pgscheduler bench`: print what the benchmark measured."""

from __future__ import annotations

import sys
from typing import Any

import click

from ._group import cli
from ._options import configuration, database_options, debug_option, json_option
from ._output import say_json, say_table

__all__ = ["bench"]


@cli.command()
@database_options
@click.option(
    "--jobs", type=click.IntRange(1_000, 10_000_000), default=20_000, show_default=True, help="To drain."
)
@click.option(
    "--pickups", type=click.IntRange(10, 100_000), default=200, show_default=True, help="On an idle node."
)
@click.option("--max-concurrent-jobs", type=click.IntRange(1, 10_000), default=10, show_default=True)
@json_option
@debug_option
def bench(where: dict[str, Any], jobs: int, pickups: int, max_concurrent_jobs: int, as_json: bool) -> None:
    """Measure how fast this database is for jobs.

    Stores, runs and starts jobs that do nothing, with what pgbench does with the same SQL beside it. Works in tables
    of its own (prefix pgscheduler_bench_), which it removes; refuses a prefix that holds jobs or history. It loads
    the server for half a minute: think before you run it on a busy one.
    """
    from pgscheduler.bench import PREFIX, measure  # needs the engine, which other commands do without

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"{text} …", file=sys.stderr)

    config = configuration({"table_prefix": PREFIX, **where}, max_concurrent_jobs=max_concurrent_jobs)
    report = measure(config, jobs=jobs, pickups=pickups, say=say)
    if as_json:
        return say_json(report.to_dict())
    rows = [
        (
            one.what,
            f"{one.value:,g} {one.unit}",
            "" if one.pgbench is None else f"{one.pgbench:,g} {one.unit}",
            "" if one.ratio is None else f"{one.ratio:.2f}",
        )
        for one in report.measured
    ]
    say_table("Benchmark", ("what", "pgscheduler", "the same SQL in pgbench", "ratio"), rows, "")
    print(", ".join(f"{name} {value}" for name, value in report.facts.items() if name != "pgbench"))
    if report.facts["pgbench"] is None:
        print(
            "no pgbench here to compare with: it comes with PostgreSQL's server, and with the extra `embedded`"
        )
    return None
