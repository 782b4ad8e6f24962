"""What this scheduler did to a job, as told to subscribers.

Only changes made by this very process are told; for the whole fleet, read ``runs`` or poll ``stats()``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .states import JobState

__all__ = ["StatusChange", "Subscriber"]


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A job went from `old` to `new` and the change is committed. `old` is None for a new job."""

    job_id: int
    name: str
    key: str | None
    old: JobState | None
    new: JobState


Subscriber = Callable[[StatusChange], None]
