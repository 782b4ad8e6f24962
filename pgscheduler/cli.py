"""The command: each sub-command is one function that calls one verb of the scheduler.

What may surprise: a terminal gets tables in colour, anything else plain columns, `--json` exactly one JSON
document; and every failure is one line on stderr, because it will be read in a log.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar, cast
from zoneinfo import ZoneInfo

import click
import psycopg
import structlog
from click.core import ParameterSource
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import _migrate
from ._cron import read
from ._sql import Names
from ._store import Store
from ._version import __version__
from .client import JobRef
from .config import SchedulerConfig
from .errors import (
    InvalidTypeError,
    InvalidValueError,
    JobNotFoundError,
    PgSchedulerError,
)
from .job import Job
from .records import JobRecord, NodeRecord, RunRecord
from .schedule import Cron, zone
from .scheduler import Scheduler
from .states import JobState, Outcome

__all__ = ["cli", "main"]

F = TypeVar("F", bound=Callable[..., Any])

MAX_FILE = 1 << 20  # bytes of --params @file; what a job may hold is a sixteenth of it by default
TIME = "%Y-%m-%d %H:%M:%S"
BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended

_STATE_STYLES: Mapping[str, str] = {
    **dict.fromkeys(("completed", "alive"), "green"),
    **dict.fromkeys(("failed", "timed_out", "orphaned", "silent"), "red"),
    **dict.fromkeys(("stalled", "interrupted", "paused", "skipped"), "yellow"),
    "running": "cyan",
    **dict.fromkeys(("cancelled", "stopped"), "dim"),
}

_MISSED_LEAST = ("host", "slots", "node", "key", "took", "attempt", "last error", "why", "pid", "running")
_FOLDED = ("name", "key", "schedule", "last error", "why", "jobs that it knows", "the clock that day")

EXIT_CODES = """\b
Exit codes:
  0    done
  1    it did not work: no such job, no database, a job abandoned at shutdown
  2    the command line or a value in it is wrong; nothing was done
  130  interrupted by a (second) signal
  141  whoever read the output went away
"""


# --- what goes wrong -----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Whatever fails is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a locale that cannot say it must not fail
    options = {"debug": False}
    try:
        status = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="pgscheduler",
            standalone_mode=False,
            obj=options,
        )
        return status if isinstance(status, int) else 0
    except (BrokenPipeError, _ReaderGoneError):
        # Python would complain once more when it closes stdout.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (KeyboardInterrupt, SystemExit, Exception) as error:  # noqa: BLE001 - each becomes one line
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else 1
        return _fail(error, options["debug"])


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
        return 2, f"{error.format_message().rstrip('.')} (usage: see `{usage} --help`)"
    if isinstance(error, click.Abort | KeyboardInterrupt | _InterruptedError):
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


def one_line(text: object) -> str:
    """Text from anywhere, harmless to a terminal: on one line, control characters escaped."""
    return " ".join(printable(str(text)).split())


def printable(text: str) -> str:
    """The same, keeping line ends: a stored error text must not be able to move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


# --- how it is shown -------------------------------------------------------------------------------------


class _Console(Console):
    """A console that leaves a closed pipe to `main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def say_json(value: Any) -> None:
    """The one document of `--json`."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    print(json.dumps(value, indent=2, ensure_ascii=encoding != "utf8", default=str))


