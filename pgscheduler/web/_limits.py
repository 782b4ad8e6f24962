"""How much a request may be, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pgscheduler import _check as check

__all__ = ["MAX_PAGE", "Limits"]

MAX_PAGE = 1000  # rows of one answer; more is read page by page


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Each has a bound, because whoever can connect can send. Durations are `timedelta`, or seconds."""

    #: Open connections; one more is closed unheard, so that no number of them takes the process's last file.
    max_connections: int = 512
    #: 10 s for a request's head to arrive, however slowly its bytes come; after that the connection is closed.
    head_timeout: timedelta = timedelta(seconds=10)
    #: 1 MiB: sixteen times what a job's parameters may be.
    max_body_bytes: int = 1 << 20
    #: 10 s for a request's body to arrive; after that 408.
    body_timeout: timedelta = timedelta(seconds=10)
    #: 30 s for an answer; after that 504, and what the database still does may or may not be done.
    request_timeout: timedelta = timedelta(seconds=30)
    #: Requests at the same time, those that wait included; one more is answered with 503. Half of them may be such as
    #: wait for a job.
    max_requests: int = 64
    #: Wrong tokens that one address may send in a minute; one more is answered with 429. Nobody guesses a token at any
    #: speed; this keeps the log readable, and tells a client that has an old one to stop. Right tokens do not wait.
    wrong_tokens_per_minute: int = 20

    def __post_init__(self) -> None:
        check.integer("max_body_bytes", self.max_body_bytes, 1024, 1 << 30)
        check.integer("max_connections", self.max_connections, 1, 100_000)
        check.integer("max_requests", self.max_requests, 1, 100_000)
        check.integer("wrong_tokens_per_minute", self.wrong_tokens_per_minute, 1, 1_000_000)
        for name in ("head_timeout", "body_timeout", "request_timeout"):
            object.__setattr__(self, name, check.duration(name, getattr(self, name)))
