"""`--processes N`: a parent that starts node processes, replaces those that die, and ends when all have ended.

Parent and child share a socket. The child says on it that it has started; its end in the child says that the parent
is gone, also by a `kill -9`, and the child then stops as at a SIGTERM. So there are no orphans, on any system.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pgscheduler.clock import monotonic, uniform

from ._signals import Signals

__all__ = ["Family", "Leash"]

VARIABLE = "_PGSCHEDULER_LEASH"  # in a child's environment: the socket's number and the child's place
SHORTEST, LONGEST = (
    1.0,
    30.0,
)  # seconds before a process is replaced; the longer, the more often in a row it died
STEADY = 60.0  # seconds after which a process counts as healthy, and its next death as the first in a row


class Leash:
    """The child's end: whose place it has, and what it does when the parent is gone."""

    def __init__(self, end: socket.socket, place: int) -> None:
        self.place = place
        self._end = end
        self._lock = threading.Lock()
        # Until it has started there is nothing to stop in good order.
        self._gone: Callable[[], None] = lambda: os._exit(1)
        threading.Thread(target=self._watch, name="pgscheduler-parent", daemon=True).start()

    @classmethod
    def taken(cls) -> Leash | None:
        """This process's leash; None if no parent holds it. To be asked once."""
        text = os.environ.pop(VARIABLE, "")  # what this process starts is not the parent's child
        if not text:
            return None
        number, _, place = text.partition(":")
        os.set_inheritable(int(number), False)
        return cls(socket.socket(fileno=int(number)), int(place))

    def started(self) -> None:
        with suppress(OSError):
            self._end.send(b".")

    def when_gone(self, then: Callable[[], None]) -> None:
        with self._lock:
            self._gone = then

    def _watch(self) -> None:
        with suppress(OSError):
            while self._end.recv(16):
                pass
        with self._lock:
            self._gone()


class _Child:
    """One place of the family, and the process that has it."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.process: subprocess.Popen[bytes] | None = None
        self.end: socket.socket | None = None
        self.started = False  # this process has said so
        self.due = 0.0  # monotonic: when to start one, if there is none
        self._born = 0.0
        self._deaths = 0  # in a row

    def start(self, command: list[str]) -> None:
        ours, theirs = socket.socketpair()
        self.end, self.started, self._born = ours, False, monotonic()
        number = theirs.fileno()
        try:
            self.process = subprocess.Popen(  # noqa: S603 - ourselves, with our own arguments
                command,
                env={**os.environ, VARIABLE: f"{number}:{self.place}"},
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                process_group=0,  # a terminal's Ctrl-C is for the parent, which passes it on once
            )
        finally:
            theirs.close()

    def listen(self) -> None:
        """Hear whether it has started."""
        if self.end is not None:
            with suppress(OSError):
                if self.end.recv(16, socket.MSG_DONTWAIT):
                    self.started = True
                else:
                    self._drop()

    def ended(self) -> int | None:
        """The exit status of a process that has just ended, like a shell's: 128 and more for a signal."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        self.listen()
        self._drop()
        self.process = None
        return status if status >= 0 else 128 - status

    def replace(self) -> float:
        """Have another one started later; returns the seconds until then."""
        self._deaths = 1 if monotonic() - self._born >= STEADY else self._deaths + 1
        delay = min(SHORTEST * 2.0 ** (self._deaths - 1), LONGEST) * uniform(0.8, 1.2)
        self.due = monotonic() + delay
        return delay

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def _drop(self) -> None:
        if self.end is not None:
            self.end.close()
            self.end = None


class Family:
    """`count` processes with the same arguments. `run()` returns the exit status.

    The first one starts alone: what is wrong with the command line, the module or the database is then told once, and
    ends it all with that process's status. From then on a process that dies, for whatever reason, is replaced.
    """

    def __init__(self, arguments: list[str], count: int, log: Any) -> None:
        self._command = [sys.executable, "-m", "pgscheduler", *arguments]
        self._children = [_Child(place) for place in range(count)]
        self._log = log
        self._ready = False  # some process has started
        self._status: int | None = None  # how it ends; None while it goes on

    def run(self) -> int:
        signals = Signals(self._kill, children=True)
        try:
            told = False
            while self._status is None or any(child.process for child in self._children):
                if signals.received and not told:
                    told = True
                    self._log.info("signal received, stopping the processes", signal=signals.name)
                    self._stop(0)
                self._start_due()
                self._pause(signals)
                for child in self._children:
                    child.listen()
                    self._ready = self._ready or child.started
                    self._bury(child)
            return self._status
        finally:
            self._kill()
            for child in self._children:
                if child.process is not None:
                    child.process.wait()
                child.ended()
            signals.close()

    def _start_due(self) -> None:
        for child in self._children:
            if self._status is None and child.process is None and child.due <= monotonic():
                if not self._ready and any(other.process for other in self._children):
                    return  # the first one has yet to show that it can be done
                child.start(self._command)
                assert child.process is not None
                self._log.info("process started", pid=child.process.pid, place=child.place)

    def _pause(self, signals: Signals) -> None:
        if signals.received and self._status is None:
            return
        waiting = [child.due for child in self._children if child.process is None]
        seconds = None
        if self._status is None and waiting and (self._ready or len(waiting) == len(self._children)):
            seconds = max(min(waiting) - monotonic(), 0.0)
        signals.pause(seconds, [child.end.fileno() for child in self._children if child.end is not None])

    def _bury(self, child: _Child) -> None:
        pid = child.process.pid if child.process is not None else None
        status = child.ended()
        if status is None:
            return
        if self._status is not None:
            # One that was told to stop before it could hear a signal has nothing to give back.
            good = status == 0 or (not child.started and status == 128 + signal.SIGTERM)
            self._status = self._status or (0 if good else 1)
        elif 0 < status < 128 and not child.started and not self._ready:
            self._stop(status)
        else:
            delay = child.replace()
            self._log.warning(
                "process ended, starting another",
                pid=pid,
                place=child.place,
                status=status,
                seconds=round(delay, 1),
            )

    def _stop(self, status: int) -> None:
        self._status = status
        for child in self._children:
            child.signal(signal.SIGTERM)

    def _kill(self) -> None:
        for child in self._children:
            if child.process is not None and child.process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(child.process.pid, signal.SIGKILL)
