"""From a document that fits the schema to `Definitions`: what the keys mean, and what only `JobConfig` can check."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pgscheduler import _check
from pgscheduler._declared import Definition, Definitions
from pgscheduler._json import dump_json
from pgscheduler._sql import SHARED_NAMES
from pgscheduler.errors import InvalidCronError, InvalidTypeError, InvalidValueError, show
from pgscheduler.job import JobConfig
from pgscheduler.retry import Backoff
from pgscheduler.schedule import Cron, Every, Schedule

from ._schema import check as check_schema
from ._yaml import MAX_BYTES, DefinitionError, Node

__all__ = ["SHELL", "definitions_in"]

SHELL = "shell_job"  # what runs a `command`: the name under which a `ShellJob` registers

#: What goes to `JobConfig` as it is.
_POLICIES = (
    "retries", "priority", "misfire", "misfire_grace", "catchup", "jitter", "isolation", "max_stalls", "metadata",
)  # fmt: skip


def definitions_in(root: Node, source: str | None, file: str, fallback: str | None = None) -> Definitions:
    """Raises DefinitionError for the first thing that is wrong."""
    check_schema(root, file)
    document = root.value
    if source is None and "source" in document:
        node = document["source"]
        source = _checked(file, node, lambda: _check.name("source", node.value))
    source = fallback if source is None else source
    if source is None:
        raise DefinitionError(
            file, "source is missing", hint="write `source: NAME` at its top, or give --source NAME"
        )
    defaults = document["defaults"].value if "defaults" in document else {}
    if "timezone" in defaults:  # also where no job has a cron line yet
        zone = defaults["timezone"]
        _checked(file, zone, lambda: Cron("@daily", zone.value))
    found: list[Definition] = []
    seen: dict[str, int] = {}
    for job in document["jobs"].value:
        definition = _definition(job, defaults, file)
        name = job.value["name"]
        key = definition.config.key or ""
        if key in seen:
            text = f"duplicate job {show(key)}, first on line {seen[key]}"
            raise DefinitionError(file, text, name.line, name.column, field="name")
        seen[key] = name.line
        found.append(definition)
    return Definitions(source, tuple(found))


def _checked(file: str, node: Node, make: Any, places: Mapping[str, Node] | None = None) -> Any:
    """What `make` answers; an error of this package gets the place of the key that it names."""
    try:
        return make()
    except (InvalidValueError, InvalidTypeError) as error:
        field = error.field
        if isinstance(error, InvalidCronError) and field != "timezone":
            field = "cron"
        place = (places or {}).get(field.partition(".")[0], node)
        raise DefinitionError(file, str(error), place.line, place.column, field=field) from None


def _definition(job: Node, defaults: Mapping[str, Node], file: str) -> Definition:
    own: dict[str, Node] = job.value
    for words in (("timeout", "timeout_seconds"),):
        if any(word in own for word in words):  # either spelling replaces either
            defaults = {key: node for key, node in defaults.items() if key not in words}
    given = {**defaults, **own}
    places = {**given}
    for word, fields in (("schedule", "cron"), ("timeout_seconds", "timeout"), ("every", "interval")):
        if word in given:
            places[fields] = given[word]

    def make() -> Definition:
        name = _check.name("name", given["name"].value)
        parameters = _plain(given, "parameters", {})
        dump_json(
            "parameters", parameters, MAX_BYTES
        )  # that it is JSON; how much a job may hold is the scheduler's
        policies = {key: given[key].plain() for key in _POLICIES if key in given}
        for key in ("misfire_grace", "jitter"):
            if key in policies:
                policies[key] = _check.duration(key, policies[key], zero=True)
        policies["timeout"] = _plain(given, "timeout", _plain(given, "timeout_seconds", None))
        kind = name
        if "command" in given:
            kind, parameters = SHELL, _shell(given["command"].plain(), parameters)
        elif "job" in given:
            kind = _kind(given["job"].value)
        if kind in SHARED_NAMES:
            from pgscheduler.jobs._shapes import check_shape  # here, because few files need it

            check_shape(kind, parameters)
        if "backoff" in given:
            policies["backoff"] = _backoff(given["backoff"].plain())
        config = JobConfig(name=kind, key=name, schedule=_schedule(given), parameters=parameters, **policies)
        return Definition(config, _plain(given, "enabled", None))

    return _checked(file, job, make, places)  # type: ignore[no-any-return]


def _plain(given: Mapping[str, Node], key: str, default: Any) -> Any:
    return given[key].plain() if key in given else default


def _kind(name: str) -> str:
    """A name in a registry. What looks like a path to code is refused: somebody expects it to be imported."""
    name = _check.name("job", name)
    if any(mark in name for mark in ".:/\\"):
        raise InvalidValueError(
            "job", name, "is not allowed: it is the name of a registered job, no path to code"
        )
    return name


def _shell(command: str | list[str], more: Any) -> dict[str, Any]:
    """The parameters of the kind: a line for the shell, or a program and its arguments."""
    if not isinstance(more, dict) or {"command", "shell"} & more.keys():
        given = sorted(more) if isinstance(more, dict) else type(more).__name__  # values may be secret
        rule = "beside a command must be a mapping, and must not hold command or shell again"
        raise InvalidValueError("parameters", given, rule)
    if not (command if isinstance(command, str) else command[0]).strip():
        raise InvalidValueError("command", command, "cannot be empty")
    return {"shell" if isinstance(command, str) else "command": command, **more}


def _schedule(given: Mapping[str, Node]) -> Schedule:
    if "every" in given:
        return Every(timedelta(seconds=given["every"].value))
    line = given["cron"] if "cron" in given else given["schedule"]
    zone = given["timezone"].value if "timezone" in given else "UTC"
    return Cron(line.value, zone)


def _backoff(given: Mapping[str, Any]) -> Backoff:
    found: dict[str, Any] = {
        key: timedelta(seconds=value) if key in ("initial", "maximum") else value
        for key, value in given.items()
    }
    return Backoff(**found)
