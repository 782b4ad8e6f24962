"""What a run may ask and say: the `ctx` that every hook receives."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ._json import clean_json, clean_text, load_json
from ._marks import marked, mask, masked, revealed, texts_of
from .clock import monotonic
from .errors import InvalidValueError, JobCancelled
from .states import Claim

if TYPE_CHECKING:
    from ._transaction import RunTransaction

__all__ = ["RunContext", "Services"]

MAX_LOG_LINES = 1000  # per run; what comes after is counted, not kept


@dataclass(slots=True)
class Services:
    """What a context needs of its node. In a job's own process these reach the node through a pipe."""

    node: str
    log: Any
    #: Something was noted: write it soon.
    noted: Callable[[RunContext], None]
    #: Opens `ctx.transaction()`.
    transaction: Callable[[RunContext, Any], RunTransaction]
    #: Checks ownership on a caller's connection.
    assert_owner: Callable[[RunContext, Any], None]


class RunContext:
    """One attempt, as its job sees it."""

    __slots__ = (
        "_claim",
        "_completed",
        "_dropped",
        "_event",
        "_kept",
        "_lines",
        "_log",
        "_on_stop",
        "_parameters",
        "_progress",
        "_reason",
        "_secrets",
        "_services",
        "_started",
        "_timeout",
        "_told",
    )

    def __init__(
        self,
        claim: Claim,
        services: Services,
        started: float,
        timeout: float | None = None,
        parameters: Any = ...,
    ) -> None:
        self._claim = claim
        self._services = services
        self._started = started  # monotonic
        self._timeout = timeout
        self._parameters = parameters
        self._reason: str | None = None
        self._event: threading.Event | None = None
        self._on_stop: Callable[[str], None] | None = None
        self._completed = False  # ctx.transaction() has committed
        self._progress: dict[str, Any] | None = None
        self._told: dict[str, Any] | None = None  # the progress that was taken last
        self._lines: deque[dict[str, Any]] | None = None  # the run's thread appends, the recorder's takes
        self._kept = 0
        self._dropped = 0
        self._log: Any = None
        self._secrets: frozenset[str] = frozenset()  # what the run knows and must not say

    # --- what it is ---------------------------------------------------------------------------------

    @property
    def parameters(self) -> Any:
        """The job's parameters: fresh JSON for each attempt, or an instance of `parameters_schema`'s class."""
        if self._parameters is ...:
            text = self._claim.parameters
            self._parameters = {} if text is None or text == "null" else load_json(text)
            if marked(text):
                self._secrets = texts_of(self._parameters)
                self._parameters = revealed(self._parameters)
        return self._parameters

    @property
    def name(self) -> str:
        return self._claim.name

    @property
    def key(self) -> str | None:
        return self._claim.key

    @property
    def job_id(self) -> int:
        return self._claim.id

    @property
    def run_id(self) -> str:
        """Identifies this attempt; another attempt at the same occurrence has another. An idempotency key for effects
        elsewhere is `(job_id, scheduled_at)`, which all attempts at one occurrence share."""
        return f"{self._claim.id}-{self._claim.token:016x}"

    @property
    def token(self) -> int:
        """The claim's fencing token. A system that remembers the last one it saw cannot order them: they are
        random. Compare for equality only, or use `assert_owner`."""
        return self._claim.token

    @property
    def attempt(self) -> int:
        """1 for the first. Interrupted and snoozed runs do not count."""
        return self._claim.attempt

    @property
    def scheduled_at(self) -> datetime:
        """The occurrence (UTC): the instant that the schedule asked for; retries and jitter do not move it."""
        return self._claim.scheduled_at.astimezone(UTC)

    @property
    def deadline(self) -> datetime | None:
        """When this attempt times out, by the database's clock; None without a timeout."""
        if self._timeout is None:
            return None
        return self._claim.now(self._started) + timedelta(seconds=self._timeout)

    @property
    def node(self) -> str:
        """The id of the node that runs this."""
        return self._services.node

    # --- being asked to stop ------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """True once the run should stop; `cancel_reason` says why. Cheap enough for an inner loop."""
        return self.cancel_reason is not None

    @property
    def cancel_reason(self) -> str | None:
        """`cancelled`, `timeout`, `shutdown`, `lost`, or None while the run may go on."""
        if (
            self._reason is None
            and self._timeout is not None
            and monotonic() - self._started >= self._timeout
        ):
            self._stop("timeout")
        return self._reason

    def check(self) -> None:
        """Raise `JobCancelled` if the run should stop. Call it between steps."""
        reason = self.cancel_reason
        if reason is not None:
            raise JobCancelled(reason)

    def wait(self, seconds: float | timedelta) -> bool:
        """Sleep, interruptibly: True after the whole time, False as soon as the run should stop.

        In an `async` job use `await ctx.sleep(seconds)`.
        """
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        end = monotonic() + seconds
        if self._event is None:
            self._event = threading.Event()
        while True:
            if self.cancel_reason is not None:
                return False
            now = monotonic()
            if now >= end:
                return True
            pause = end - now
            if self._timeout is not None:
                pause = min(pause, max(self._started + self._timeout - now, 0.0))
            self._event.wait(min(pause, 3600.0))

    async def sleep(self, seconds: float | timedelta) -> bool:
        """`wait` for async jobs."""
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        end = monotonic() + seconds
        # Stops come from other threads, so a short poll is simpler than a loop-bound event; an async job that is
        # cancelled or timed out is interrupted here anyway.
        while self.cancel_reason is None and (left := end - monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(left, 0.1))
        return self._reason is None

    # --- saying something ---------------------------------------------------------------------------

    @property
    def log(self) -> RunLog:
        """A logger bound to this run. Lines go to the process's log and are stored with the run."""
        if self._log is None:
            self._log = RunLog(self, {})
        return self._log  # type: ignore[no-any-return]

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the run is. Written within about a second, the last one with the run's record."""
        if isinstance(done, bool) or not isinstance(done, int | float):
            raise InvalidValueError("done", done, "must be a number")
        self._progress = self._said({"done": done, "total": total, "message": message})
        self._services.noted(self)

    # --- effects ------------------------------------------------------------------------------------

    def transaction(self, result: Any = None) -> RunTransaction:
        """Your own SQL and this run's completion, both or neither, exactly once::

            with ctx.transaction() as connection:        # async with, in an async job
                connection.execute("update accounts …")

        The connection is psycopg's, in a transaction. Leaving the block marks the run as completed under its
        token and commits; `RunLostError` rolls back if the claim is gone. At most once per run; whatever the
        run does after it, the run stays completed. `result` is stored as the run's result.
        """
        return self._services.transaction(self, masked(result, self._secrets) if self._secrets else result)

    def assert_owner(self, connection: Any) -> None:
        """Raise `RunLostError` unless this run still owns its job; and let nobody take it from here until
        the connection's transaction ends. Keep that transaction short: the claim's heartbeat waits for it."""
        self._services.assert_owner(self, connection)

    # --- for the runner -----------------------------------------------------------------------------

    def _said(self, fields: Mapping[str, Any]) -> Any:
        """As JSON, without what was marked as secret."""
        found = clean_json(dict(fields))
        return masked(found, self._secrets) if self._secrets else found

    def _stop(self, reason: str) -> None:
        if self._reason is None or reason == "lost":
            self._reason = reason
        if self._event is not None:
            self._event.set()
        if self._on_stop is not None:
            self._on_stop(reason)

    def _note(self, level: str, event: object, fields: Mapping[str, Any]) -> None:
        if self._kept >= MAX_LOG_LINES:
            self._dropped += 1
            return
        self._kept += 1
        if self._lines is None:
            self._lines = deque()
        self._lines.append(
            {
                "at": round(monotonic() - self._claim.received, 6),
                "level": level,
                "event": clean_text(event),
                "fields": clean_json(dict(fields)) or None,
            }
        )
        self._services.noted(self)

    def _take_notes(self, *, final: bool = False) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """What has been said since the last call; at the end also how many lines were too many.

        Called on another thread than the run's: nothing is taken away that may just be written to.
        """
        progress = self._progress
        if progress is self._told:
            progress = None
        else:
            self._told = progress
        lines: list[dict[str, Any]] = []
        if self._lines is not None:
            with contextlib.suppress(IndexError):
                while True:
                    lines.append(self._lines.popleft())
        if final and self._dropped:
            at = round(monotonic() - self._claim.received, 6)
            text = f"{self._dropped} lines dropped"
            lines.append({"at": at, "level": "warning", "event": text, "fields": None})
            self._dropped = 0
        return progress, lines


