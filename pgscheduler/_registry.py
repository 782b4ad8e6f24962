"""The names that this node can run, and what runs them. Names resolve here and nowhere else."""

from __future__ import annotations

import copy
import copyreg
import dataclasses
import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from ._marks import mask, revealed, texts_of
from ._schema import check_parameters
from ._sql import SHARED_NAMES
from .errors import DuplicateJobError, InvalidTypeError, InvalidValueError, JobKindError
from .job import Job, JobConfig, Policy, policy_of
from .retry import RetryPolicy
from .schedule import Schedule

__all__ = ["Choosing", "Registered", "Registry", "validate_parameters"]


class Choosing(Job):
    """A job whose instance chooses which of the parameters that fit its class it runs: the shipped kinds, see `jobs/`."""

    #: That of `SHARED_NAMES` which is this kind's, and no other class's.
    own_name: ClassVar[str | None] = None

    @abstractmethod
    def check(self, parameters: Any) -> None:
        """Raise unless this node's policy allows these parameters. Called before storing and before each run."""


class Registered:
    """One name: the instance that every run copies, and what the hot path would else look up each time."""

    __slots__ = (
        "backoff",
        "check",
        "config",
        "has_init",
        "has_shutdown",
        "is_async",
        "make",
        "name",
        "policy",
        "schedule",
        "typed",
    )

    def __init__(self, name: str, job: Job) -> None:
        kind = type(job)
        self.name = name
        self.config: JobConfig = job.config
        self.policy: Policy = policy_of(job.config.options_json())
        self.backoff: RetryPolicy = job.config.backoff
        self.schedule: Schedule | None = job.config.schedule
        self.has_init = kind.init is not Job.init
        self.has_shutdown = kind.shutdown is not Job.shutdown
        self.is_async = kind._async_hooks
        self.typed = self.config.parameters_schema
        self.check: Callable[[Any], None] | None = job.check if isinstance(job, Choosing) else None
        self.make: Callable[[], Job] = _maker(job)

    @property
    def job(self) -> Job:
        return self.make()


