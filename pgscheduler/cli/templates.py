"""`pgscheduler templates` with its sub-commands: `list`, `show`, `create`, `update`, `delete`, `validate`, `enqueue`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import click

from pgscheduler.records import Template

from ._group import cli
from ._options import (
    client,
    confirm,
    database_options,
    debug_option,
    finite,
    json_option,
    listing_options,
    parse_parameters,
    yes_option,
)
from ._output import job_document, job_facts, moment, one_line, say_facts, say_json, say_table, span
from ._policies import if_exists_option, moment_options, policy_options

__all__ = ["templates"]

F = TypeVar("F", bound=Callable[..., Any])


@cli.group(cls=type(cli), no_args_is_help=False)
def templates() -> None:
    """List, make and change job templates, and make jobs from them.

    A job keeps what it took from its template: a change or a deletion is for jobs to come.
    """


def _fields(function: F) -> F:
    """What `create` and `update` may say of a template."""
    for option in (
        click.option("--order", "display_order", type=int, help="Smaller is shown first. Default: 0."),
        click.option("--active/--inactive", default=None, help="No job is made from an inactive one."),
        click.option("--no-parameters-schema", is_flag=True, help="Any parameters fit."),
        click.option("--parameters-schema", metavar="JSON|@FILE", help="The JSON Schema of the parameters; @- reads stdin."),
        click.option("--retries", type=int, help="Attempts after the first. Default: 3."),
        click.option("--no-timeout", is_flag=True, help="A run may take as long as it likes."),
        click.option("--timeout", type=float, metavar="SECONDS", help="For one attempt. Default: 3600."),
        click.option("--handler", help="The registered name that runs its jobs."),
        click.option("--name", help="What people call it. Default: the code."),
    ):  # fmt: skip
        function = option(function)
    return function


def _given(
    timeout: float | None,
    no_timeout: bool,
    parameters_schema: str | None,
    no_parameters_schema: bool,
    **more: Any,
) -> dict[str, Any]:
    """Only what was said on the command line, as `create` and `update` take it."""
    found = {field: value for field, value in more.items() if value is not None}
    context = click.get_current_context()
    if timeout is not None and no_timeout:
        raise click.UsageError("--timeout and --no-timeout exclude each other", context)
    if parameters_schema is not None and no_parameters_schema:
        raise click.UsageError("--parameters-schema and --no-parameters-schema exclude each other", context)
    if timeout is not None or no_timeout:
        found["timeout"] = None if timeout is None else timedelta(seconds=finite(timeout))
    if parameters_schema is not None or no_parameters_schema:
        text = parameters_schema
        found["parameters_schema"] = None if text is None else parse_parameters(text, "--parameters-schema")
    return found


@templates.command("list")
@click.option("--active/--inactive", default=None, help="Only one of the two kinds.")
@listing_options(100)
@database_options
@json_option
@debug_option
def list_(where: dict[str, Any], as_json: bool, active: bool | None, limit: int, offset: int) -> None:
    """List the templates, in their order."""
    with client(where) as scheduler:
        found = scheduler.templates.list(active, limit=limit, offset=offset)
    if as_json:
        return say_json([one.to_dict() for one in found])
    columns = ("code", "name", "handler", "state", "timeout", "retries", "order")
    return say_table("Templates", columns, map(_row, found), "no templates")


@templates.command()
@click.argument("code")
@database_options
@json_option
@debug_option
def show(code: str, where: dict[str, Any], as_json: bool) -> None:
    """Show the template CODE, with its schema."""
    with client(where) as scheduler:
        found = scheduler.templates.get(code)
    _say(found, as_json)


@templates.command()
@click.argument("code")
@_fields
@database_options
@json_option
@debug_option
def create(code: str, where: dict[str, Any], as_json: bool, **fields: Any) -> None:
    """Store a template under a CODE that is not taken."""
    given = _given(**fields)
    if "handler" not in given:
        raise click.UsageError(
            "give --handler: the registered name that runs its jobs", click.get_current_context()
        )
    with client(where) as scheduler:
        made = scheduler.templates.create(code, **given)
    _say(made, as_json)


@templates.command()
@click.argument("code")
@_fields
@database_options
@json_option
@debug_option
def update(code: str, where: dict[str, Any], as_json: bool, **fields: Any) -> None:
    """Change what is given of the template CODE, for jobs to come."""
    given = _given(**fields)
    if not given:
        raise click.UsageError("give what to change", click.get_current_context())
    with client(where) as scheduler:
        changed = scheduler.templates.update(code, **given)
    _say(changed, as_json)


@templates.command()
@click.argument("code")
@yes_option
@database_options
@json_option
@debug_option
def delete(code: str, yes: bool, where: dict[str, Any], as_json: bool) -> None:
    """Delete the template CODE; its jobs and their history stay. Asks first."""
    with client(where) as scheduler:
        found = scheduler.templates.get(code)
        if not yes:
            confirm(f"Delete template {code} ({one_line(found.name)})?", "nothing was deleted")
        scheduler.templates.delete(code)
    if as_json:
        say_json({"code": code, "result": "deleted"})
    else:
        print(f"template {code} is deleted; its jobs stay")


_params = click.option(
    "--params",
    "--parameters",
    default=None,
    metavar="JSON|@FILE",
    help="The job's parameters; @- reads stdin.",
)


@templates.command()
@click.argument("code")
@_params
@database_options
@json_option
@debug_option
def validate(code: str, params: str | None, where: dict[str, Any], as_json: bool) -> None:
    """Say whether parameters fit the template CODE; store nothing."""
    parameters = None if params is None else parse_parameters(params)
    with client(where) as scheduler:
        scheduler.templates.validate(code, parameters)
    if as_json:
        say_json({"code": code, "result": "valid"})
    else:
        print(f"the parameters fit template {code}")


@templates.command()
@click.argument("code")
@click.option("--key", help="At most one waiting job per handler and key: a second one replaces it.")
@if_exists_option("update", "; with error, also if it has just ended")
@moment_options
@policy_options
@database_options
@json_option
@debug_option
def enqueue(
    code: str,
    key: str | None,
    if_exists: Any,
    when: dict[str, Any],
    policies: dict[str, Any],
    where: dict[str, Any],
    as_json: bool,
) -> None:
    """Store a one-time job made from the template CODE.

    Without --retries and --timeout those of the template apply.
    """
    if policies.get("timeout", ...) is None:
        # The verb takes None for: the template's.
        raise click.UsageError("--no-timeout is for the template itself", click.get_current_context())
    with client(where) as scheduler:
        job = scheduler.templates.enqueue(code, key=key, if_exists=if_exists, **when, **policies)
    say_json(job_document(job)) if as_json else say_facts(job_facts(job))


def _state(template: Template) -> str:
    return "active" if template.active else "inactive"


def _row(template: Template) -> list[object]:
    return [
        template.code,
        template.name,
        template.handler,
        _state(template),
        span(template.timeout),
        template.retries,
        template.display_order,
    ]


def _say(template: Template, as_json: bool) -> None:
    if as_json:
        return say_json(template.to_dict())
    return say_facts(_facts(template))


def _facts(template: Template) -> Mapping[str, object]:
    schema = template.parameters_schema
    return {
        "code": template.code, "name": template.name, "handler": template.handler, "state": _state(template),
        "timeout": span(template.timeout) or "none", "retries": template.retries, "order": template.display_order,
        "parameters": None if schema is None else json.dumps(schema, ensure_ascii=False, indent=2),
        "created (UTC)": moment(template.created_at), "changed (UTC)": moment(template.updated_at),
    }  # fmt: skip
