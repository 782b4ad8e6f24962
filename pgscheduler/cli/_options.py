"""What several commands take: options, the database, a JOB, times and parameters; wrong ones are usage errors."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar, cast
from zoneinfo import ZoneInfo

import click
import structlog
from click.core import ParameterSource

from pgscheduler import definitions
from pgscheduler._json import printable
from pgscheduler._settings import DEFAULT_FILE, FILE_VARIABLE, locate
from pgscheduler.client import JobRef
from pgscheduler.config import SchedulerConfig
from pgscheduler.definitions import Definitions
from pgscheduler.errors import InvalidTypeError, InvalidValueError, JobNotFoundError
from pgscheduler.records import JobRecord
from pgscheduler.scheduler import Scheduler

__all__ = [
    "client",
    "complete_job",
    "configuration",
    "configure_log",
    "confirm",
    "database_options",
    "debug_option",
    "debugging",
    "find_job",
    "finite",
    "job_argument",
    "json_option",
    "listing_options",
    "load_definitions",
    "log_settings",
    "parse_json",
    "parse_parameters",
    "parse_time",
    "read_lines",
    "settings_file",
    "yes_option",
]

F = TypeVar("F", bound=Callable[..., Any])

MAX_FILE = 1 << 20  # bytes of --params @file; what a job may hold is a sixteenth of it by default


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().ensure_object(dict)["debug"] = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show tracebacks and the log.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
_dsn = click.option(
    "--dsn",
    "--database-url",
    "dsn",
    help="The database. [env: PGSCHEDULER_DSN, DATABASE_URL or DB_USER, DB_HOST, …]",
)
_table_prefix = click.option(
    "--table-prefix",
    "--prefix",
    "table_prefix",
    help="[env: PGSCHEDULER_TABLE_PREFIX; default: pgscheduler_]",
)
_schema = click.option("--schema", help="[env: PGSCHEDULER_SCHEMA; default: public]")
_settings = click.option(
    "--settings",
    metavar="FILE",
    help=f"Settings as TOML. [env: {FILE_VARIABLE}; default: {DEFAULT_FILE}, if there is one]",
)
NO_DATABASE = (
    "no database: give --dsn, set PGSCHEDULER_DSN, DATABASE_URL or DB_USER (with DB_HOST, …), or write dsn in "
    f"{DEFAULT_FILE}"
)


def database_options(function: F) -> F:
    """Where the database is and what else is set; handed on as one argument, `where`."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        where = {name: kwargs.pop(name) for name in ("dsn", "table_prefix", "schema", "settings")}
        return function(*args, where={k: v for k, v in where.items() if v is not None}, **kwargs)

    return cast(F, _dsn(_table_prefix(_schema(_settings(wrapped)))))


def listing_options(default: int) -> Callable[[F], F]:
    """--limit and --offset."""

    def add(function: F) -> F:
        limit = click.option("--limit", type=click.IntRange(1, 10_000), default=default, show_default=True)
        offset = click.option("--offset", type=click.IntRange(0), default=0, help="Leave out so many first.")
        return limit(offset(function))

    return add


def configuration(where: Mapping[str, Any], **more: Any) -> SchedulerConfig:
    """The configuration: options, then the environment, then the file. Without a database it ends the command."""
    given = {**where, **more}
    file = settings_file(given.pop("settings", None))
    try:
        return SchedulerConfig.from_env(file=file, **given)
    except (InvalidValueError, InvalidTypeError) as error:
        if error.field == "dsn" and error.value == "neither":
            raise click.ClickException(NO_DATABASE) from None
        context = click.get_current_context()
        said = [n for n in given if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]
        locate(error, {name: f"--{name.replace('_', '-')}" for name in said})
        raise


def settings_file(named: str | None) -> str | None:
    """The file of --settings, or of the current directory; None leaves it to the environment."""
    if named is None and not os.environ.get(FILE_VARIABLE) and os.path.isfile(DEFAULT_FILE):
        return DEFAULT_FILE
    return named


def confirm(question: str, refusal: str) -> None:
    """Go on only after a yes. Without a terminal nobody can give it, and that is a usage error."""
    if not sys.stdin.isatty():
        raise click.UsageError(f"{refusal}: there is no terminal to ask on, so it takes --yes")
    try:
        sure = click.confirm(question, err=True)
    except click.Abort:
        sure = False
    if not sure:
        raise click.ClickException(f"{refusal} (--yes does it without asking)")


