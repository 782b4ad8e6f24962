"""Requests that wait for something in the database: a pause keeps no thread and no connection, and not all may wait.

`Scheduler.wait` keeps the thread that calls it. Here many may wait at once, so they look again and again instead: at
most two of them at the same moment, on threads of their own, however slow the database is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from pgscheduler.clock import monotonic, uniform

from ._errors import ApiError
from ._limits import Limits

__all__ = ["Patience", "Waiting"]

T = TypeVar("T")

LOOKING = 2  # questions at the same time, of all who wait
SHARE = 0.7  # of the time that a request may take: the rest is for its last look, and for the answer
SHORTEST, LONGEST = 0.02, 0.5  # seconds between two looks


class Waiting:
    """Who waits in one app. Half of `max_requests` may, so that there is room for those who do not."""

    def __init__(self, limits: Limits) -> None:
        self.longest = limits.request_timeout.total_seconds() * SHARE
        self.closed = False
        self._most = max(limits.max_requests // 2, 1)
        self._here = 0  # the event loop's alone
        self._limiter: CapacityLimiter | None = None

    def close(self, closed: bool = True) -> None:
        """Nobody waits any longer: the server is about to stop. From any thread."""
        self.closed = closed

    async def ask(self, question: Callable[[], T]) -> T:
        """What a look at the database finds, in its turn."""
        if self._limiter is None:
            self._limiter = CapacityLimiter(LOOKING)
        return await to_thread.run_sync(question, limiter=self._limiter)

    def enter(self) -> None:
        if self._here >= self._most:
            raise ApiError(503, "busy", "Too many requests wait.", headers={"Retry-After": "1"})
        self._here += 1

    def leave(self) -> None:
        self._here -= 1


class Patience:
    """One request's: so many seconds, as far as a request may take so long.

    ::

        with Patience(waiting, request, seconds) as patience:
            while not done() and await patience.pause():
                ...
    """

    def __init__(self, waiting: Waiting, request: Request, seconds: float) -> None:
        self._waiting = waiting
        self._request = request
        self._end = monotonic() + min(seconds, waiting.longest)
        self._length = SHORTEST
        self._entered = False  # who need not wait takes no place

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered:
            self._waiting.leave()

    async def pause(self) -> bool:
        """Wait a moment. False: there is no more time for it, or nobody who would hear the answer.

        Raises ApiError, 503, if too many wait already.
        """
        left = self._end - monotonic()
        if left <= 0 or self._waiting.closed:
            return False
        if not self._entered:
            self._waiting.enter()
            self._entered = True
        await asyncio.sleep(min(self._length * uniform(0.8, 1.2), left))
        self._length = min(self._length * 1.5, LONGEST)
        return not await self._request.is_disconnected()
