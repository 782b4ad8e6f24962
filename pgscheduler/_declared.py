"""What a source declares, and what that means for the jobs that are stored: a `Plan`. Comparing is pure; no SQL.

A job that was declared carries its source's name in its metadata, under `MARK`. Only jobs with that mark are
ever changed or retired, so two sources, or a source and a program, cannot take each other's jobs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from . import _check as check
from ._json import load_json
from ._marks import MARK as SECRET
from ._marks import hidden, told_apart
from .errors import DuplicateJobError, InvalidTypeError, InvalidValueError
from .job import JobConfig

__all__ = ["MARK", "Change", "Definition", "Definitions", "Plan", "compare", "mark_of"]

MARK = "definitions_source"

Action = Literal["create", "change", "pause", "resume", "retire", "conflict"]
#: From both sides of a difference, what may be shown of them.
Show = Callable[[Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Definition:
    """One recurring job that shall exist. `config` needs a name and a schedule; its key defaults to its name.

    `enabled`: False pauses it, True resumes it, None (the default) leaves alone what somebody did by hand.
    """

    config: JobConfig
    enabled: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.config, JobConfig):
            raise InvalidTypeError("config", self.config, "must be a JobConfig")
        check.name("name", self.config.name)
        if self.config.schedule is None:
            raise InvalidValueError("schedule", None, "must be given: definitions are of recurring jobs")
        if self.enabled is not None:
            check.boolean("enabled", self.enabled)
        if MARK in self.config.metadata:
            raise InvalidValueError("metadata", MARK, "must not hold this key: it says who declared the job")

    @property
    def name(self) -> str:
        """Which registered class runs it."""
        assert self.config.name is not None
        return self.config.name

    @property
    def key(self) -> str:
        """Which of the jobs of that name it is."""
        return self.config.key or self.name


@dataclass(frozen=True)
class Definitions:
    """All recurring jobs of one `source`, a name of your choice that is unique per database and table prefix."""

    source: str
    jobs: tuple[Definition, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", check.name("source", self.source))
        if isinstance(self.jobs, str | bytes | Mapping) or not isinstance(self.jobs, Iterable):
            raise InvalidTypeError("jobs", self.jobs, "must be an iterable of Definition")
        object.__setattr__(self, "jobs", tuple(self.jobs))
        seen: set[tuple[str, str]] = set()
        for one in self.jobs:
            if not isinstance(one, Definition):
                raise InvalidTypeError("jobs", one, "must hold Definition")
            if (one.name, one.key) in seen:
                raise DuplicateJobError(f"duplicate job {one.name!r} with key {one.key!r}", one.name)
            seen.add((one.name, one.key))

    def marked(self, definition: Definition) -> JobConfig:
        """The configuration to store: it says whose it is."""
        metadata = {**definition.config.metadata, MARK: self.source}
        return dataclasses.replace(definition.config, metadata=metadata)


@dataclass(frozen=True)
class Change:
    """What happens, or happened, to one job."""

    #: create, change, pause, resume, retire (delete; its history stays), or conflict: an apply would refuse.
    action: Action
    name: str
    key: str
    #: None for a job that is yet to be created.
    id: int | None = None
    #: By field, (what is, what shall be); of parameters and policies only what differs. For a conflict: `reason`.
    differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    #: It cannot be changed at this moment, because it runs; an apply waits for its end.
    running: bool = False

    def to_dict(self, show: Show = lambda before, after: (before, after)) -> dict[str, Any]:
        """JSON-ready."""
        found = dataclasses.asdict(self)
        sides = {field: show(*difference) for field, difference in self.differences.items()}
        found["differences"] = {field: {"from": a, "to": b} for field, (a, b) in sides.items()}
        return found


@dataclass(frozen=True)
class Plan:
    """What an apply would do, or did."""

    source: str
    changes: tuple[Change, ...] = ()
    #: How many jobs are as declared.
    unchanged: int = 0

    def of(self, *actions: Action) -> tuple[Change, ...]:
        """The changes of these kinds."""
        return tuple(change for change in self.changes if change.action in actions)

    def to_dict(self, show: Show = lambda before, after: (before, after)) -> dict[str, Any]:
        """JSON-ready. `show` has the last word on each difference: doors hide more than what is marked as secret."""
        return {
            "source": self.source,
            "changes": [change.to_dict(show) for change in self.changes],
            "unchanged": self.unchanged,
        }


def mark_of(options: str | None) -> str | None:
    """The source that declared a job, by its stored policies; None if none did, or they cannot be read."""
    if options is None or MARK not in options:
        return None
    try:
        found = json.loads(options)["metadata"][MARK]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def compare(
    source: str,
    wanted: Sequence[tuple[Mapping[str, Any], bool | None]],
    rows: Iterable[Mapping[str, Any]],
    retire: frozenset[int] | bool = True,
) -> Plan:
    """The plan. `wanted`: each job's values as they would be stored, and whether it is enabled; `rows`: what is.

    `rows` must hold those of the wanted names and keys and those with this source's mark; it may hold more.
    `retire`: whether those that are not wanted go, or which of them (by id).
    """
    stored = {(row["name"], row["key"]): row for row in rows}
    changes: list[Change] = []
    for values, enabled in wanted:
        row = stored.pop((values["name"], values["key"]), None)
        change = _change(source, values, enabled, row)
        if change is not None:
            changes.append(change)
    kept = len(wanted) - len(changes)
    for (name, key), row in sorted(stored.items(), key=lambda item: item[1]["id"]):
        if mark_of(row["options"]) != source or row["schedule"] is None or row["after_run"] == "delete":
            continue
        if retire is True or (retire is not False and row["id"] in retire):
            changes.append(Change("retire", name, key, row["id"], running=row["state"] == "running"))
    return Plan(source, tuple(changes), kept)


def _change(
    source: str, values: Mapping[str, Any], enabled: bool | None, row: Mapping[str, Any] | None
) -> Change | None:
    """What must happen to one job that is wanted; None: it is as it should be."""
    name, key = values["name"], values["key"]
    if row is None:
        paused = {"enabled": (None, False)} if enabled is False else {}
        return Change("create", name, key, differences=paused)
    owner = mark_of(row["options"])
    if row["schedule"] is None or owner != source:
        if row["schedule"] is None:
            reason = "as a one-time job"
        else:
            reason = f"made by source {owner!r}" if owner else "made by a program or by hand"
        return Change(
            "conflict", name, key, row["id"], {"reason": (reason, f"declared by source {source!r}")}
        )
    busy = row["state"] == "running" or row["completed_at"] is not None
    if row["after_run"] == "delete":  # it is on its way out, and comes back when it is gone
        return Change("change", name, key, row["id"], {"retired": (True, False)}, running=True)
    differences: dict[str, tuple[Any, Any]] = {
        field: (before, after) if field == "schedule" else _parted(before, after)  # a schedule is one thing
        for field, before, after in (
            ("schedule", load_json(row["schedule"]), load_json(values["schedule"])),
            ("parameters", row["parameters"] or {}, load_json(values["parameters"]) or {}),
            ("priority", row["priority"], values["priority"]),
            ("options", _shown(row["options"]), _shown(values["options"])),
        )
        if before != after
    }
    if "parameters" in differences:  # compared as they are, shown without what is marked as secret
        before, after = differences["parameters"]
        differences["parameters"] = told_apart(hidden(before), hidden(after))
    paused = row["state"] == "paused" or row["after_run"] == "pause"
    if enabled is not None and enabled == paused:
        state = {"enabled": (not paused, enabled)}
        if not differences:
            return Change("resume" if enabled else "pause", name, key, row["id"], state)
        differences |= state
    return Change("change", name, key, row["id"], differences, running=busy) if differences else None


def _parted(before: Any, after: Any) -> tuple[Any, Any]:
    """The two sides of a difference: of objects only what differs, by path, in one order whatever jsonb made of it."""
    if (
        not isinstance(before, Mapping)
        or not isinstance(after, Mapping)
        or SECRET in before
        or SECRET in after
    ):
        return _ordered(before), _ordered(after)
    left, right = {}, {}
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            left[name] = _ordered(before[name])
        elif name not in before:
            right[name] = _ordered(after[name])
        elif before[name] != after[name]:
            left[name], right[name] = _parted(before[name], after[name])
    return left, right


def _ordered(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


def _shown(options: str | None) -> Any:
    """Stored policies without the mark."""
    found = load_json(options)
    if isinstance(found, dict) and MARK in found.get("metadata", {}):
        metadata = {key: value for key, value in found["metadata"].items() if key != MARK}
        found = {key: value for key, value in found.items() if key != "metadata"}
        if metadata:
            found["metadata"] = metadata
    return found
