"""The README's tables for those who come from other schedulers: each of our words in them exists, none of theirs lacks."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import shlex
import typing
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest

import pgscheduler
from pgscheduler import (
    JobConfig,
    JobState,
    Outcome,
    RunContext,
    Scheduler,
    SchedulerConfig,
    definitions,
    jobs,
)
from pgscheduler import _settings as settings
from tests.support import ROOT
from tests.unit.test_docs import section

TEXT = section("Coming from other schedulers")
PARTS = {part.split("\n")[0]: part for part in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]}

#: What each of them has; everything here is on the left of its table.
THEIRS = {
    "go-pg-scheduler": """
        Init Run Shutdown NewRecurringJobConfig NewOneTimeJobConfig Name Key CronSchedule JobType Parameters Retries
        MaxRetries NextRunCalculator FixedInterval NewScheduler Start RegisterJob ScheduleJob GetJob CancelJob Ctx DB
        DBDriverName MaxConcurrentJobs MaxRunningJobs MaxConcurrentRecurringJobs MaxConcurrentOneTimeJobs
        JobCheckInterval RunImmediately OrphanedJobTimeout HeartbeatInterval NoHeartbeatTimeout CreateSchema
        TablePrefix Schema Logger ShutdownTimeout FailedAndCompletedOneTimeJobInterval
        FailedAndCompletedJobCleanupInterval CancelCheckPeriod NotificationDebounceInterval PGLNInstance
        JobStatusChangeCallback pending running completed failed scheduled_jobs picked picked_by heartbeat next_run
        retries execution_time cancel_requested last_run last_success last_failure consecutive_failures
        ErrJobNotFound ErrJobRunning ErrJobNotRunning
    """,
    "Bildad": """
        bildad.install JobConfig.new run_job_engine get_counts enqueue_job enqueue_job_and_trigger_engine
        enqueue_and_run_job run_a_job remove_job_from_queue stop_job_in_queue kill_a_job expire_a_job fail_a_job
        complete_a_job get_retry_count validate_job_context list_job_templates list_all_ list_active_ list_inactive_
        create_job_template update_ delete_ list_jobs_to_run_in_the_queue list_running_ list_jobs_for_status
        get_job_queue_entry_for_identifier get_number_of_jobs_in_the_queue
        get_queue_position_for_job_run_identifier list_job_runs_for_identifier list_job_runs_to_kill
        list_expired_jobs list_job_runs_for_result list_all_job_runs get_number_of_job_runs POST /jobs/engine/run
        JobKiller run_job AVAILABLE RUNNING DONE SUCCEEDED FAILED reason name code active display_order
        job_module_name default_timeout_in_minutes default_max_retries job_context_schema job_run_identifier priority
        timeout_in_minutes max_retries retry job_process_name started_at timeout_at expires_at ended_at
    """,
    "Kronii": """
        --config --database-url --max-concurrency --metrics-port DATABASE_URL WORKER_COUNT METRICS_PORT name cron
        schedule command retries timeout_seconds next_run last_run status attempts last_error updated_at idle running
        success failed /metrics scheduler_jobs_total scheduler_jobs_running scheduler_jobs_failed
        scheduler_jobs_success job_executions_total job_failures_total jobs_running job_duration_seconds
    """,
    "Laki": """
        create_job update_job delete_job enable_job disable_job list_jobs get_job_by_name get_job_executions
        create_simple_job name cron_expression module function args enabled next_run_at last_run_at node_id metadata
        inserted_at job_id started_at completed_at result error running completed failed not_found
    """,
    "Cron Service": """
        POST GET DELETE /api/v1/jobs jobId api scheduler worker DB_USER DB_HOST DB_DATABASE DB_PASSWORD DB_PORT
        REDIS_HOST REDIS_PORT QUEUE_NAME schedulerIntervalMs API_CALL url method headers data params attempts backoff
        name is_active task_payload created_at scheduled_time start_time end_time log_details job_executions error
        QUEUED RUNNING SUCCESS FAILED MISSED
    """,
}


def rows(system: str) -> list[tuple[str, str]]:
    """What is left and right in its table, without the heading."""
    lines = [line for line in PARTS[system].splitlines() if line.startswith("|")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert all(len(pair) == 2 for pair in cells), cells
    return typing.cast("list[tuple[str, str]]", cells[2:])


OURS = [
    pytest.param(word, id=f"{system}: {word}")
    for system in PARTS
    for word in dict.fromkeys(w for _, ours in rows(system) for w in re.findall(r"`([^`]+)`", ours))
]


# --- what a word can be -------------------------------------------------------------------------------------


def check_command(word: str) -> None:
    """A line for the shell: the command, its sub-command and its options."""
    click = pytest.importorskip("click")
    from pgscheduler import cli

    command, arguments = cli.cli, shlex.split(word)[1:]
    while arguments and isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    options = {option: p for p in command.params for option in (*p.opts, *p.secondary_opts)}
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument.startswith("-"):
            parameter = options[argument]
            if isinstance(parameter.type, click.Choice):
                assert value in parameter.type.choices


def check_option(word: str) -> None:
    """An option that some command takes."""
    pytest.importorskip("click")
    from pgscheduler import cli

    commands = cli.cli.commands.values()
    assert any(word.split()[0] in p.opts for command in commands for p in command.params)


def check_endpoint(word: str) -> None:
    """A method and a path of the API, or /metrics; query parameters too."""
    method, path = word.split()
    path, _, query = path.partition("?")
    if (method, path) == ("GET", "/metrics"):
        return
    pytest.importorskip("fastapi")
    found = endpoints()[re.sub(r"\{\w+\}", "{}", path)][method.lower()]
    parameters = {one["name"] for one in found.get("parameters", [])}
    assert {pair.partition("=")[0] for pair in query.split("&") if query} <= parameters


@functools.cache
def endpoints() -> dict[str, Any]:
    """What the API says of its paths; their parameters have no names here."""
    from pgscheduler.web import Tokens, create_app

    nowhere = SchedulerConfig(dsn="postgresql://nowhere.invalid/none")
    description = create_app(nowhere, tokens=Tokens()).openapi()
    return {re.sub(r"\{\w+\}", "{}", path): found for path, found in description["paths"].items()}


def check_variable(word: str) -> None:
    """A variable of the environment that means something here."""
    pytest.importorskip("click")
    from pgscheduler import cli

    known = {"DATABASE_URL", "WORKER_COUNT", *settings.PARTS}
    for command in cli.cli.commands.values():
        for parameter in command.params:
            given = parameter.envvar or []
            known |= {given} if isinstance(given, str) else set(given)
    assert word in known


def check_figure(word: str) -> None:
    """A metric, or a table."""
    pytest.importorskip("prometheus_client")
    from pgscheduler.metrics import METRICS

    migrations = "".join(path.read_text() for path in (ROOT / "pgscheduler/migrations").glob("*.sql"))
    tables = re.findall(r"create table \{(\w+)\}", migrations)
    known = {metric.name for metric in METRICS} | {f"pgscheduler_{name}" for name in tables}
    assert word in known


def check_value(word: str) -> None:
    """A state, an outcome, or Cron Service's word for one."""
    known = {*JobState, *Outcome}
    if word.isupper():
        pytest.importorskip("fastapi")
        from pgscheduler.web._show import RunAnswer

        known = set(typing.get_args(RunAnswer.model_fields["status"].annotation))
    assert json.loads(word) in known