def say_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Rows as a table: in colour on a terminal, else in plain columns."""
    lines = [[one_line("" if cell is None else cell) for cell in row] for row in rows]
    if not lines:
        print(empty)
    elif _is_terminal():
        console = _Console()
        columns, lines, hidden = _fitting(columns, lines, console.width)
        table = Table(
            title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False
        )
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column not in _FOLDED)
        for line in lines:
            table.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in line))
        console.print(table)
        if hidden:
            console.print(Text(f"not shown for lack of width: {', '.join(hidden)}", style="dim"))
    else:
        widths = [max(len(cell) for cell in column) for column in zip(columns, *lines, strict=True)]
        for line in (list(columns), *lines):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _fitting(
    columns: Sequence[str], lines: list[list[str]], width: int
) -> tuple[list[str], list[list[str]], list[str]]:
    """What a terminal of this width can show whole: empty columns go first, then those that are missed least."""
    kept = [i for i in range(len(columns)) if any(line[i] for line in lines)]

    def needed() -> int:
        total = 2
        for i in kept:
            longest = max(len(columns[i]), *(len(line[i]) for line in lines))
            total += 3 + (min(longest, 16) if columns[i] in _FOLDED else longest)
        return total

    hidden = []
    for name in _MISSED_LEAST:
        if needed() <= width:
            break
        for i in [i for i in kept if columns[i] == name]:
            kept.remove(i)
            hidden.append(name)
    return [columns[i] for i in kept], [[line[i] for i in kept] for line in lines], hidden


def say_facts(facts: Mapping[str, object]) -> None:
    """One thing, a fact a line; what is absent is left out."""
    shown = {name: value for name, value in facts.items() if value not in (None, "", {}, [])}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        text = printable(str(value)).replace("\n", "\n" + " " * (width + 2))
        if _is_terminal():
            line = Text(f"{name:<{width}}  ", style="dim").append(
                text, style=_STATE_STYLES.get(text, "default")
            )
            _Console().print(line, soft_wrap=True)
        else:
            print(f"{name:<{width}}  {text}")


def moment(value: datetime | None) -> str:
    """A time as tables show it: UTC, to the second."""
    return "" if value is None else value.astimezone(UTC).strftime(TIME)


def span(value: timedelta | float | None) -> str:
    """A length of time: `0.4 s`, `12 min`, `3.2 h`."""
    if value is None:
        return ""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds < 120:
        return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def schedule_text(schedule: Mapping[str, Any] | None) -> str:
    """A stored schedule in a few words."""
    if schedule is None:
        return "once"
    if "cron" in schedule:
        where = "" if schedule["timezone"] == "UTC" else f" {schedule['timezone']}"
        return f"{schedule['cron']}{where}"
    return f"every {span(schedule['every'])}" if "every" in schedule else str(schedule.get("custom", "?"))


def job_row(job: JobRecord) -> list[object]:
    return [
        job.id,
        job.name,
        job.key,
        job.state,
        moment(job.run_at),
        schedule_text(job.schedule),
        job.attempt,
        job.last_error,
    ]


def job_facts(job: JobRecord) -> dict[str, object]:
    return {
        "id": job.id, "name": job.name, "key": job.key, "state": job.state,
        "schedule": schedule_text(job.schedule), "due (UTC)": moment(job.run_at),
        "parameters": json.dumps(job.parameters, ensure_ascii=False) if job.parameters else None,
        "attempt": job.attempt, "node": job.node_id, "last run": moment(job.last_run), "last error": job.last_error,
    }  # fmt: skip


def run_row(run: RunRecord) -> list[object]:
    why = run.reason or (run.error.strip().splitlines()[-1] if run.error and run.error.strip() else None)
    node = None if run.node_id is None else run.node_id[:8]
    return [
        run.id,
        run.name,
        run.key,
        run.outcome,
        run.attempt,
        moment(run.finished_at),
        span(run.duration),
        node,
        why,
    ]


def node_row(node: NodeRecord) -> list[object]:
    state = "alive" if node.alive else "stopped" if node.stopped_at else "silent"
    return [
        node.id,
        node.host,
        node.pid,
        state,
        node.running,
        node.slots,
        moment(node.heartbeat_at),
        " ".join(node.names),
    ]


# --- options -------------------------------------------------------------------------------------------


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().ensure_object(dict)["debug"] = True


_debug = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show tracebacks and the log.",
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else.")
_dsn = click.option("--dsn", help="The database. [env: PGSCHEDULER_DSN or DATABASE_URL]")
_table_prefix = click.option("--table-prefix", help="[env: PGSCHEDULER_TABLE_PREFIX; default: pgscheduler_]")
_schema = click.option("--schema", help="[env: PGSCHEDULER_SCHEMA; default: public]")


def database_options(function: F) -> F:
    """Where the database is; handed on as one argument, `where`."""

    @functools.wraps(function)
    def wrapped(
        *args: Any, dsn: str | None, table_prefix: str | None, schema: str | None, **kwargs: Any
    ) -> Any:
        where = {"dsn": dsn, "table_prefix": table_prefix, "schema": schema}
        return function(*args, where={k: v for k, v in where.items() if v is not None}, **kwargs)

    return cast(F, _dsn(_table_prefix(_schema(wrapped))))


def listing_options(default: int) -> Callable[[F], F]:
    """--limit and --offset."""

    def add(function: F) -> F:
        limit = click.option("--limit", type=click.IntRange(1, 10_000), default=default, show_default=True)
        offset = click.option("--offset", type=click.IntRange(0), default=0, help="Leave out so many first.")
        return limit(offset(function))

    return add


def configuration(where: Mapping[str, Any], **more: Any) -> SchedulerConfig:
    """The configuration from options and environment; a usage error if there is no database in it."""
    if not (
        where.get("dsn")
        or "dsn" in where
        or os.environ.get("PGSCHEDULER_DSN")
        or os.environ.get("DATABASE_URL")
    ):
        raise click.UsageError(
            "no database: give --dsn, or set PGSCHEDULER_DSN or DATABASE_URL", click.get_current_context()
        )
    return SchedulerConfig.from_env(**{**where, **more})


def log_settings(level: str, as_json: bool = False) -> dict[str, Any]:
    """How structlog shall write: to stderr, so that stdout belongs to the answer."""
    renderer: Any = structlog.processors.JSONRenderer()
    if not as_json:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    return {
        "processors": [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        "wrapper_class": structlog.make_filtering_bound_logger(level),
    }


def _debugging() -> bool:
    return bool(click.get_current_context().find_root().ensure_object(dict).get("debug"))


@contextmanager
def client(where: Mapping[str, Any]) -> Iterator[Scheduler]:
    """A scheduler that is not started: it asks and schedules, and runs nothing."""
    # What its background loops have to say is of no use to a command that is over in a moment.
    settings = log_settings("debug" if _debugging() else "critical")
    log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr), **settings)
    config = configuration(where, create_schema=False, logger=log)
    with Scheduler(config) as scheduler:
        yield scheduler


def find_job(scheduler: Scheduler, text: str) -> JobRecord:
    """The job that a user means: an id, a name, or NAME/KEY. Names may hold slashes, so the whole comes first."""
    if text.isascii() and text.isdigit():
        with suppress(JobNotFoundError):
            return scheduler.get_job(int(text))
    named = scheduler.jobs(name=text, limit=6)
    if named:
        return _the_only(named, text, [job for job in named if job.key == job.name])
    pairs = [(text[:i], text[i + 1 :]) for i, c in enumerate(text) if c == "/" and 0 < i < len(text) - 1]
    live = [job for name, key in pairs for job in scheduler.jobs(name=name, key=key, limit=1)]
    if live:
        return _the_only(live, text, [])
    references: list[JobRef] = [text, *pairs]
    for reference in references:
        with suppress(JobNotFoundError):
            return scheduler.get_job(reference)  # one that has ended: the verbs say so
    raise JobNotFoundError(text)


def _the_only(found: list[JobRecord], text: str, better: list[JobRecord]) -> JobRecord:
    found = better or found
    if len(found) > 1:
        shown = ", ".join(f"{job.id} ({job.name}{'/' + job.key if job.key else ''})" for job in found[:5])
        more = ", …" if len(found) > 5 else ""
        raise click.ClickException(f"{text!r} means more than one job: {shown}{more}; give an id or NAME/KEY")
    return found[0]


def parse_time(field: str, text: str, default: ZoneInfo | None = None) -> datetime:
    """An ISO 8601 time; without an offset it is of the zone `default`, or an error."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise click.BadParameter(
            f"{field} must be an ISO 8601 time such as 2027-01-31T09:00:00+01:00, got {text[:80]!r}"
        ) from None
    if found.tzinfo is None:
        if default is None:
            raise click.BadParameter(
                f"{field} must be an ISO 8601 time with an offset (+01:00 or Z), got {text[:80]!r}"
            )
        found = found.replace(tzinfo=default)
    return found


