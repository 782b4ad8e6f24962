"""Every error that pgscheduler raises, as one tree.

::

    PgSchedulerError
    ├── InvalidValueError (ValueError)        .field .value .rule
    │   └── InvalidCronError                  .code .field
    ├── InvalidTypeError (TypeError)          .field .value .rule
    ├── DuplicateJobError (ValueError)        .name
    ├── JobKindError (ValueError)             .name
    ├── DuplicateTemplateError (ValueError)   .code
    ├── TemplateNotFoundError (LookupError)   .code
    ├── TemplateInactiveError (RuntimeError)  .code
    ├── JobNotFoundError (LookupError)        .job
    ├── JobRunningError (RuntimeError)        .job
    ├── JobNotRunningError (RuntimeError)     .job
    ├── SchedulerStateError (RuntimeError)    the verb does not fit the scheduler's state
    ├── SchemaError (RuntimeError)            missing, too old, too new, not ours
    ├── DatabaseUnavailableError (ConnectionError)   nothing was stored
    ├── ScheduleUnknownError (ConnectionError)       it may or may not have been stored
    ├── ListenError (OSError)                 .host .port; a server could not take its address
    ├── WaitTimeoutError (TimeoutError)
    ├── RunLostError (RuntimeError)           this run no longer owns its job
    └── JobCancelled                          raised by ``ctx.check()`` inside a run

Each is also the builtin that a Python user would expect to catch, and carries its facts as
attributes. Texts show at most 80 characters of a bad value and never a password.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

__all__ = [
    "DatabaseUnavailableError",
    "DuplicateJobError",
    "DuplicateTemplateError",
    "InvalidCronError",
    "InvalidTypeError",
    "InvalidValueError",
    "JobCancelled",
    "JobKindError",
    "JobNotFoundError",
    "JobNotRunningError",
    "JobRunningError",
    "ListenError",
    "PgSchedulerError",
    "RunLostError",
    "ScheduleUnknownError",
    "SchedulerStateError",
    "SchemaError",
    "TemplateInactiveError",
    "TemplateNotFoundError",
    "WaitTimeoutError",
]

_SHOWN = 80  # characters of a bad value that an error text may repeat


def show(value: object) -> str:
    """A bad value as an error text may repeat it: one line, escaped, at most 80 characters."""
    try:
        called = getattr(type(value), "_called", None)  # of a record: its id and name, not all that it holds
        if called is not None:
            text = repr(called(value))[1:-1]
        elif isinstance(value, timedelta):
            text = f"{value.total_seconds():.6f}".rstrip("0").rstrip(".") + " s"
        else:
            text = repr(value[: 2 * _SHOWN]) if isinstance(value, str | bytes) else repr(value)
    except Exception:  # noqa: BLE001 - a hostile __repr__ must not hide the real error
        text = f"<{type(value).__name__}>"
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


class PgSchedulerError(Exception):
    """The root: ``except PgSchedulerError`` catches everything that this package raises."""

    #: Its text is all that is recorded of a run that raised it: where in this package that was, helps nobody.
    plain: ClassVar[bool] = False


class InvalidValueError(PgSchedulerError, ValueError):
    """A value breaks a rule. ``field`` names it, ``value`` is it, ``rule`` says what holds."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        super().__init__(f"{field} {rule}, got {show(value)}")


class InvalidTypeError(PgSchedulerError, TypeError):
    """A value has the wrong type. ``field`` names it, ``rule`` says which types fit."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        super().__init__(f"{field} {rule}, got {type(value).__name__} {show(value)}")


class InvalidCronError(InvalidValueError):
    """A cron expression or its time zone is not one that pgscheduler accepts.

    ``code`` is one of: type, empty, too_long, bad_character, field_count, syntax, bad_value,
    out_of_range, bad_step, reversed_range, mixed_nth, day_and_nth, unknown_alias, bad_duration,
    bad_zone, never. ``field`` is the cron field (minute, hour, …), ``timezone`` or ``cron``.
    """

    def __init__(self, code: str, field: str, message: str, value: object = None) -> None:
        self.code = code
        self.field = field
        self.value = value
        self.rule = message
        # Straight to ValueError: the text is the caller's, echoing at most 20 characters.
        Exception.__init__(self, f"invalid cron schedule: {message}")


class DuplicateJobError(PgSchedulerError, ValueError):
    """A second, different job was registered or scheduled under a name that is taken."""

    def __init__(self, message: str, name: str) -> None:
        self.name = name
        super().__init__(message)


class JobKindError(PgSchedulerError, ValueError):
    """A one-time job under a recurring job's name, or the other way round."""

    def __init__(self, message: str, name: str) -> None:
        self.name = name
        super().__init__(message)


class JobNotFoundError(PgSchedulerError, LookupError):
    """No such job: never stored, already finished, or deleted."""

    def __init__(self, job: object) -> None:
        self.job = job
        super().__init__(f"job not found: {show(job)}")


class JobRunningError(PgSchedulerError, RuntimeError):
    """The verb needs a job that is not running, and this one is."""

    def __init__(self, job: object) -> None:
        self.job = job
        super().__init__(f"job is currently running: {show(job)}")


class JobNotRunningError(PgSchedulerError, RuntimeError):
    """The job exists but is not in a state in which the verb means anything."""

    def __init__(self, job: object, message: str = "job exists but is not currently running") -> None:
        self.job = job
        super().__init__(f"{message}: {show(job)}")


class DuplicateTemplateError(PgSchedulerError, ValueError):
    """There is a template with this code already. Nothing was changed."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(f"template already exists: {show(code)}")


class TemplateNotFoundError(PgSchedulerError, LookupError):
    """No template has this code."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(f"template not found: {show(code)}")


class TemplateInactiveError(PgSchedulerError, RuntimeError):
    """The template is not active: no job is made from it until it is."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(f"template is not active: {show(code)}")


class SchedulerStateError(PgSchedulerError, RuntimeError):
    """The verb does not fit the scheduler's state: not initialized, already started, shut down, forked."""


class SchemaError(PgSchedulerError, RuntimeError):
    """The tables are missing, older or newer than this version needs, or not ours."""


class DatabaseUnavailableError(PgSchedulerError, ConnectionError):
    """PostgreSQL could not be reached. Nothing was stored; trying again is safe."""


class ScheduleUnknownError(PgSchedulerError, ConnectionError):
    """The connection was lost while the job was being committed: it may or may not be stored.

    Also raised when the server warned that a commit may not have been replicated (SQLSTATE 01000).
    Schedule again under the same ``key``: whichever way it went, there will be one job.
    """


class ListenError(PgSchedulerError, OSError):
    """A server could not take its address: in use, not of this machine, or not allowed. ``host`` and ``port`` name it."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        self.host = host
        self.port = port
        super().__init__(f"cannot listen on {show(host)} port {port}: {reason}")


class WaitTimeoutError(PgSchedulerError, TimeoutError):
    """``Scheduler.wait()`` gave up before the job ended."""


class RunLostError(PgSchedulerError, RuntimeError):
    """This run no longer owns its job: another claim replaced it. Nothing was written."""

    def __init__(self, job: Any, message: str = "this run lost its claim; nothing was written") -> None:
        self.job = job
        super().__init__(f"{message} (job {job})")


class JobCancelled(PgSchedulerError):
    """The run was asked to stop. ``reason`` is cancelled, timeout, shutdown or lost."""

    def __init__(self, reason: str = "cancelled") -> None:
        self.reason = reason
        super().__init__(f"the run was asked to stop: {reason}")