def check_python(word: str) -> None:
    """An expression: each name, attribute and keyword in it."""
    resolve(ast.parse(word, mode="eval").body)


ROOTS: dict[str, Any] = {
    **{name: getattr(pgscheduler, name) for name in pgscheduler.__all__},
    **{name: getattr(jobs, name) for name in jobs.__all__},
    "scheduler": Scheduler,
    "ctx": RunContext,
    "definitions": definitions,
    "timedelta": timedelta,
}


def resolve(node: ast.expr) -> Any:
    """What an expression is, as far as its type can be known; fails for a name that does not exist."""
    if isinstance(node, ast.Name):
        assert node.id in ROOTS, f"{node.id} is nothing of ours"
        return ROOTS[node.id]
    if isinstance(node, ast.Attribute):
        return member(resolve(node.value), node.attr)
    assert isinstance(node, ast.Call), f"{ast.unparse(node)} is no name and no call"
    called = resolve(node.func)
    for argument in [*node.args, *(k.value for k in node.keywords)]:
        for inner in ast.walk(argument):
            if isinstance(inner, ast.Call):
                resolve(inner)
    if called is not timedelta:
        check_keywords(called, node)
    return called if isinstance(called, type) else hints(called).get("return")


def hints(of: Any) -> dict[str, Any]:
    """Annotations as types, also those that only the type checker imports."""
    return typing.get_type_hints(of, localns=vars(pgscheduler))


