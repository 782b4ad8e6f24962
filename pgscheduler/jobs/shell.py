"""A command of the operating system. Whoever may write a job may then run anything as the node's user."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pgscheduler import _check as check
from pgscheduler._json import clean_text
from pgscheduler.clock import monotonic
from pgscheduler.errors import InvalidTypeError, InvalidValueError, PgSchedulerError
from pgscheduler.job import JobConfig

from ._kind import KindOfJob

if TYPE_CHECKING:
    from pgscheduler._context import RunContext

__all__ = ["ShellError", "ShellJob", "ShellParameters"]

TAIL = 4000  # bytes of output that are kept: where a command says why it ended
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
CLOSING = 1.0  # seconds for the output's end, when somebody who was not found still holds it
MAX_COMMAND = 64 * 1024  # characters; Linux takes 128 KiB for one argument
#: What a command sees of the node's own environment. Not all: the database's password is there.
INHERITED = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")


class ShellError(PgSchedulerError, RuntimeError):
    """A command failed. `exit_code` is negative for a signal; None if it was not started, or killed by this job."""

    plain = True

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        self.exit_code = exit_code
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class ShellParameters:
    """Exactly one of `command` and `shell`; `timeout` is in seconds, and beside the job's own.

    `command` is a program and its arguments, as a list: nothing in it has a meaning to a shell. `shell` is a
    line that `/bin/sh -c` interprets, with all that follows from it.
    """

    command: list[str] | None = None
    shell: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.command, str):
            rule = 'must be a list, program and arguments; a line for the shell goes by its name: "shell"'
            raise InvalidTypeError("command", type(self.command), rule)  # its text may hold a password
        if not isinstance(self.command, list | None) or not all(
            isinstance(a, str) for a in self.command or ()
        ):
            raise InvalidTypeError("command", type(self.command), "must be a list of str")
        if not isinstance(self.shell, str | None):
            raise InvalidTypeError("shell", type(self.shell), "must be a str")
        if (self.command is None) == (self.shell is None):
            raise InvalidValueError("command", "both or none", "or shell must be given, exactly one of them")
        name, first = ("command", self.argv[0]) if self.shell is None else ("shell", self.shell)
        if not first.strip():
            raise InvalidValueError(name, first, "cannot be empty")
        for text in self.argv:
            if "\x00" in text:
                raise InvalidValueError(name, "…", "must not hold NUL")
        if sum(map(len, self.argv)) > MAX_COMMAND:
            raise InvalidValueError(name, "…", f"must not be longer than {MAX_COMMAND} characters")
        if self.timeout is not None:
            object.__setattr__(self, "timeout", check.duration("timeout", self.timeout).total_seconds())

    @property
    def argv(self) -> list[str]:
        """What is executed."""
        return ["/bin/sh", "-c", self.shell] if self.shell is not None else (self.command or [""])


class ShellJob(KindOfJob):
    """Runs a command and waits for it. Exit code 0 is success; anything else fails the attempt.

    The result is `{"exit_code": 0, "output": …, "bytes": …, "seconds": …}`; `output` holds the last 4000 bytes of
    what it wrote to standard output and error. A failure's error text ends with the same. Its input is empty.

    The command leads a session. A timeout, a cancel or the shutdown's deadline ends the command with all that it
    started, also what made a group or a session of its own: SIGTERM, and SIGKILL five seconds later; at once if the
    claim was lost or the node must go. What the command leaves behind in its session is killed when it ends. Not
    found is what left the session and whose parent has ended before, as a daemon's has; nor anything outside the
    command's group where there is no `/proc` (macOS). A node that is itself killed ends nothing.

    `enabled` must be True: InvalidValueError otherwise, so that no node runs commands because of a forgotten
    line. `environment` is added to the few variables that a command inherits (PATH, HOME, the locale, the time
    zone…); `directory` is where it runs, the node's own by default.
    """

    parameters = ShellParameters
    own_name = "shell_job"

    def __init__(
        self,
        config: JobConfig | None = None,
        *,
        enabled: bool = False,
        environment: Mapping[str, str] | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        if check.boolean("enabled", enabled) is not True:
            raise InvalidValueError(
                "enabled", enabled, "must be True: whoever may write a job may then run commands"
            )
        environment = {} if environment is None else environment
        if not isinstance(environment, Mapping) or not all(
            isinstance(text, str) for pair in environment.items() for text in pair
        ):
            raise InvalidTypeError("environment", type(environment), "must map str to str")
        for name, value in environment.items():
            if not name or "=" in name or "\x00" in name + value:
                raise InvalidValueError(
                    "environment", name, "must hold names without = and texts without NUL"
                )
        if directory is not None and not os.path.isdir(directory):
            raise InvalidValueError("directory", directory, "must be a directory that exists")
        self._environment = dict(environment)
        self._directory = directory
        super().__init__(config)

    def _adopt(self, config: JobConfig) -> None:
        if config.isolation == "process":
            raise InvalidValueError(
                "isolation", "process", "is not for a command: it has a process of its own"
            )
        super()._adopt(config)

    def check(self, parameters: ShellParameters) -> None:
        """All that can be said of them, they say themselves."""

    async def run(self, ctx: RunContext) -> dict[str, Any]:
        asked: ShellParameters = ctx.parameters
        if multiprocessing.parent_process() is not None:
            raise ShellError("a command does not run in a job's own process: it has one already")
        begun = monotonic()
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        command = _Command(asked.argv, {**inherited, **self._environment}, self._directory)
        try:
            async with asyncio.timeout(asked.timeout):
                await command.listen()
                await command.exited()
        except TimeoutError:
            await command.end(GRACE)
            raise ShellError(f"Timeout after {asked.timeout:g} s, killed{command.said()}") from None
        except asyncio.CancelledError:
            # Who lost its claim, or must go now, has no time to be polite.
            await command.end(GRACE if ctx.cancel_reason in ("timeout", "cancelled") else 0.0)
            if ctx.cancel_reason == "timeout":
                raise ShellError(f"Timeout, killed{command.said()}") from None
            raise
        code = await command.end(0.0)
        if code != 0:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ShellError(f"Command exited with failure ({how}){command.said()}", code)
        seconds = round(monotonic() - begun, 3)
        return {"exit_code": code, "output": command.output(), "bytes": command.size, "seconds": seconds}


class _Process(NamedTuple):
    """One that runs, as `/proc` tells it."""

    started: int  # ticks since the machine's boot; with the pid it is one process for ever
    pid: int
    parent: int
    session: int


def _processes() -> list[_Process]:
    """All on this machine that have not ended, parents before their children. None where there is no `/proc`."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            # It may have ended by now.
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb", 0) as file:
                # After its own name, in parentheses, which may hold anything.
                state, *fields = file.read().rpartition(b")")[2].split()
                if state not in (b"Z", b"X"):
                    found.append(_Process(int(fields[18]), int(name), int(fields[0]), int(fields[2])))
    return sorted(found)


