"""The group that all commands belong to, and what it makes of an output that nobody reads and of Ctrl-C."""

from __future__ import annotations

import sys
from typing import Any

import click

from pgscheduler._version import __version__

from ._options import debug_option

__all__ = ["ReaderGoneError", "StoppedByHandError", "cli"]

EXIT_CODES = """\b
Exit codes:
  0    done
  1    it did not work: no such job, no database, a no to a question, a job abandoned at
       shutdown, a problem that the doctor found
  2    the command line or a value is wrong, or there is no terminal to ask on and no --yes;
       nothing was done
  130  interrupted by a (second) signal
  141  whoever read the output went away
"""


class ReaderGoneError(Exception):
    """Nobody reads our output any more. A name of its own, because click makes exit status 1 of the builtin."""


class StoppedByHandError(Exception):
    """Ctrl-C. A name of its own, because click prints an empty line for the builtin."""


class _Group(click.Group):
    """Commands in the order in which one meets them, not by the alphabet."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise ReaderGoneError from error
        except KeyboardInterrupt as error:
            raise StoppedByHandError from error
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(
    cls=_Group,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="pgscheduler", message="%(prog)s %(version)s")
@debug_option
def cli() -> None:
    """Jobs on PostgreSQL: run them, see them, steer them.

    Start with `pgscheduler demo`. A JOB is an id, a name, or NAME/KEY. Times without an offset are UTC.
    """