def log_settings(level: str, as_json: bool = False) -> dict[str, Any]:
    """How structlog shall write: to stderr, so that stdout belongs to the answer."""
    renderer: list[Any] = [structlog.processors.JSONRenderer()]
    if not as_json:
        renderer = [_printable, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return {
        "processors": [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            *renderer,
        ],
        "wrapper_class": structlog.make_filtering_bound_logger(level),
    }


def _printable(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What a job says, an error or a name from anywhere, stays on its line and leaves the terminal alone."""
    for name, value in event.items():
        if isinstance(value, str):
            value = printable(value)
            event[name] = value if name in ("exception", "stack") else value.replace("\n", "\\n")
    return event


def configure_log(as_json: bool) -> None:
    """The log of a process that stays, unless the program has configured its own: what libraries say has the same form."""
    settings = log_settings("debug" if debugging() else "info", as_json)
    # A line in one write: the nodes of --processes share it.
    if not structlog.is_configured():
        structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr), **settings)
    # The last resort, so that a module's own handlers keep theirs, and `basicConfig()` still works.
    logging.lastResort = _Libraries(structlog.wrap_logger(structlog.WriteLogger(sys.stderr), **settings))


class _Libraries(logging.Handler):
    """Warnings of libraries that log by the standard library: psycopg, uvicorn, asyncio."""

    def __init__(self, log: Any) -> None:
        super().__init__(logging.WARNING)
        self._log = log  # not structlog's configured one, which may be made to come back here

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            self._log.log(record.levelno, text, logger=record.name, exc_info=record.exc_info or None)
        except Exception:  # noqa: BLE001 - a log line must not end what it is about
            self.handleError(record)


def debugging() -> bool:
    return bool(click.get_current_context().find_root().ensure_object(dict).get("debug"))


@contextmanager
def client(where: Mapping[str, Any]) -> Iterator[Scheduler]:
    """A scheduler that is not started: it asks and schedules, and runs nothing."""
    # What its background loops have to say is of no use to a command that is over in a moment.
    settings = log_settings("debug" if debugging() else "critical")
    log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr), **settings)
    config = configuration(where, create_schema=False, logger=log)
    with Scheduler(config) as scheduler:
        yield scheduler


def complete_job(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of recurring jobs, which are those that people type. Whatever goes wrong, a shell gets no errors."""
    given = {name: context.params.get(name) for name in ("dsn", "table_prefix", "schema", "settings")}
    with suppress(Exception), context, client({k: v for k, v in given.items() if v is not None}) as scheduler:
        jobs = scheduler.jobs(recurring=True, limit=10_000)
        names = {job.name if job.key in (None, job.name) else f"{job.name}/{job.key}" for job in jobs}
        return sorted(name for name in names if name.startswith(incomplete))
    return []


job_argument = click.argument("job", shell_complete=complete_job)


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


def load_definitions(file: str, source: str | None) -> Definitions:
    """The definitions in a file; if neither it nor --source says whose they are, they belong to the file's name."""
    return definitions.load(file, source, fallback=Path(file).stem)


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


def parse_parameters(text: str, field: str = "params") -> Any:
    """JSON, or `@file` with JSON in it (`@-`: stdin)."""
    return parse_json(_read_file(text[1:], field) if text.startswith("@") else text, field)


def parse_json(text: str, field: str) -> Any:
    """JSON as the standard has it; what is wrong is told with the name that the user gave it under."""

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise click.BadParameter(
            f"{field} is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(
            f"{field} is not JSON: {str(error)[:80]} (line and column unknown)"
        ) from None


def _read_file(path: str, field: str) -> str:
    with _opened(path, field) as file:
        return _decoded(file.read(MAX_FILE + 1), path, field)


def read_lines(path: str, field: str) -> Iterator[str]:
    """The lines of a file (`-`: stdin) of any length, one after the other."""
    with _opened(path, field) as file:
        while line := file.readline(MAX_FILE + 1):
            yield _decoded(line, path, field)


@contextmanager
def _opened(path: str, field: str) -> Iterator[IO[bytes]]:
    try:
        if path == "-":
            yield sys.stdin.buffer
        else:
            with open(path, "rb") as file:
                yield file
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise click.BadParameter(f"{field}: cannot read {path[:80]!r}: {reason}") from None


def _decoded(content: bytes, path: str, field: str) -> str:
    if len(content) > MAX_FILE:
        raise click.BadParameter(f"{field}: {path[:80]!r} is too large (more than {MAX_FILE} bytes)")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise click.BadParameter(f"{field}: cannot read {path[:80]!r}: it is not UTF-8") from None


def finite(seconds: float) -> float:
    if not -1e9 < seconds < 1e9:
        raise click.BadParameter(f"the number of seconds must be finite and sensible, got {seconds}")
    return seconds