def member(owner: Any, name: str) -> Any:
    """An attribute of a class or module, or the type of one that only instances have."""
    if isinstance(owner, type):
        found = hints(owner)
        if name in found:
            return found[name]
    found = inspect.getattr_static(owner, name)
    if isinstance(found, property):
        assert found.fget is not None
        return hints(found.fget).get("return")
    return found if isinstance(owner, ModuleType) else getattr(owner, name)


def check_keywords(called: Callable[..., Any], node: ast.Call) -> None:
    """Keywords are parameters, or policies of a job where any policy may be given; no argument is too many."""
    parameters = inspect.signature(called).parameters
    policies = JobConfig.__dataclass_fields__.keys() | {"if_exists"}
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for keyword in node.keywords:
        assert keyword.arg in parameters or (free and keyword.arg in policies), f"{keyword.arg} is not taken"
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    own = "self" in parameters
    assert len(node.args) <= len(positional) - own, f"{ast.unparse(node)} has too many arguments"


KINDS: list[tuple[str, Callable[[str], None]]] = [
    (r"pgscheduler ", check_command),
    (r"--", check_option),
    (r"(GET|POST|PATCH|DELETE) /", check_endpoint),
    (r"[A-Z]+_[A-Z_]+$", check_variable),
    (r"(pgscheduler|scheduler|job|jobs)_[a-z_]+$", check_figure),
    (r'"\w+"$', check_value),
    (r"[A-Za-z]", check_python),
]
#: Words in our column that are theirs, or part of a sentence.
PLAIN = {"code", "status", "limit=", "offset=", "priority=0", "{:error, e}", "job_name", "shell_job"}


@pytest.mark.parametrize("word", OURS)
def test_our_word_exists(word: str) -> None:
    """What the right column names is a command, option, endpoint, variable, metric, value or Python name of ours."""
    if word not in PLAIN:
        next(check for pattern, check in KINDS if re.match(pattern, word))(word)


@pytest.mark.parametrize("wrong", [
    "scheduler.enlist(job)", "scheduler.enqueue(name, colour=1)", "JobRecord.colour", "Template.colour", "Pigeon(1)",
    "scheduler.get_job(name).colour", "scheduler.templates.create(code, colour=1)", "scheduler.runs(1, 2)",
    "pgscheduler fly", "pgscheduler run --fly", "pgscheduler run --role pilot", "--fly", "GET /fly", "PATCH /",
    "GET /api/v1/jobs?fly=1", "FLY_AWAY", "jobs_flying", '"flying"', '"FLYING"',
])  # fmt: skip
def test_a_wrong_word_is_found(wrong: str) -> None:
    """The test above can fail, for each kind of word."""
    check = next(check for pattern, check in KINDS if re.match(pattern, wrong))
    with pytest.raises((AssertionError, AttributeError, KeyError)):
        check(wrong)


@pytest.mark.parametrize("system", THEIRS)
def test_none_of_theirs_lacks(system: str) -> None:
    """Every call, setting, endpoint, flag, variable, status and metric of theirs is in its table's left column."""
    left = " ".join(theirs for theirs, _ in rows(system))
    assert [
        word for word in THEIRS[system].split() if not re.search(rf"(?<!\w){re.escape(word)}", left)
    ] == []


def test_each_has_a_few_words_and_an_example() -> None:
    """Beside its table: at most five lines on what is different, and the program that shows it."""
    assert list(PARTS) == list(THEIRS)
    for system, text in PARTS.items():
        prose = [line for line in text.splitlines()[1:] if line and not line.startswith("|")]
        assert 0 < len(prose) <= 5, system
        name = system.lower().replace(" ", "_").replace("-", "_")
        assert f"](examples/from_{name}.py)" in text
