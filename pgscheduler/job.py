"""What users subclass: `Job`, and its policies as one frozen value, `JobConfig`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from . import _check as check
from ._json import dump_json, load_json
from ._schema import StoredSchema
from .errors import InvalidTypeError, InvalidValueError
from .retry import Backoff, RetryPolicy
from .schedule import TZDATA_VERSION, Cron, Every, Schedule

if TYPE_CHECKING:
    from ._context import RunContext

__all__ = ["Isolation", "Job", "JobConfig", "Misfire", "Policy"]

Misfire = Literal["run_once", "skip", "run_all"]
Isolation = Literal["thread", "async", "process"]

MISFIRES = ("run_once", "skip", "run_all")
ISOLATIONS = ("thread", "async", "process")
MAX_METADATA = 16 * 1024  # bytes of JSON: it travels with every claim


_DEFAULT_BACKOFF = Backoff()


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """When a job runs, with what, and what happens when something goes wrong.

    Make one with `JobConfig.recurring(...)` or `JobConfig.one_time(...)`. Durations are `timedelta`
    (a number is taken as seconds). All values are checked here, before anything is stored.
    """

    #: Which registered class runs it. None: the class's name in snake case.
    name: str | None = None
    #: Which of several live jobs of that name. Recurring: defaults to the name. One-time: optional; a second
    #: schedule() under a key updates the pending job instead of adding one.
    key: str | None = None
    #: `Cron(...)`, `Every(...)` or anything with `next_after(instant)`. None: a one-time job.
    schedule: Schedule | None = None
    #: Any JSON value, delivered as `ctx.parameters`; with a class as `parameters_schema`, an instance of it.
    #: What is marked with `secret(value)` is shown to nobody but the run.
    #: None is the same as {}.
    parameters: Any = field(default_factory=dict)
    #: Attempts after the first: 3 means at most 4 counted failures.
    retries: int = 0
    #: Delay before each retry: a `Backoff`, or a callable `(failures, error) -> timedelta | None`. A callable
    #: cannot be stored: the registered class's is used.
    backoff: RetryPolicy = _DEFAULT_BACKOFF
    #: How long one attempt may take. None: no limit. Threads are asked to stop, processes are killed.
    timeout: timedelta | None = None
    #: Smaller first.
    priority: int = 5
    #: One-time only: when to run (aware datetime), or how long from now. Neither: at once.
    run_at: datetime | None = None
    delay: timedelta | None = None
    #: One-time only: after this long it is too late; the job fails as "expired" instead of running.
    expires_in: timedelta | None = None
    #: What happens to occurrences that could not start in time: `run_once` runs the latest and records the
    #: others as skipped; `skip` runs none that is later than `misfire_grace`; `run_all` runs every one, at
    #: most `catchup` of them.
    misfire: Misfire = "run_once"
    #: 60 s: what a busy node or a restart costs is not a misfire.
    misfire_grace: timedelta = timedelta(seconds=60)
    catchup: int = 100
    #: Spread starts over this long after the occurrence; each occurrence has its own fixed offset.
    jitter: timedelta = timedelta(0)
    #: Where the hooks run. `async def` hooks imply `async`. Only a process can be killed.
    isolation: Isolation = "thread"
    #: A job whose node or process dies this often in one occurrence has failed: it may be what kills them. What a node
    #: has claimed and not yet begun when it dies counts once too, so 1 or 2 may fail a job for its neighbour's sake.
    max_stalls: int = 3
    #: JSON Schema (a dict; needs the `schema` extra), a dataclass, or a pydantic model.
    parameters_schema: Mapping[str, Any] | type[Any] | None = None
    #: Free JSON for your own use.
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def recurring(
        cls, name: str, schedule: str | Schedule, *, timezone: str = "UTC", **policies: Any
    ) -> JobConfig:
        """A job that comes back. `schedule` is a cron line (in `timezone`) or a schedule object."""
        if not isinstance(timezone, str):
            raise InvalidTypeError("timezone", timezone, "must be a str")
        if isinstance(schedule, str):
            schedule = Cron(schedule, timezone)
        elif not hasattr(schedule, "next_after"):
            raise InvalidTypeError(
                "schedule", schedule, "must be a cron line (str), or have next_after(instant)"
            )
        elif timezone != "UTC":
            raise InvalidValueError(
                "timezone", timezone, "goes with a cron line; a schedule object has its own"
            )
        return cls(name=check.name("name", name), schedule=schedule, **policies)

    @classmethod
    def one_time(cls, name: str, parameters: Any = dataclasses.MISSING, **policies: Any) -> JobConfig:
        """A job that runs once: now, at `run_at`, or after `delay`."""
        if policies.get("schedule") is not None:
            raise InvalidValueError(
                "schedule", policies["schedule"], "must not be given: a cron or recurring job is not one-time"
            )
        if parameters is not dataclasses.MISSING:
            policies["parameters"] = parameters
        return cls(name=check.name("name", name), **policies)

    def __post_init__(self) -> None:
        def put(field_name: str, value: Any) -> None:
            object.__setattr__(self, field_name, value)

        if self.name is not None:
            put("name", check.name("name", self.name))
        if self.key is not None:
            put("key", check.name("key", self.key))
        if not isinstance(self.metadata, Mapping):
            raise InvalidTypeError("metadata", self.metadata, "must be a mapping")
        if all(map(is_, _checked_policies(self), _CHECKED_DEFAULTS)):
            return  # nearly every job; the defaults themselves need no check
        if self.schedule is not None and not callable(getattr(self.schedule, "next_after", None)):
            raise InvalidTypeError(
                "schedule", self.schedule, "must have next_after(instant): Cron, Every or your own"
            )
        check.integer("retries", self.retries, 0, 10_000)
        if not callable(self.backoff):
            raise InvalidTypeError("backoff", self.backoff, "must be a Backoff or a callable")
        for duration in ("timeout", "delay", "expires_in"):
            if getattr(self, duration) is not None:
                put(duration, check.duration(duration, getattr(self, duration), zero=duration == "delay"))
        for duration in ("misfire_grace", "jitter"):
            put(duration, check.duration(duration, getattr(self, duration), zero=True))
        check.integer("priority", self.priority, 0, 32767)
        if self.run_at is not None:
            put("run_at", check.instant("run_at", self.run_at))
        if self.run_at is not None and self.delay is not None:
            raise InvalidValueError("delay", self.delay, "must not be given together with run_at")
        for once in ("run_at", "delay", "expires_in"):
            if self.schedule is not None and getattr(self, once) is not None:
                raise InvalidValueError(
                    once, getattr(self, once), "is for one-time jobs; this one has a schedule"
                )
        check.one_of("misfire", self.misfire, MISFIRES)
        check.integer("catchup", self.catchup, 1, 10_000)
        check.one_of("isolation", self.isolation, ISOLATIONS)
        check.integer("max_stalls", self.max_stalls, 1, 1000)
        if not isinstance(self.parameters_schema, Mapping | type | None):
            raise InvalidTypeError(
                "parameters_schema", self.parameters_schema, "must be a JSON Schema or a class"
            )

    def options_json(self) -> str:
        """The policies that a row carries: those that differ from the defaults, as JSON text."""
        stored_schema = isinstance(self.parameters_schema, StoredSchema)
        if _stored_policies(self) == _STORED_DEFAULTS and not self.metadata and not stored_schema:
            return "{}"  # nearly every job; bulk enqueue comes through here
        found: dict[str, Any] = {}
        for name in ("retries", "misfire", "catchup", "isolation", "max_stalls"):
            if getattr(self, name) != _DEFAULTS[name]:
                found[name] = getattr(self, name)
        for name in ("timeout", "expires_in", "misfire_grace", "jitter"):
            if getattr(self, name) != _DEFAULTS[name]:
                found[name] = getattr(self, name).total_seconds()
        if not isinstance(self.backoff, Backoff):
            found["backoff"] = "class"
        elif self.backoff != _DEFAULT_BACKOFF:
            b = self.backoff
            found["backoff"] = [b.initial.total_seconds(), b.factor, b.maximum.total_seconds(), b.jitter]
        if self.metadata:
            found["metadata"] = load_json(dump_json("metadata", dict(self.metadata), MAX_METADATA))
        if stored_schema:
            found["parameters_schema"] = self.parameters_schema
        return json.dumps(found, allow_nan=False, separators=(",", ":"), sort_keys=True)

    def schedule_json(self) -> str | None:
        """The schedule as a row carries it; equal text means an unchanged schedule."""
        schedule = self.schedule
        if schedule is None:
            return None
        found: dict[str, Any]
        if isinstance(schedule, Cron):
            found = {"cron": schedule.expression, "timezone": schedule.timezone}
            if not schedule.day_or:
                found["day_or"] = False
            if schedule.timezone != "UTC":
                # New rules for a zone may move the next occurrence, so they count as a change.
                found["tzdata"] = TZDATA_VERSION
        elif isinstance(schedule, Every):
            found = {"every": schedule.interval.total_seconds()}
        else:
            kind = type(schedule)
            found = {"custom": f"{kind.__module__}.{kind.__qualname__}"}
            if dataclasses.is_dataclass(schedule):
                found["value"] = repr(schedule)[:1000]
        return json.dumps(found, separators=(",", ":"))


_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(JobConfig)}
_STORED = (
    "retries", "misfire", "catchup", "isolation", "max_stalls", "timeout", "expires_in", "misfire_grace", "jitter",
    "backoff",
)  # fmt: skip
_stored_policies = attrgetter(*_STORED)
_STORED_DEFAULTS = tuple(_DEFAULTS[name] for name in _STORED)
_CHECKED = [name for name in _DEFAULTS if name not in ("name", "key", "parameters", "metadata")]
_checked_policies = attrgetter(*_CHECKED)
_CHECKED_DEFAULTS = tuple(_DEFAULTS[name] for name in _CHECKED)


@dataclass(frozen=True, slots=True)
class Policy:
    """The policies of one row, as the runner uses them. Seconds are floats here: this is the hot path."""

    retries: int
    backoff: RetryPolicy | None  # None: the registered class's callable, which no row can hold
    timeout: float | None
    expires_in: float | None
    misfire: str
    misfire_grace: timedelta
    catchup: int
    jitter: float
    isolation: str
    max_stalls: int
    metadata: Mapping[str, Any]
    parameters_schema: str | None  # JSON text of a schema that is stored with the job


@lru_cache(maxsize=4096)
def policy_of(options: str) -> Policy:
    """The policy that a row's options text says; memoised, for a fleet has few distinct ones."""
    found = json.loads(options)
    backoff = found.get("backoff")
    policy: RetryPolicy | None = Backoff()
    if isinstance(backoff, list):
        policy = Backoff(timedelta(seconds=backoff[0]), backoff[1], timedelta(seconds=backoff[2]), backoff[3])
    elif backoff == "class":
        policy = None
    return Policy(
        retries=found.get("retries", 0),
        backoff=policy,
        timeout=found.get("timeout"),
        expires_in=found.get("expires_in"),
        misfire=found.get("misfire", "run_once"),
        misfire_grace=timedelta(seconds=found.get("misfire_grace", 60)),
        catchup=found.get("catchup", 100),
        jitter=found.get("jitter", 0.0),
        isolation=found.get("isolation", "thread"),
        max_stalls=found.get("max_stalls", 3),
        metadata=found.get("metadata", {}),
        parameters_schema=json.dumps(found["parameters_schema"]) if "parameters_schema" in found else None,
    )