class _Command:
    """A command with all that it starts, and the end of what it has written.

    Not asyncio's own subprocess: its wait() also waits for the output's end, which a forgotten child in the
    background can keep open for ever.
    """

    def __init__(
        self, argv: list[str], environment: Mapping[str, str], directory: str | os.PathLike[str] | None
    ) -> None:
        self.size = 0  # bytes written so far
        self._kept = b""
        #: Pid and start of all that were ever found to come from it.
        self._family: set[tuple[int, int]] = set()
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[None] = self._loop.create_future()
        self._reading: asyncio.Future[None] | None = None
        self._pipe: asyncio.ReadTransport | None = None
        try:
            self._process = subprocess.Popen(  # noqa: S603 - running what it is given is this job's purpose
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or error
            raise ShellError(f"the command could not be started: {text}") from None
        threading.Thread(target=self._watch, daemon=True, name="pgscheduler-command").start()

    async def listen(self) -> None:
        """Begin to read what it writes."""
        reader = asyncio.StreamReader()
        self._pipe, _ = await self._loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        self._reading = asyncio.ensure_future(self._read(reader))

    async def exited(self) -> None:
        """Wait for the command itself, whatever becomes of its children."""
        await asyncio.shield(self._exited)

    async def end(self, grace: float) -> int:
        """End all of it: asked first, killed after `grace` seconds. Returns the command's exit code."""
        if grace and not self._exited.done():
            self._kill(signal.SIGTERM)
            # Told to stop once more while we wait: no more patience.
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self.exited(), grace)
        self._kill(signal.SIGKILL)
        while not self._exited.done():
            with contextlib.suppress(asyncio.CancelledError):
                await self.exited()
        code = self._process.wait()  # at once: it has exited
        if self._reading is not None:
            # Somebody who was not found may hold the other end of the pipe for ever.
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._reading, CLOSING)
        if self._pipe is not None:
            self._pipe.close()
        elif self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def output(self) -> str:
        return clean_text(self._kept.decode("utf-8", "replace"))

    def said(self) -> str:
        """The output for an error text: nothing, or lines of its own."""
        return f"; its output ends with:\n{self.output()}" if self._kept else ""

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(65536):
            self.size += len(chunk)
            self._kept = (self._kept + chunk)[-TAIL:]

    def _watch(self) -> None:
        if sys.platform == "linux":
            # Not reaped yet: its number stays taken, so that a late signal cannot hit a stranger's session.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever waited
            self._loop.call_soon_threadsafe(self._exited.set_result, None)

    def _kill(self, number: signal.Signals) -> None:
        held = self._hold()
        for process in held:
            _send(process.pid, number)
        # Children first: who goes on as the last of a stopped group hears SIGHUP before what was sent.
        for process in reversed(held):
            _send(process.pid, signal.SIGCONT)
        if not held:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _hold(self) -> list[_Process]:
        """What comes from the command, stopped, so that nothing can escape between being found and being ended.

        What was found before still counts: whoever ignores SIGTERM may have lost the parent by which it was found.
        """
        stopped: set[int] = set()
        while True:
            pids, sessions, found = {self._process.pid}, {self._process.pid}, []
            for process in _processes():
                known = (process.pid, process.started) in self._family
                if known or process.parent in pids or process.session in sessions:
                    pids.add(process.pid)
                    sessions.add(process.session)
                    found.append(process)
            if stopped.issuperset(process.pid for process in found):
                return found
            for process in found:
                self._family.add((process.pid, process.started))
                if process.pid not in stopped:
                    _send(process.pid, signal.SIGSTOP)
                    stopped.add(process.pid)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
