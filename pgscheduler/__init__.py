"""Jobs on PostgreSQL: recurring and one-time, on as many nodes as you like, nothing lost, doubled or silently late."""

from ._context import RunContext
from ._marks import secret
from ._version import __version__
from .client import JobRef
from .config import SchedulerConfig
from .errors import (
    DatabaseUnavailableError,
    DuplicateJobError,
    DuplicateTemplateError,
    InvalidCronError,
    InvalidTypeError,
    InvalidValueError,
    JobCancelled,
    JobKindError,
    JobNotFoundError,
    JobNotRunningError,
    JobRunningError,
    ListenError,
    PgSchedulerError,
    RunLostError,
    SchedulerStateError,
    ScheduleUnknownError,
    SchemaError,
    TemplateInactiveError,
    TemplateNotFoundError,
    WaitTimeoutError,
)
from .events import StatusChange
from .job import Job, JobConfig
from .records import JobRecord, LogLine, NodeRecord, RunRecord, Template
from .retry import Backoff
from .schedule import Cron, Every, Schedule
from .scheduler import PassSummary, Scheduler
from .signals import Cancel, Fail, Retry, Snooze
from .states import JobState, Outcome
from .templates import Templates

__all__ = [
    "Backoff",
    "Cancel",
    "Cron",
    "DatabaseUnavailableError",
    "DuplicateJobError",
    "DuplicateTemplateError",
    "Every",
    "Fail",
    "InvalidCronError",
    "InvalidTypeError",
    "InvalidValueError",
    "Job",
    "JobCancelled",
    "JobConfig",
    "JobKindError",
    "JobNotFoundError",
    "JobNotRunningError",
    "JobRecord",
    "JobRef",
    "JobRunningError",
    "JobState",
    "ListenError",
    "LogLine",
    "NodeRecord",
    "Outcome",
    "PassSummary",
    "PgSchedulerError",
    "Retry",
    "RunContext",
    "RunLostError",
    "RunRecord",
    "Schedule",
    "ScheduleUnknownError",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStateError",
    "SchemaError",
    "Snooze",
    "StatusChange",
    "Template",
    "TemplateInactiveError",
    "TemplateNotFoundError",
    "Templates",
    "WaitTimeoutError",
    "__version__",
    "secret",
]