@lru_cache(maxsize=8192)
def schedule_of(text: str) -> Schedule | None:
    """The schedule that a row's text says; None for a custom one, which only its class knows."""
    found = json.loads(text)
    if "cron" in found:
        return Cron(found["cron"], found["timezone"], found.get("day_or", True))
    if "every" in found:
        return Every(timedelta(seconds=found["every"]))
    return None


def snake_case(class_name: str) -> str:
    """`HTTPPing2Job` becomes `http_ping2_job`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()


class Job(ABC):
    """One kind of work. Subclass it, write `run`, and, where a run needs something opened, `init` and `shutdown`.

    Order: init → run → shutdown. If `init` raises, `run` is not called and the attempt failed. If `run`
    raises, `shutdown` is still called and the run's error is kept. If `shutdown` raises after a good run,
    that is logged and the run stays completed. Any hook may be `async def`.

    Each run gets its own shallow copy of the registered instance: what `init` puts on `self` is private to
    the run, what the constructor put there is shared.
    """

    #: The class's default. An instance's own (given to the constructor) wins.
    config: JobConfig = JobConfig()
    #: Filled by the class machinery: which hooks are coroutines.
    _async_hooks: ClassVar[bool] = False

    def __init__(self, config: JobConfig | None = None) -> None:
        if config is not None:
            if not isinstance(config, JobConfig):
                raise InvalidTypeError("config", config, "must be a JobConfig")
            self.config = config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        hooks = (cls.init, cls.run, cls.shutdown)
        cls._async_hooks = any(inspect.iscoroutinefunction(hook) for hook in hooks)

    @property
    def name(self) -> str:
        """The name under which it is registered: the config's, or the class's in snake case."""
        return self.config.name or snake_case(type(self).__name__)

    def init(self, ctx: RunContext) -> Any:  # noqa: B027 - optional on purpose
        """Before each run: open what this run needs."""

    @abstractmethod
    def run(self, ctx: RunContext) -> Any:
        """The work. What it returns (JSON) is the run's result; what it raises fails the attempt."""

    def shutdown(self, ctx: RunContext) -> Any:  # noqa: B027 - optional on purpose
        """After each run, also a failed one: close what `init` opened."""