def parse_parameters(text: str) -> Any:
    """JSON, or `@file` with JSON in it (`@-`: stdin)."""
    if text.startswith("@"):
        text = _read_file(text[1:])

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise click.BadParameter(
            f"params is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"params is not JSON: {str(error)[:80]} (line and column unknown)") from None


def _read_file(path: str) -> str:
    try:
        if path == "-":
            content = sys.stdin.buffer.read(MAX_FILE + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise click.BadParameter(f"params: cannot read {path[:80]!r}: {reason}") from None
    if len(content) > MAX_FILE:
        raise click.BadParameter(f"params: {path[:80]!r} is too large (more than {MAX_FILE} bytes)")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise click.BadParameter(f"params: cannot read {path[:80]!r}: it is not UTF-8") from None


# --- the commands ---------------------------------------------------------------------------------------


class _ReaderGoneError(Exception):
    """Nobody reads our output any more. A name of its own, because click makes exit status 1 of the builtin."""


class _InterruptedError(Exception):
    """Ctrl-C. A name of its own, because click prints an empty line for the builtin."""


class _Group(click.Group):
    """Commands in the order in which one meets them, not by the alphabet."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise _ReaderGoneError from error
        except KeyboardInterrupt as error:
            raise _InterruptedError from error
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
@_debug
def cli() -> None:
    """Jobs on PostgreSQL: run them, see them, steer them.

    Start with `pgscheduler demo`. A JOB is an id, a name, or NAME/KEY. Times without an offset are UTC.
    """


@cli.command()
@click.option("--keep", is_flag=True, help="Leave the database running at the end, and say where it is.")
@_json
@_debug
def demo(keep: bool, as_json: bool) -> int:
    """Watch a hundred jobs survive a kill -9.

    Starts a private PostgreSQL, two node processes, a recurring job and a hundred one-time jobs that read,
    total and compress files; kills one node while it works; then checks that nothing was lost or doubled.
    Takes about a quarter of a minute and leaves nothing behind. Needs the extra `embedded`.
    """
    from . import demo as show

    return show.play(keep=keep, as_json=as_json)


@cli.command()
@click.argument("target", metavar="MODULE[:OBJECT]")
@click.option("--max-concurrent-jobs", type=int, help="Runs at the same time on this node. [default: 10]")
@click.option("--create-schema", is_flag=True, help="Create or upgrade the tables first.")
@click.option(
    "--shutdown-timeout",
    type=float,
    metavar="SECONDS",
    help="How long running jobs may take to end. [default: 30]",
)
@database_options
@click.option(
    "--json", "as_json", is_flag=True, help="Start and end as JSON lines on stdout; the log is JSON too."
)
@_debug
@click.pass_context
def run(
    context: click.Context,
    target: str,
    max_concurrent_jobs: int | None,
    create_schema: bool,
    shutdown_timeout: float | None,
    where: dict[str, Any],
    as_json: bool,
) -> int:
    """Run a node until SIGINT or SIGTERM.

    OBJECT is a Scheduler, a function that returns one, a Job class, or a list of Job classes and objects;
    recurring ones are scheduled. Without OBJECT: all Job classes that MODULE defines. MODULE may lie in the
    current directory.

    A signal ends it in good order, with status 0; with status 1 if jobs did not end within the shutdown
    timeout and were given back. A second signal ends it at once, with status 130.
    """
    options = {
        "max_concurrent_jobs": max_concurrent_jobs,
        "create_schema": create_schema or None,
        "shutdown_timeout": None
        if shutdown_timeout is None
        else timedelta(seconds=_finite(shutdown_timeout)),
    }
    given = {k: v for k, v in options.items() if v is not None}
    if not structlog.is_configured():  # before the module is loaded, which may have a wish of its own
        settings = log_settings("debug" if _debugging() else "info", as_json)
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), **settings)
    found = load_target(target)
    if isinstance(found, Scheduler):
        named = [
            f"--{n.replace('_', '-')}"
            for n in (*where, *given)
            if context.get_parameter_source(n) is ParameterSource.COMMANDLINE
        ]
        if named:
            raise click.UsageError(
                f"{target} is a Scheduler with a configuration of its own: {', '.join(named)} has no effect",
                context,
            )
        return serve(found, [], as_json)
    return serve(Scheduler(configuration(where, **given)), found, as_json)


def _finite(seconds: float) -> float:
    if not -1e9 < seconds < 1e9:
        raise click.BadParameter(f"the number of seconds must be finite and sensible, got {seconds}")
    return seconds


def load_target(target: str) -> Scheduler | list[type[Job] | Job]:
    """What MODULE[:OBJECT] names. Whatever its code raises is told in one line, with the module's name."""
    name, _, attribute = target.partition(":")
    if not name:
        raise click.UsageError("MODULE is missing in MODULE[:OBJECT]")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        hint = (
            f" (a module is meant, not a file: {name[:-3].replace('/', '.')})" if name.endswith(".py") else ""
        )
        raise click.ClickException(
            f"cannot import module {name!r}: {type(error).__name__}: {error}{hint}"
        ) from error
    if not attribute:
        jobs = [v for v in vars(module).values() if _is_job_class(v) and v.__module__ == module.__name__]
        if not jobs:
            raise click.ClickException(
                f"cannot import a job from module {name!r}: it defines no Job class; name an OBJECT"
            )
        return list(dict.fromkeys(jobs))
    found: Any = module
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise click.ClickException(
            f"cannot import {attribute!r} from module {name!r}: there is no such attribute"
        ) from None
    if callable(found) and not isinstance(found, type | Job | Scheduler):
        try:
            found = found()
        except Exception as error:
            raise click.ClickException(
                f"cannot import from module {name!r}: {attribute}() raised {type(error).__name__}: {error}"
            ) from error
    if isinstance(found, Scheduler):
        return found
    several = list(found) if isinstance(found, list | tuple | set | frozenset) else [found]
    if several and all(_is_job_class(item) or isinstance(item, Job) for item in several):
        return several
    kind = found.__name__ if isinstance(found, type) else type(found).__name__
    raise click.ClickException(
        f"cannot import {attribute!r} from module {name!r}: it is no Scheduler, no function that returns one, and "
        f"no Job or list of Jobs, but {kind}"
    )


def _is_job_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Job) and not inspect.isabstract(value)


class _Signals:
    """SIGINT and SIGTERM: the first is waited for, the second ends the process. Installed before the start,
    so that none can come too early."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._read, self._write = os.pipe()
        # Written to by the C handler: a Python one comes too late for a read that is just about to begin, and a
        # signal that another thread receives does not interrupt it.
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._previous = {
            number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def _heard(self, number: int, _frame: object) -> None:
        # No lock may be taken here: this runs between any two bytecodes of the main thread.
        self.received.append(number)
        if len(self.received) > 1:
            os.write(2, b"pgscheduler: second signal, exiting now\n")
            os._exit(130)

    def wait(self) -> str:
        while not self.received:
            os.read(self._read, 64)
        return signal.Signals(self.received[0]).name

    def close(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)


def serve(scheduler: Scheduler, jobs: list[type[Job] | Job], as_json: bool) -> int:
    """Start, wait for a signal, stop; the exit status."""

    def tell(event: str, **facts: Any) -> None:
        if as_json:
            with suppress(OSError):  # nobody reads it any more: no reason to stop a node
                print(json.dumps({"event": event, "node": scheduler.id, **facts}), flush=True)

    signals = _Signals()
    try:
        if scheduler.node_stats()["state"] == "new":
            scheduler.init()
        names = []
        for item in jobs:
            job = item() if isinstance(item, type) else item
            names.append(scheduler.register(item))
            if job.config.schedule is not None:
                scheduler.schedule(job)
        if scheduler.node_stats()["state"] == "ready":
            scheduler.start()
        tell("started", pid=os.getpid(), jobs=sorted(names))
        received = signals.wait()
        scheduler.log.info("signal received, shutting down", signal=received)
        clean = scheduler.shutdown()
        abandoned = 0 if clean else scheduler.abandon()
        tell("stopped", signal=received, clean=clean, abandoned=abandoned)
        if not clean:
            sys.stderr.write(
                "pgscheduler: error: some jobs did not end in time; they were given back to other nodes\n"
            )
            with suppress(OSError):
                sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # their threads still run, and must not go on beside the next attempt
        return 0
    finally:
        with suppress(Exception):
            scheduler.shutdown(0)
        signals.close()


@cli.command()
@click.option(
    "--print", "only_print", is_flag=True, help="Print the SQL for a DBA instead; needs no database."
)
@database_options
@_json
@_debug
def migrate(only_print: bool, where: dict[str, Any], as_json: bool) -> None:
    """Create or upgrade the tables."""
    if only_print:
        config = SchedulerConfig.from_env(**{"dsn": "dbname=unused", **where})
        text = _migrate.script(Names(config.schema, config.table_prefix))
        say_json({"sql": text}) if as_json else print(text)
        return
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


@cli.command()
@click.option("--name", help="Only jobs of this name.")
@click.option("--key", help="Only jobs with this key.")
@click.option("--state", type=click.Choice([s.value for s in JobState if not s.final]))
@click.option("--recurring/--one-time", default=None, help="Only one of the two kinds.")
@listing_options(100)
@database_options
@_json
@_debug
def jobs(where: dict[str, Any], as_json: bool, **filters: Any) -> None:
    """List live jobs, newest first. Those that have ended are in `runs`."""
    with client(where) as scheduler:
        found = scheduler.jobs(**filters)
    if as_json:
        return say_json([job.to_dict() for job in found])
    columns = ("id", "name", "key", "state", "due (UTC)", "schedule", "attempt", "last error")
    return say_table("Jobs", columns, map(job_row, found), "no jobs")


@cli.command()
@click.argument("job", required=False)
@click.option("--name", help="Only runs of this name.")
@click.option("--key", help="Only runs with this key.")
@click.option("--outcome", type=click.Choice([o.value for o in Outcome]))
@click.option("--since", metavar="ISO", help="Only runs that ended at this time or later.")
@listing_options(50)
@database_options
@_json
@_debug
def runs(where: dict[str, Any], as_json: bool, job: str | None, since: str | None, **filters: Any) -> None:
    """List the history, of one JOB or of all, newest first."""
    after = None if since is None else parse_time("--since", since, zone("UTC"))
    with client(where) as scheduler:
        reference = None
        if job is not None:
            try:
                reference = find_job(scheduler, job).id
            except (JobNotFoundError, click.ClickException):
                if not scheduler.runs(name=job, limit=1):  # a name that several jobs had
                    raise
                filters["name"] = job
        found = scheduler.runs(reference, since=after, **filters)
    if as_json:
        return say_json([one.to_dict() for one in found])
    columns = ("id", "name", "key", "outcome", "attempt", "ended (UTC)", "took", "node", "why")
    return say_table("Runs", columns, map(run_row, found), "no runs")


@cli.command()
@click.option("--alive", is_flag=True, help="Only those that live.")
@listing_options(100)
@database_options
@_json
@_debug
def nodes(where: dict[str, Any], as_json: bool, alive: bool, limit: int, offset: int) -> None:
    """List the nodes, living or gone, newest first."""
    with client(where) as scheduler:
        found = [node for node in scheduler.nodes() if node.alive or not alive][offset : offset + limit]
    if as_json:
        return say_json([node.to_dict() for node in found])
    columns = ("id", "host", "pid", "state", "running", "slots", "heartbeat (UTC)", "jobs that it knows")
    return say_table("Nodes", columns, map(node_row, found), "no nodes")


def _job_command(name: str, text: str) -> Callable[[Callable[[Scheduler, JobRecord], Any]], click.Command]:
    """A command that does one thing to one JOB."""

    def make(verb: Callable[[Scheduler, JobRecord], Any]) -> click.Command:
        @cli.command(name, help=text)
        @click.argument("job")
        @database_options
        @_json
        @_debug
        def command(job: str, where: dict[str, Any], as_json: bool) -> None:
            with client(where) as scheduler:
                found = find_job(scheduler, job)
                answer = verb(scheduler, found)
            if isinstance(answer, JobRecord):
                say_json(answer.to_dict()) if as_json else say_facts(job_facts(answer))
            elif as_json:
                say_json({"id": found.id, "name": found.name, "key": found.key, "result": answer})
            else:
                print(_ANSWERS[answer].format(id=found.id, name=one_line(found.name)))

        return command

    return make


_ANSWERS = {
    "cancelled": "job {id} ({name}) is cancelled",
    "requested": "job {id} ({name}) is running; it was asked to stop",
    "deleted": "job {id} ({name}) is deleted; its history stays",
}


@_job_command("cancel", "Cancel a JOB. One that waits ends at once; one that runs is asked to stop.")
def cancel(scheduler: Scheduler, job: JobRecord) -> Any:
    return scheduler.cancel(job)


@_job_command("pause", "Pause a JOB. It is not started any more until it is resumed.")
def pause(scheduler: Scheduler, job: JobRecord) -> Any:
    return scheduler.pause(job)


@_job_command("resume", "Resume a paused JOB. A recurring one goes on with its next occurrence.")
def resume(scheduler: Scheduler, job: JobRecord) -> Any:
    return scheduler.resume(job)


@_job_command("trigger", "Make a JOB due now. A recurring one keeps its schedule.")
def trigger(scheduler: Scheduler, job: JobRecord) -> Any:
    return scheduler.trigger(job)


@cli.command()
@click.argument("job")
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_options
@_json
@_debug
def delete(job: str, yes: bool, where: dict[str, Any], as_json: bool) -> None:
    """Delete a JOB for good; its history stays. Asks first."""
    with client(where) as scheduler:
        found = find_job(scheduler, job)
        label = f"{found.name}/{found.key}" if found.key and found.key != found.name else found.name
        if not yes:
            try:
                sure = click.confirm(f"Delete job {found.id} ({one_line(label)})?", err=True)
            except click.Abort:
                sure = False
            if not sure:
                raise click.ClickException("nothing was deleted (--yes deletes without asking)")
        answer = scheduler.delete(found)
    if as_json:
        say_json({"id": found.id, "name": found.name, "key": found.key, "result": answer})
    else:
        print(_ANSWERS[answer].format(id=found.id, name=one_line(found.name)))


@cli.command()
@click.argument("run_id", metavar="RUN")
@database_options
@_json
@_debug
def logs(run_id: str, where: dict[str, Any], as_json: bool) -> None:
    """Show what a RUN logged with `ctx.log`. Its id is in `runs`."""
    with client(where) as scheduler:
        lines = scheduler.logs(run_id)
    if as_json:
        return say_json([line.to_dict() for line in lines])
    if not lines:
        print("it logged nothing")
    for line in lines:
        fields = " ".join(f"{name}={value!r}" for name, value in line.fields.items())
        print(one_line(f"{line.at.isoformat(timespec='milliseconds')} {line.level:<8} {line.event} {fields}"))
    return None


@cli.command()
@database_options
@_json
@_debug
def stats(where: dict[str, Any], as_json: bool) -> None:
    """Count the live jobs. By name and state, with the age of the oldest due one."""
    with client(where) as scheduler:
        found = scheduler.stats()
        living = [node for node in scheduler.nodes() if node.alive]
    found.pop("node")  # the figures of this very process, which runs nothing
    facts = {
        "nodes": len(living), "slots": sum(node.slots for node in living), "due": found["due"],
        "oldest_due_seconds": found["oldest_due_seconds"], "states": found["states"], "names": found["names"],
    }  # fmt: skip
    if as_json:
        return say_json(facts)
    states = ("pending", "running", "paused")
    rows = [[name, *(counts.get(state, 0) for state in states)] for name, counts in found["names"].items()]
    say_table("Live jobs", ("name", *states), rows, "no live jobs")
    late = (
        "" if found["oldest_due_seconds"] is None else f", the oldest for {span(found['oldest_due_seconds'])}"
    )
    print(f"{found['due']} due{late}; {len(living)} living nodes with {facts['slots']} slots")
    return None


@cli.command()
@click.argument("name")
@click.option(
    "--params",
    "--parameters",
    default=None,
    metavar="JSON|@FILE",
    help="The job's parameters; @- reads stdin.",
)
@click.option("--key", help="At most one waiting job per name and key: a second one replaces it.")
@click.option("--at", metavar="ISO", help="When, such as 2027-01-31T09:00:00+01:00. Default: now.")
@click.option("--delay", type=float, metavar="SECONDS", help="How long from now.")
@click.option("--priority", type=int, default=5, show_default=True, help="Smaller first.")
@database_options
@_json
@_debug
def enqueue(
    name: str,
    params: str | None,
    key: str | None,
    at: str | None,
    delay: float | None,
    priority: int,
    where: dict[str, Any],
    as_json: bool,
) -> None:
    """Store a one-time job. A node that knows its NAME runs it."""
    if at is not None and delay is not None:
        raise click.UsageError("--at and --delay exclude each other", click.get_current_context())
    parameters = ... if params is None else parse_parameters(params)
    run_at = None if at is None else parse_time("--at", at)
    wait = None if delay is None else timedelta(seconds=_finite(delay))
    with client(where) as scheduler:
        job = scheduler.enqueue(name, parameters, key=key, run_at=run_at, delay=wait, priority=priority)
    say_json(job.to_dict()) if as_json else say_facts(job_facts(job))


# --- cron ----------------------------------------------------------------------------------------------


@cli.command()
@click.argument("expression", metavar="EXPR")
@click.option("--timezone", default="UTC", show_default=True, help="An IANA zone such as Europe/Berlin.")
@click.option("--count", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option(
    "--from", "start", metavar="ISO", help="After this time (without an offset: of the zone). Default: now."
)
@_json
@_debug
def cron(expression: str, timezone: str, count: int, start: str | None, as_json: bool) -> None:
    """Show when a cron EXPR comes next.

    It has 5 fields, or 6 with the seconds first. Needs no database.

    A day on which the zone's offset changes is marked: there, what the clock skips runs right after the gap,
    and what it shows twice runs once, unless second, minute or hour is a star.
    """
    schedule = Cron(expression, timezone)
    tz = zone(read(schedule.expression).zone or timezone)
    instant = datetime.now(UTC) if start is None else parse_time("--from", start, tz)
    found: list[datetime] = []
    while (
        len(found) < count and (following := schedule.next_after(found[-1] if found else instant)) is not None
    ):
        found.append(following)
    now = datetime.now(UTC)
    rows = [_occurrence(at, tz) for at in found]
    if as_json:
        return say_json({"expression": schedule.expression, "timezone": tz.key, "occurrences": rows})
    if not rows:
        print("never again")
    else:
        columns = ["", tz.key, "offset", "", "UTC", "from now", "the clock that day"]
        kept = [0, 4, 5] if tz.key == "UTC" else [0, 1, 2, 3, 4, 5]
        if any(row["note"] for row in rows):
            kept.append(6)
        shown = [
            [
                *(row[n] for n in ("weekday", "local", "offset", "abbreviation", "utc")),
                _ahead(at - now),
                row["note"],
            ]
            for row, at in zip(rows, found, strict=True)
        ]
        columns, shown = [columns[i] for i in kept], [[row[i] for i in kept] for row in shown]
        say_table(schedule.expression, columns, shown, "")
    if len(rows) < count:
        print("and never after that, within the calendar")
    return None


def _ahead(length: timedelta) -> str:
    return f"in {span(length)}" if length >= timedelta(0) else f"{span(-length)} ago"


def _occurrence(at: datetime, tz: ZoneInfo) -> dict[str, Any]:
    local = at.astimezone(tz)
    change = offset_change(local)
    return {
        "local": local.strftime("%Y-%m-%dT%H:%M:%S"),
        "weekday": local.strftime("%a"),
        "offset": local.strftime("%z")[:3] + ":" + local.strftime("%z")[3:5],
        "abbreviation": local.tzname(),
        "utc": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "note": change,
    }


def offset_change(local: datetime) -> str | None:
    """What the zone does on this local day: `02:00 → 03:00, 1 h skipped`; None on most days."""
    tz = local.tzinfo
    assert tz is not None
    try:
        midnight = datetime(local.year, local.month, local.day, tzinfo=tz)
        low = midnight.astimezone(UTC)
        high = (midnight + timedelta(days=1)).astimezone(UTC)  # a day by the clock on the wall
    except OverflowError:  # the last day of the calendar
        return None
    # A change at the very end of midnight belongs to the day that it begins.
    low -= timedelta(seconds=1)
    high -= timedelta(seconds=1)
    before, after = low.astimezone(tz).utcoffset(), high.astimezone(tz).utcoffset()
    if before is None or after is None or before == after:
        return None
    while high - low > timedelta(seconds=1):
        middle = (low + (high - low) / 2).replace(microsecond=0)
        low, high = (middle, high) if middle.astimezone(tz).utcoffset() == before else (low, middle)
    shown = (high + before).strftime("%H:%M"), (high + after).strftime("%H:%M")
    moved = abs(after - before)
    word = "skipped" if after > before else "shown twice"
    return f"{shown[0]} → {shown[1]}, {span(moved) if moved < timedelta(hours=1) else f'{moved / timedelta(hours=1):g} h'} {word}"
