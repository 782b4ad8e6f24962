"""SIGINT and SIGTERM of a process in the foreground: the first is waited for, the second means now."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress

from pgscheduler.clock import monotonic

__all__ = ["Signals"]

#: Seconds in which the same signal again is the same one: `timeout` sends two, and a program that passes on what a
#: terminal has sent to the whole group makes two of it.
ECHO = 0.2


class Signals:
    """Heard from its making to `close()`. Installed before the start, so that none can come too early.

    `second` is called in the handler of the second one, before the process ends with 130. With `children`, the end
    of a child process is heard too: it ends a wait.
    """

    def __init__(self, second: Callable[[], None] = lambda: None, *, children: bool = False) -> None:
        self.received: list[int] = []
        self._at = 0.0  # monotonic: when the first one came
        self._second = second
        self._read, self._write = os.pipe()
        # Written to by the C handler: a Python one comes too late for a read that is just about to begin, and a
        # signal that another thread receives does not interrupt it.
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._previous = {
            number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)
        }
        if children:
            # A handler that does nothing: without one, nothing is written to the pipe.
            self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)

    def _heard(self, number: int, _frame: object) -> None:
        # No lock may be taken here: this runs between any two bytecodes of the main thread.
        now = monotonic()
        if self.received and self.received[0] == number and now - self._at < ECHO:
            return
        self.received.append(number)
        self._at = now
        if len(self.received) > 1:
            os.write(2, b"pgscheduler: second signal, exiting now\n")
            self._second()
            os._exit(130)

    @property
    def name(self) -> str | None:
        """The first signal's; None before it."""
        return signal.Signals(self.received[0]).name if self.received else None

    def pretend(self) -> None:
        """Act as at a SIGTERM, unless something was heard already. From any thread."""
        if not self.received:
            self.received.append(signal.SIGTERM)
            with suppress(OSError):
                os.write(self._write, b"\0")

    def wait(self) -> str:
        """Block until the first one; its name."""
        while self.name is None:
            self.pause(None)
        return self.name

    def pause(self, seconds: float | None, others: Iterable[int] = ()) -> None:
        """Block until a signal, something to read from one of `others`, or the time is over."""
        select.select([self._read, *others], [], [], seconds)
        with suppress(BlockingIOError):
            os.read(self._read, 4096)

    def close(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)
