"""Nodes as real operating-system processes, which tests can hear, tell, pause and kill.

A node is a script. It says what happens by `emit("started", job=…)`, one JSON object per line on its
standard output, and hears orders by `for order in commands(): …`. The test holds a `NodeProcess`::

    node = nodes(SCRIPT, dsn)                     # a path, a dotted module, or source text
    node.wait_for("started", name="report")       # the next such event; fails with the node's stderr
    node.pause(); node.resume(); node.kill()

Whatever happens to the test, no node is left: the fixture kills them, with their descendants, and a node
that emits ends by itself when its parent is gone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.support import ROOT

__all__ = ["NodeProcess", "commands", "emit", "hears", "spawn_node"]

Event = dict[str, Any]

# --- inside a node -----------------------------------------------------------------------------------

_PARENT = "PGSCHEDULER_TEST_PARENT"  # environment variable: the process id of the test session

_output = threading.RLock()  # re-entrant, because signal handlers emit too
_guarded = False  # whether this process watches its parent; guarded by _output


def emit(event: str, **facts: object) -> None:
    """Tell the test that something happened. From any thread; values that JSON lacks become text."""
    line = json.dumps({"event": event, "time": time.time(), **facts}, default=str)
    with _output:
        _guard()
        # One write for the whole line: processes of one node share this pipe.
        os.write(1, line.encode() + b"\n")


def commands() -> Iterator[dict[str, Any]]:
    """The objects that the test sends, until it closes the pipe or is gone."""
    for line in sys.stdin:
        yield json.loads(line)


def _guard() -> None:
    global _guarded
    # Only the node itself: whether *its* children end with it is for the code under test to see to.
    if not _guarded and os.environ.get(_PARENT) == str(os.getppid()):
        threading.Thread(target=_die_with, args=[os.getppid()], name="test-parent", daemon=True).start()
    _guarded = True


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


# --- inside the test ---------------------------------------------------------------------------------


def spawn_node(script: str | Path, *args: object, env: Mapping[str, str] | None = None) -> NodeProcess:
    """Start a node. `script` is a file, a dotted module name, or (if it has several lines) source text."""
    return NodeProcess(script, *args, env=env)


def hears(pid: int, number: int) -> bool:
    """Whether a process has a handler for this signal by now, or ignores it; before that it would just be ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return not Path("/proc").is_dir()  # elsewhere nobody can tell
    masks = [
        int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigCgt", "SigIgn"))
    ]
    return any(mask >> (number - 1) & 1 for mask in masks)


class NodeProcess:
    """A running script and everything that it said."""

    def __init__(self, script: str | Path, *args: object, env: Mapping[str, str] | None = None) -> None:
        self.events: list[Event] = []  # the reader adds; guarded by _heard
        self.returncode: int | None = None
        self._taken: set[int] = set()  # which events wait_for() has returned; only the test's thread
        self._heard = threading.Condition()
        self._ended = False  # no more events will come; guarded by _heard
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._source: tempfile.TemporaryDirectory[str] | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-u", *self._target(script), *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(env or {}),
            cwd=ROOT,
            start_new_session=True,  # so that close() can reach its descendants, and Ctrl-C does not
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"node-{self.pid}", daemon=True)
        self._reader.start()

    def __repr__(self) -> str:
        return f"<NodeProcess {self.pid}{'' if self.is_alive else f' ended with {self.returncode}'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Hearing.

    def wait_for(self, event: str, timeout: float = 30.0, **match: object) -> Event:
        """The first event of this kind, with these facts, that no earlier call returned.

        Fails at once when the node ends without it, and shows what the node said.
        """
        deadline = time.monotonic() + timeout
        with self._heard:
            while True:
                for index, found in enumerate(self.events):
                    if index not in self._taken and _matches(found, event, match):
                        self._taken.add(index)
                        return found
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    break
                self._heard.wait(left)
        reason = "the node ended" if self._ended else f"not within {timeout:g} s"
        raise AssertionError(f"no event {event!r} {match or ''}: {reason}\n{self.report()}")

    def seen(self, event: str, **match: object) -> list[Event]:
        """All such events so far, waited for or not."""
        with self._heard:
            return [found for found in self.events if _matches(found, event, match)]

    def stderr(self) -> str:
        """Everything that the node wrote to its standard error so far."""
        # pread, because the node's own position in this file must not move.
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), size, 0).decode(errors="replace")

    def report(self) -> str:
        """What a failed test wants to know of this node."""
        with self._heard:
            said = "\n".join(json.dumps(event) for event in self.events[-30:])
        return f"{self!r} said:\n{said or '(nothing)'}\nstderr:\n{self.stderr()[-4000:] or '(nothing)'}"

    # Telling.

    def send(self, order: Mapping[str, object]) -> None:
        """One order, which the node receives from `commands()`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def hang_up(self) -> None:
        """Close its input: `commands()` ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def signal(self, number: int) -> None:
        """Send any signal; no error if the node is gone."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM: please end."""
        self.signal(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL this one process, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def pause(self) -> None:
        """SIGSTOP: it stands still, wherever it is, until `resume()`."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    # Ending.

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended; a paused node is alive."""
        self.returncode = self._process.poll()
        return self.returncode is None

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit status (negative: the signal that ended it); fails when it does not end."""
        try:
            self.returncode = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s\n{self.report()}") from None
        # What it said last is in `events` when this returns (unless a descendant holds its output open).
        self._reader.join(0.5)
        return self.returncode

    def close(self) -> None:
        """Kill it and all its descendants, and free everything. Idempotent."""
        if self._errors.closed:
            return
        with suppress(ProcessLookupError):
            # The group of its descendants keeps its id also after it has died itself.
            os.killpg(self.pid, signal.SIGKILL)
        self.returncode = self._process.wait(30)
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):  # by an order that nobody will read
                stream.close()
        self._errors.close()
        if self._source is not None:
            self._source.cleanup()

    def _target(self, script: str | Path) -> list[str]:
        if isinstance(script, Path):
            return [str(script)]
        if "\n" in script:
            # A file, not `-c`: the processes that a node spawns must be able to import it.
            self._source = tempfile.TemporaryDirectory(prefix="pgscheduler-node-")
            file = Path(self._source.name, "node.py")
            file.write_text(textwrap.dedent(script))
            return [str(file)]
        return [script] if script.endswith(".py") else ["-m", script]

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._hear(_parse(line))
        finally:
            with self._heard:
                self._ended = True
                self._heard.notify_all()

    def _hear(self, event: Event) -> None:
        with self._heard:
            self.events.append(event)
            self._heard.notify_all()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, _PARENT: str(os.getpid()), **extra}


def _parse(line: bytes) -> Event:
    """An event; whatever else was printed becomes the event `output`."""
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict) and "event" in event:
        return event
    return {"event": "output", "text": line.decode(errors="replace").rstrip("\n")}


def _matches(found: Event, event: str, match: Mapping[str, object]) -> bool:
    return found["event"] == event and all(found.get(name, ...) == value for name, value in match.items())
