"""The command: each sub-command is one function that calls one verb of the scheduler.

What may surprise: a terminal gets tables in colour, anything else plain columns, `--json` exactly one JSON
document; and every failure is one line on stderr, because it will be read in a log.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import click
import psycopg
from click.core import ParameterSource

from pgscheduler.errors import InvalidTypeError, InvalidValueError, PgSchedulerError

from ._group import ReaderGoneError, StoppedByHandError, cli
from ._output import one_line, printable

__all__ = ["cli", "main", "one_line", "printable"]

BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended

#: The modules with commands, in the order in which `--help` shows these. A module's commands add themselves to
#: the group with `@cli.command()`; a new one is its file, a line here, and a line in the README's table.
MODULES = (
    "demo",
    "run",
    "api",
    "migrate",
    "lists",
    "show",
    "steer",
    "change",
    "retry",
    "logs",
    "stats",
    "doctor",
    "bench",
    "enqueue",
    "templates",
    "cron",
    "plan",
    "apply",
    "completion",
)
for _module in MODULES:
    importlib.import_module(f"{__name__}.{_module}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Whatever fails is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a locale that cannot say it must not fail
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = {"debug": False, "arguments": given}
    try:
        status = cli.main(
            args=given,
            prog_name="pgscheduler",
            standalone_mode=False,
            obj=options,
        )
        return status if isinstance(status, int) else 0
    except (BrokenPipeError, ReaderGoneError):
        # Python would complain once more when it closes stdout.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (KeyboardInterrupt, SystemExit, Exception) as error:  # noqa: BLE001 - each becomes one line
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else 1
        return _fail(error, bool(options["debug"]))


def _fail(error: BaseException, debug: bool) -> int:
    status, text = _explain(error)
    if debug:
        traceback.print_exception(error)
    with suppress(OSError):
        print(f"pgscheduler: error: {one_line(text)}", file=sys.stderr)
    return status


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit status and the text of an error."""
    if isinstance(error, click.UsageError):
        usage = error.ctx.command_path if error.ctx is not None else "pgscheduler"
        return 2, f"{error.format_message().rstrip('.')}{_origin(error)} (usage: see `{usage} --help`)"
    if isinstance(error, click.Abort | KeyboardInterrupt | StoppedByHandError):
        return 130, "interrupted"
    if isinstance(error, click.ClickException):
        return error.exit_code, error.format_message()
    if isinstance(error, InvalidValueError | InvalidTypeError):
        return 2, str(error)
    if isinstance(error, PgSchedulerError):
        return 1, str(error)
    if isinstance(error, psycopg.Error):
        return 1, f"PostgreSQL: {error}"
    return 1, f"{type(error).__name__}: {error} (--debug shows where)"


def _origin(error: click.UsageError) -> str:
    """The variable that a bad value of an option came from; nothing if it was said on the command line."""
    parameter, context = getattr(error, "param", None), error.ctx
    if parameter is None or context is None or not parameter.name or not parameter.envvar:
        return ""
    if context.get_parameter_source(parameter.name) is not ParameterSource.ENVIRONMENT:
        return ""
    names = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar
    return f" (from {next((name for name in names if os.environ.get(name)), names[0])})"
