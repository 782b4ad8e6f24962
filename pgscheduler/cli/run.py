"""`pgscheduler run`, and the same with one role: `pgscheduler scheduler`, `pgscheduler worker`."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click
import structlog
from click.core import ParameterSource

from pgscheduler._settings import FILE_VARIABLE, read_file
from pgscheduler.definitions._document import SHELL
from pgscheduler.errors import InvalidTypeError, InvalidValueError
from pgscheduler.job import Job
from pgscheduler.jobs import HttpJob, ShellJob
from pgscheduler.scheduler import Scheduler

from ._family import Family, Leash
from ._group import cli
from ._options import (
    configuration,
    configure_log,
    database_options,
    debug_option,
    finite,
    load_definitions,
    settings_file,
)
from ._serve import ROLES, Work, port_of, serve, serve_once
from ._target import load_target

__all__ = ["run", "scheduler", "worker"]

F = TypeVar("F", bound=Callable[..., Any])

BOTH = ("scheduler", "worker")
#: Settings of a node that have an option; the others are in the environment or the settings file.
SETTINGS = ("max_concurrent_jobs", "create_schema", "shutdown_timeout", "run_immediately")
#: What a Scheduler of the user's own decides itself.
OWN = (
    "dsn",
    "table_prefix",
    "schema",
    "settings",
    *SETTINGS,
    "config",
    "source",
    "allow_shell",
    "allow_http",
    "http_allow",
)

_OPTIONS = (
    click.option(
        "--config",
        metavar="FILE",
        help="Recurring jobs as YAML: created and changed as `apply` does (a worker only checks them), but none is retired.",
    ),
    click.option("--source", help="Whose jobs --config holds. [default: as the file says, else its name]"),
    click.option(
        "--allow-shell",
        is_flag=True,
        envvar="PGSCHEDULER_ALLOW_SHELL",
        help="Where jobs run: run shell_job, and so the commands of --config: whoever may write a job may then run anything here.",
    ),
    click.option(
        "--allow-http",
        is_flag=True,
        envvar="PGSCHEDULER_ALLOW_HTTP",
        help="Where jobs run: run http_job, requests to public addresses.",
    ),
    click.option(
        "--http-allow",
        multiple=True,
        metavar="PLACE",
        envvar="PGSCHEDULER_HTTP_ALLOW",
        help="With --allow-http, also to this network, address or host name, such as 10.1.0.0/16 or hooks:8080; "
        "repeat it for several.",
    ),
    click.option(
        "--max-concurrent-jobs",
        "--max-concurrency",
        "max_concurrent_jobs",
        type=int,
        help="Where jobs run: so many at once on each node. [env: PGSCHEDULER_MAX_CONCURRENT_JOBS or WORKER_COUNT; default: 10]",
    ),
    click.option(
        "--processes",
        type=click.IntRange(1, 256),
        default=1,
        show_default=True,
        envvar="PGSCHEDULER_PROCESSES",
        help="So many nodes, each a process; one that dies is replaced.",
    ),
    click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        envvar=["PGSCHEDULER_METRICS_PORT", "METRICS_PORT"],
        help="Answer GET /metrics there, the second process on the next port, … [env: METRICS_PORT; default: not at all]",
    ),
    click.option("--metrics-host", default="127.0.0.1", show_default=True, envvar="PGSCHEDULER_METRICS_HOST"),
    click.option("--create-schema", is_flag=True, help="Create or upgrade the tables first."),
    click.option(
        "--shutdown-timeout",
        type=float,
        metavar="SECONDS",
        help="How long running jobs may take to end. [default: 30]",
    ),
    click.option(
        "--run-immediately/--no-run-immediately",
        default=True,  # unlike a program's: whoever types a command looks whether it works
        envvar="PGSCHEDULER_RUN_IMMEDIATELY",
        help="Look for due jobs at the start, or only when the next one comes. [default: at the start]",
    ),
    database_options,
    click.option(
        "--json", "as_json", is_flag=True, help="Start and end as JSON lines on stdout; the log is JSON too."
    ),
    debug_option,
)


def node_options(function: F) -> F:
    """What every command takes that is a node."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return click.argument("target", metavar="[MODULE[:OBJECT]]", required=False)(function)


@cli.command()
@click.option(
    "--role",
    type=click.Choice(ROLES),
    multiple=True,
    default=BOTH,
    help="scheduler stores recurring jobs and runs none, worker runs jobs, api answers REST; repeat it for several. "
    "[default: scheduler and worker]",
)
@click.option(
    "--api-host",
    default="127.0.0.1",
    show_default=True,
    envvar="PGSCHEDULER_API_HOST",
    help="Of the role api.",
)
@click.option(
    "--api-port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    envvar="PGSCHEDULER_API_PORT",
    help="Of the role api; the second process takes the next one, …",
)
@click.option(
    "--once", is_flag=True, help="Run what is due, one job after the other, and end: for cron and the like."
)
@node_options
@click.pass_context
def run(context: click.Context, /, role: tuple[str, ...], **options: Any) -> int:
    """Run a node until SIGINT or SIGTERM.

    OBJECT is a Scheduler, a function that returns one, a Job class, or a list of Job classes and objects;
    recurring ones are scheduled. Without OBJECT: all Job classes that MODULE defines. MODULE may lie in the
    current directory.

    A signal ends it in good order, with status 0; with status 1 if jobs did not end within the shutdown
    timeout and were given back. A second signal ends it at once, with status 130.

    Every node keeps house: it finds the jobs of dead nodes and drops old history, whatever its role.
    """
    return _run(context, frozenset(role), **options)