def _maker(job: Job) -> Callable[[], Job]:
    """A shallow copy of `job` per call; by hand where copy.copy would do just that, at a sixth of its price."""
    kind = type(job)
    plain = (
        kind not in copyreg.dispatch_table
        and not any(
            hasattr(kind, name)
            for name in ("__copy__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
        )
        and all(
            getattr(kind, name) is getattr(object, name)
            for name in ("__new__", "__reduce_ex__", "__reduce__", "__getstate__")
        )
        # That of abc.ABC is empty.
        and not any(base.__dict__.get("__slots__") for base in kind.__mro__)
    )
    if not plain:
        return lambda: copy.copy(job)
    new = object.__new__

    def make() -> Job:
        instance = new(kind)
        instance.__dict__.update(job.__dict__)
        return instance

    return make


class Registry:
    """Belongs to one Scheduler. Two schedulers in one process do not see each other's."""

    def __init__(self) -> None:
        self._by_name: dict[str, Registered] = {}
        self._by_key: dict[tuple[str, str], Registered] = {}  # recurring instances scheduled under a key
        self._sources: dict[str, type[Job] | Job] = {}
        self._classes: dict[str, type[Job]] = {}
        self._implicit: set[str] = set()  # names that schedule() registered on its own
        self._kinds: dict[str, bool] = {}  # name -> is it recurring?
        self._scheduled: dict[tuple[str, str], Job] = {}

    def names(self) -> list[str]:
        return list(self._by_name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, name: str, key: str | None) -> Registered | None:
        if key is not None and self._by_key:
            found = self._by_key.get((name, key))
            if found is not None:
                return found
        return self._by_name.get(name)

    def asks(self, name: str) -> bool:
        """Whether `check_parameters` has anything to ask for jobs of this name without a key."""
        entry = self.find(name, None)
        return entry is not None and entry.typed is not None

    def check_parameters(self, name: str, key: str | None, parameters: Any) -> None:
        """What the job's class says of them, as far as this process knows the class; the run asks again."""
        entry = self.find(name, key)
        if entry is None or entry.typed is None:
            return
        plain = plain_parameters(parameters)
        typed = validate_parameters(entry.typed, plain)
        if entry.check is not None:
            try:
                entry.check(typed)
            except Exception as error:  # noqa: BLE001 - raised again in our words
                secrets = texts_of(plain)
                refusal = _refusal(plain, "are not allowed here", error, secrets)
                raise refusal from (None if secrets else error)

    def register(self, source: type[Job] | Job) -> str:
        """Make a name known; registering the same class or object again changes nothing."""
        job = instantiate(source)
        name = job.name
        _refuse_taken(name, job)
        known = self._sources.get(name)
        if known is source:
            return name
        if name in self._implicit and self._classes[name] is type(job):
            self._implicit.discard(name)  # said outright now, and this instance is the one to copy
        elif known is not None:
            raise DuplicateJobError(f"job {name!r} is already registered", name)
        self._add(name, job, source)
        if job.config.schedule is not None:
            self._kinds.setdefault(name, True)
        return name

    def admit(self, job: Job) -> None:
        """Check and register what `schedule(job)` brings; raises before anything is stored."""
        name, recurring = job.name, job.config.schedule is not None
        _refuse_taken(name, job)
        known = self._classes.get(name)
        if known is not None and known is not type(job):
            raise DuplicateJobError(
                f"job implementation does not match registered job: {name!r} is {known.__qualname__}", name
            )
        if name not in SHARED_NAMES and self._kinds.get(name, recurring) != recurring:
            was, now = ("recurring", "one-time") if self._kinds[name] else ("one-time", "recurring")
            raise JobKindError(
                f"job {name!r} was scheduled as {was} in this process; it cannot be {now} too", name
            )
        if recurring:
            key = job.config.key or name
            if self._scheduled.get((name, key), job) is not job:
                raise DuplicateJobError(f"recurring job already exists in job registry: {name}", name)

    def adopt(self, job: Job, *, certain: bool = True) -> None:
        """Remember what was admitted and stored. Not `certain`: in a transaction that its caller may still roll back.

        Then only what runs it is remembered, in case it is committed; it keeps no other from its place.
        """
        name = job.name
        recurring = job.config.schedule is not None
        if name not in self._by_name:
            self._add(name, job, job)
            self._implicit.add(name)
        if certain:
            self._kinds[name] = recurring
        if recurring:
            key = job.config.key or name
            self._by_key[(name, key)] = Registered(name, job)
            if certain:
                self._scheduled[(name, key)] = job

    def forget(self, name: str, key: str | None) -> None:
        """The recurring job was deleted: its name and key may be scheduled anew."""
        if key is not None:
            self._scheduled.pop((name, key), None)
            self._by_key.pop((name, key), None)

    def clear(self) -> None:
        for table in (
            self._by_name,
            self._by_key,
            self._sources,
            self._classes,
            self._kinds,
            self._scheduled,
        ):
            table.clear()
        self._implicit.clear()

    def _add(self, name: str, job: Job, source: type[Job] | Job) -> None:
        self._by_name[name] = Registered(name, job)
        self._sources[name] = source
        self._classes[name] = type(job)


def instantiate(source: Any) -> Job:
    """A Job from a class or an instance; InvalidTypeError for anything else."""
    if isinstance(source, type):
        if not issubclass(source, Job):
            raise InvalidTypeError("job", source, "must be a subclass of Job, or an instance of one")
        if inspect.isabstract(source):
            raise InvalidTypeError("job", source, "is abstract: it must implement run")
        return source()
    if not isinstance(source, Job):
        raise InvalidTypeError("job", source, "must be a subclass of Job, or an instance of one")
    if not isinstance(getattr(source, "config", None), JobConfig):
        raise InvalidTypeError("config", getattr(source, "config", None), "must be a JobConfig")
    return source


def _refuse_taken(name: str, job: Job) -> None:
    """Whoever stores a job under a shipped kind's name, in whatever process, means that kind and its parameters."""
    if name in SHARED_NAMES and not (isinstance(job, Choosing) and job.own_name == name):
        rule = f"is kept for a kind in pgscheduler.jobs: {type(job).__qualname__} needs another, JobConfig(name=…)"
        raise InvalidValueError("name", name, rule)


def plain_parameters(parameters: Any) -> Any:
    """Parameters given as a dataclass or pydantic instance, as the JSON that is stored. None is none given."""
    if parameters is None:
        return {}
    if dataclasses.is_dataclass(parameters) and not isinstance(parameters, type):
        return dataclasses.asdict(parameters)
    if hasattr(parameters, "model_dump"):
        return parameters.model_dump(mode="json")
    return parameters


def validate_parameters(schema: Any, parameters: Any) -> Any:
    """`parameters` checked against a job's schema; for a class, the instance. Raises InvalidValueError.

    What is marked as secret is checked as the run gets it, and errors do not repeat it.
    """
    if schema is None:
        return parameters
    try:
        secrets, parameters = texts_of(parameters), revealed(parameters)
    except RecursionError:
        raise InvalidValueError("parameters", "$", "must not be circular or too deep") from None
    if isinstance(schema, type):
        try:
            if hasattr(schema, "model_validate"):
                return schema.model_validate(parameters)
            if not isinstance(parameters, dict):
                raise TypeError(f"a JSON object is needed, not {type(parameters).__name__}")
            return schema(**parameters)
        except Exception as error:  # noqa: BLE001 - raised again in our words
            refusal = _refusal(parameters, f"do not fit {schema.__qualname__}", error, secrets)
            raise refusal from (None if secrets else error)
    check_parameters(schema, parameters)
    return parameters


def _refusal(parameters: Any, text: str, error: Exception, secrets: frozenset[str]) -> InvalidValueError:
    """Their names are shown, not their values: parameters may hold secrets."""
    given = sorted(map(str, parameters)) if isinstance(parameters, dict) else type(parameters).__name__
    return InvalidValueError("parameters", given, f"{text}: {mask(str(error), secrets)[:300]}")
