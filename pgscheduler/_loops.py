"""One small class owns every background thread: it names, starts, wakes and stops it.

A loop repeats a *step*. The step returns how many seconds the loop may sleep (``None``: until woken).
A step that raises is logged and tried again with full-jitter backoff; no loop ends unless it is told to.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from .clock import monotonic, uniform

__all__ = ["Loop", "Waker"]

BACKOFF_FIRST = 0.05  # seconds; doubled per failure in a row, then drawn between half and all of it
BACKOFF_LIMIT = 2.0  # seconds; PostgreSQL is back for at most this long before a loop notices


class Waker:
    """A flag that one thread waits for and others raise. Cheaper than Event where it is raised often.

    The lock is the flag: held means "nothing to do". Raising twice is raising once.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        """Let the waiting thread go on; from any thread, any number of times."""
        with contextlib.suppress(RuntimeError):  # it is already awake
            self._lock.release()

    def wait(self, seconds: float | None) -> bool:
        """Wait to be woken, `seconds` at most; True if woken. The flag is lowered."""
        if seconds is None:
            # Bounded, so that a wait never outlives a machine's suspended clock by much.
            return self._lock.acquire(timeout=3600)
        return self._lock.acquire(timeout=min(max(seconds, 0.0), 3600.0))


class Loop:
    """A named daemon thread that repeats `step` until it is stopped."""

    def __init__(
        self,
        name: str,
        step: Callable[[], float | None],
        log: Any,
        on_exit: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.failures = 0  # in a row; read by stats()
        self.last_success: float | None = None  # monotonic seconds; written by the loop's own thread
        self._step = step
        self._log = log
        self._on_exit = on_exit
        self._waker = Waker()
        self._stopping = False
        # A daemon: a process that forgot shutdown() can end; its claims are then found by the stalled scan.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Run the step soon, even if it is just running."""
        self._waker.wake()

    def stop(self) -> None:
        """Ask the loop to end after its current step. Returns at once; `join` waits."""
        self._stopping = True
        self._waker.wake()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end; False if it has not."""
        if self._thread.ident is None or self._thread is threading.current_thread():
            return True
        self._thread.join(max(seconds, 0.0))
        return not self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            try:
                sleep = self._step()
                self.failures = 0
                self.last_success = monotonic()
            except BaseException as error:  # noqa: BLE001 - a loop outlives everything, SystemExit included
                self.failures += 1
                # The error's text may hold a DSN's host but never its password: psycopg leaves that out.
                self._log.warning(
                    "loop failed, will try again",
                    loop=self.name,
                    failures=self.failures,
                    error=f"{type(error).__name__}: {error}"[:500],
                )
                full = min(BACKOFF_LIMIT, BACKOFF_FIRST * 2 ** min(self.failures, 10))
                sleep = full * uniform(0.5, 1.0)
            if not self._stopping and (sleep is None or sleep > 0):
                self._waker.wait(sleep)
        if self._on_exit is not None:
            self._on_exit()