@cli.command()
@node_options
@click.pass_context
def scheduler(context: click.Context, /, **options: Any) -> int:
    """Store the recurring jobs of MODULE and --config, keep house, and run no job. As `run --role scheduler`."""
    return _run(context, frozenset(["scheduler"]), **options)


@cli.command()
@node_options
@click.pass_context
def worker(context: click.Context, /, **options: Any) -> int:
    """Run the jobs that MODULE defines, and store none. As `run --role worker`."""
    return _run(context, frozenset(["worker"]), **options)


def _run(
    context: click.Context,
    roles: frozenset[str],
    *,
    target: str | None,
    config: str | None,
    source: str | None,
    allow_shell: bool,
    allow_http: bool,
    http_allow: tuple[str, ...],
    processes: int,
    metrics_port: int | None,
    metrics_host: str,
    api_host: str = "",
    api_port: int = 0,
    once: bool = False,
    where: dict[str, Any],
    as_json: bool,
    **settings: Any,
) -> int:
    leash = Leash.taken()
    configure_log(as_json)  # before the module is loaded, which may have a wish of its own
    if http_allow and not allow_http:
        raise click.UsageError("--http-allow goes with --allow-http", context)
    if once and (processes > 1 or metrics_port is not None or "worker" not in roles or "api" in roles):
        raise click.UsageError("--once is for one worker that answers on no port", context)
    if processes > 1 and leash is None:
        return Family(
            context.find_root().obj["arguments"], processes, structlog.get_logger("pgscheduler")
        ).run()
    place = 0 if leash is None else leash.place
    own_port = port_of(metrics_port, place)
    metrics = None if own_port is None else (metrics_host, own_port)
    api = (api_host, port_of(api_port, place) or 0) if "api" in roles else None
    found = None if target is None else load_target(target)
    if isinstance(found, Scheduler):
        named = [
            f"--{n.replace('_', '-')}"
            for n in OWN
            if context.get_parameter_source(n) is ParameterSource.COMMANDLINE
        ]
        if roles != frozenset(BOTH):
            named.append(f"the role {' and '.join(sorted(roles))}")
        if named:
            raise click.UsageError(
                f"{target} is a Scheduler with a configuration of its own: {', '.join(named)} has no effect",
                context,
            )
        if once:
            return serve_once(found, Work(), as_json)
        return serve(found, Work(metrics=metrics, api=api), as_json, leash)
    if settings["shutdown_timeout"] is not None:
        settings["shutdown_timeout"] = timedelta(seconds=finite(settings["shutdown_timeout"]))
    if not settings["create_schema"]:
        del settings["create_schema"]  # no wish: the environment or the file may have it
    made = configuration(where, **{n: v for n, v in settings.items() if v is not None})
    jobs = [*(found or []), *_kinds(allow_shell, allow_http, http_allow)]
    wanted = None if config is None else load_definitions(config, source)
    if "worker" in roles and not jobs and wanted is None:
        raise click.UsageError(
            "nothing to run: give MODULE[:OBJECT], --config, --allow-shell or --allow-http", context
        )
    if wanted is not None and "worker" in roles and not allow_shell:
        commands = [one.key for one in wanted.jobs if one.name == SHELL]
        if commands and not any(_name(job) == SHELL for job in jobs):
            raise click.UsageError(
                f"{config} has commands ({', '.join(commands[:5])}{', …' * (len(commands) > 5)}), and this node may "
                "run none: --allow-shell lets it",
                context,
            )
    if "worker" not in roles:
        made = dataclasses.replace(made, max_concurrent_jobs=1)  # what it tells of itself: it runs nothing
    work = Work(roles, tuple(jobs), wanted, metrics, api)
    if once:
        return serve_once(Scheduler(made), work, as_json)
    return serve(Scheduler(made), work, as_json, leash)


def _kinds(shell: bool, http: bool, places: tuple[str, ...]) -> list[Job]:
    """The jobs that need no class and that this node may run."""
    return [*([ShellJob(enabled=True)] if shell else []), *([HttpJob(allow=places)] if http else [])]


def _name(job: type[Job] | Job) -> str:
    return (job() if isinstance(job, type) else job).name


def _defaults(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    """The table `run` of the settings file holds defaults for these commands' options."""
    file = settings_file(value) or os.environ.get(FILE_VARIABLE)
    content = read_file(file) if file else {}
    table = content.get("run", {})
    label = os.path.basename(file or "")
    if not isinstance(table, dict):
        raise InvalidTypeError(f"{label}: run", table, "must be a table")
    known = [
        p.name for p in context.command.params if isinstance(p, click.Option) and p.name not in NOT_IN_FILE
    ]
    for name in table:
        if name not in known:
            close = difflib.get_close_matches(name, [n for n in known if n], 1, 0.6)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise InvalidValueError(label, f"run.{name}", f"holds an unknown option{hint}")
    # A text where several may be given is one of them, and not its letters.
    several = [p.name for p in context.command.params if isinstance(p, click.Option) and p.multiple]
    table = {n: [v] if n in several and isinstance(v, str) else v for n, v in table.items()}
    # A setting proper, but its default is another one here, which must not win over the file.
    immediately = {n: v for n, v in content.items() if n == "run_immediately"}
    context.default_map = {**(context.default_map or {}), **table, **immediately}
    return value


#: Settings proper have their place at the file's top, and the rest makes no sense there.
NOT_IN_FILE = ("dsn", "table_prefix", "schema", "settings", "as_json", "debug", "help", *SETTINGS)

for _command in (run, scheduler, worker):
    for _parameter in _command.params:
        if _parameter.name == "settings":
            _parameter.is_eager, _parameter.callback = True, _defaults
