"""The verbs: schedule, enqueue, trigger, cancel, pause, … One service layer for Python, the command and REST.

A client needs no running scheduler: a web process schedules jobs that worker processes run.
"""

from __future__ import annotations

from ._bulk import Bulk
from ._core import JobRef
from ._declaring import Declaring
from ._naming import Naming
from ._retrying import Retrying
from ._storing import IfExists

__all__ = ["Client", "IfExists", "JobRef"]


class Client(Bulk, Declaring, Naming, Retrying):
    """Everything that can be said about jobs, over one (database, schema, prefix)."""