class RunLog:
    """The small part of structlog's interface that jobs use: levels and `bind`."""

    __slots__ = ("_context", "_fields")

    def __init__(self, context: RunContext, fields: Mapping[str, Any]) -> None:
        self._context = context
        self._fields = fields

    def bind(self, **fields: Any) -> RunLog:
        return RunLog(self._context, {**self._fields, **fields})

    def debug(self, event: object, **fields: Any) -> None:
        self._say("debug", event, fields)

    def info(self, event: object, **fields: Any) -> None:
        self._say("info", event, fields)

    def warning(self, event: object, **fields: Any) -> None:
        self._say("warning", event, fields)

    def error(self, event: object, **fields: Any) -> None:
        self._say("error", event, fields)

    def exception(self, event: object, **fields: Any) -> None:
        self._say("error", event, {**fields, "exc_info": True})

    def _say(self, level: str, event: object, fields: dict[str, Any]) -> None:
        context = self._context
        fields = {**self._fields, **fields}
        if context._secrets:
            trace = fields.pop("exc_info", None)
            if trace:  # a logger would write it with the exception's text
                fields["exception"] = traceback.format_exc()
            event, fields = mask(clean_text(event), context._secrets), context._said(fields)
        stored = {k: v for k, v in fields.items() if k != "exc_info"}
        context._note(level, event, stored)
        facts = {
            "job": context.name,
            "key": context.key,
            "attempt": context.attempt,
            "run_id": context.run_id,
        }
        try:
            getattr(context._services.log, level)(event, **{**facts, "node": context.node, **fields})
        except Exception:  # noqa: BLE001 - a logger that fails must not fail the job
            return
