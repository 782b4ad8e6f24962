"""Telling subscribers what this process committed, in order, on a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

from .events import StatusChange, Subscriber
from .states import Claim, Ended, JobState, Outcome

__all__ = ["Subscribers"]


class Subscribers:
    """Costs nothing until somebody subscribes."""

    def __init__(self, name: str, log: Any) -> None:
        self._name = name
        self._log = log
        self._lock = threading.Lock()
        self._callbacks: list[Subscriber] = []
        self._changes: queue.SimpleQueue[StatusChange | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def add(self, callback: Subscriber) -> Callable[[], None]:
        """From now on `callback` is told; the function returned ends that."""
        with self._lock:
            self._callbacks.append(callback)
            if self.thread is None:
                self.thread = threading.Thread(target=self._tell, name=f"{self._name}-events", daemon=True)
                self.thread.start()

        def remove() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return remove

    def emit(self, change: StatusChange) -> None:
        if self._callbacks:
            self._changes.put(change)

    def moved(self, claims: list[Claim], completed: list[Any], finished: list[Ended]) -> None:
        """What one commit of the dispatcher or the recorder moved."""

        def change(claim: Claim, old: JobState, new: JobState) -> None:
            self.emit(StatusChange(claim.id, claim.name, claim.key, old, new))

        for claim, _, _ in completed:
            change(claim, JobState.RUNNING, JobState.COMPLETED)
        for move in finished:
            new = JobState.PENDING
            if move.ends:
                new = (move.outcome or Outcome.FAILED).job_state
            change(move.claim, JobState.RUNNING, new)
        for claim in claims:
            change(claim, JobState.PENDING, JobState.RUNNING)

    def close(self) -> None:
        if self.thread is not None:
            self._changes.put(None)
            self.thread.join(0.1)

    def _tell(self) -> None:
        while (change := self._changes.get()) is not None:
            for callback in list(self._callbacks):
                try:
                    callback(change)
                except Exception as error:  # noqa: BLE001 - the user's own code
                    self._log.error("subscriber failed", error=f"{type(error).__name__}: {error}"[:500])
