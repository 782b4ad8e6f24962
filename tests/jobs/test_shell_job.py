"""ShellJob: commands that run, fail, take too long, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pgscheduler import (
    InvalidTypeError,
    InvalidValueError,
    JobConfig,
    JobState,
    Outcome,
    Scheduler,
    SchedulerConfig,
    _node,
)
from pgscheduler.jobs import ShellError, ShellJob, ShellParameters
from pgscheduler.jobs import shell as shell_module

BEGIN = 3  # seconds in which a command has begun, also on a busy machine


class Silent:
    def debug(self, event: str, **fields: object) -> None:
        pass

    info = warning = error = debug


@pytest.fixture
def shell() -> ShellJob:
    return ShellJob(enabled=True)


def alive(pid: int) -> bool:
    """Does the process still run? One that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        if sys.platform == "linux":
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return state != "Z"


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def sleepers(file: Path, *, stubborn: bool = False) -> str:
    """A line that starts a child and a grandchild, notes all pids in `file`, and sleeps."""
    trap = "trap '' TERM; " if stubborn else ""
    target = shlex.quote(str(file))
    return f"{trap}sleep 300 & a=$!; (sleep 300 & echo $! $$ $a > {target}.new; mv {target}.new {target}; wait); wait"


# --- success and failure -----------------------------------------------------------------------------


def test_success(shell: ShellJob, run: Any) -> None:
    """Exit code 0 completes the run; the result has what was written, on both outputs, and the time it took."""
    result = run(shell, shell="echo out; echo err >&2; sleep 0.1")
    assert result.pop("seconds") >= 0.1
    assert result == {"exit_code": 0, "output": "out\nerr\n", "bytes": 8}


def test_failure(shell: ShellJob, run: Any) -> None:
    """Another exit code fails the attempt; the text names it and ends with the output."""
    with pytest.raises(ShellError) as caught:
        run(shell, shell="echo no disk; exit 3")
    assert caught.value.exit_code == 3
    assert str(caught.value) == "Command exited with failure (exit code 3); its output ends with:\nno disk\n"


def test_signal(shell: ShellJob, run: Any) -> None:
    """A command that a signal ends has failed, and the text names the signal."""
    with pytest.raises(ShellError, match=r"^Command exited with failure \(signal 9\)$") as caught:
        run(shell, shell="kill -9 $$")
    assert caught.value.exit_code == -9


def test_no_such_program(shell: ShellJob, run: Any) -> None:
    """A program that does not exist fails the attempt."""
    with pytest.raises(ShellError, match="could not be started: No such file") as caught:
        run(shell, command=["/no/such/program"])
    assert caught.value.exit_code is None


def test_a_list_means_nothing_to_a_shell(shell: ShellJob, run: Any) -> None:
    """A list is a program and its arguments, whatever characters they hold."""
    hostile = "$(id); `id` && id | id > x * ~ '\" \n"
    assert run(shell, command=["printf", "%s", hostile])["output"] == hostile


def test_output_is_bounded(shell: ShellJob, run: Any) -> None:
    """Of much output the last 4000 bytes are kept, and all of it is counted."""
    result = run(shell, shell="yes 0123456 | head -c 3000000; echo the end")
    assert result["bytes"] == 3_000_008
    assert len(result["output"]) == 4000
    assert result["output"].endswith("\nthe end\n")


def test_any_output_can_be_recorded(shell: ShellJob, run: Any) -> None:
    """Bytes that are not text are recorded as text that fits JSON."""
    assert run(shell, shell=r"printf 'a\000\377'")["output"] == "a\\x00\ufffd"


def test_input_is_empty(shell: ShellJob, run: Any) -> None:
    """A command that reads finds the end of its input at once."""
    assert run(shell, command=["cat"])["bytes"] == 0


def test_environment(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command sees a few harmless variables and those that its node gives it, not the node's secrets."""
    monkeypatch.setenv("PGSCHEDULER_DSN", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    job = ShellJob(enabled=True, environment={"OWN": "mine"}, directory=tmp_path)

    output = run(job, command=["env"])["output"].splitlines()

    assert {"OWN=mine", "TZ=Europe/Berlin"} <= set(output)
    assert {line.partition("=")[0] for line in output} <= {*shell_module.INHERITED, "OWN"}
    assert run(job, command=["pwd"])["output"].strip() == str(tmp_path.resolve())


# --- time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stubborn", [False, True])
def test_timeout_ends_the_whole_group(
    shell: ShellJob,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Any,
    stubborn: bool,
) -> None:
    """A timeout ends the command and all that it started, also what ignores SIGTERM."""
    monkeypatch.setattr(shell_module, "GRACE", 0.3 if stubborn else 60.0)
    file = tmp_path / "pids"
    with pytest.raises(ShellError, match=r"^Timeout after 3 s, killed; its output ends with:\nbegun\n"):
        run(shell, shell=f"echo begun; {sleepers(file, stubborn=stubborn)}", timeout=BEGIN)
    assert len(pids(file)) == 3
    eventually(lambda: not any(alive(pid) for pid in pids(file)), timeout=30, describe="all are gone")


ESCAPES = {
    "a group of its own": "timeout 500 {child}",
    "a job of a shell": "bash -c 'set -m; {child} & wait'",
    "a session of its own": "setsid {child}",
    "a session in a session": "setsid sh -c 'setsid {child} & wait'",
}


@pytest.mark.parametrize("asked", ["politely", "at once"])
@pytest.mark.parametrize("line", ESCAPES.values(), ids=ESCAPES)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the group is known")
def test_timeout_ends_what_left_the_group(
    shell: ShellJob,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Any,
    line: str,
    asked: str,
) -> None:
    """A timeout ends also what made a process group or a session of its own, whether or not it heeds SIGTERM."""
    monkeypatch.setattr(shell_module, "GRACE", 60.0 if asked == "politely" else 0.0)
    trap = "" if asked == "politely" else "trap '' TERM HUP; "
    script, file = tmp_path / "child", tmp_path / "pids"
    script.write_text(
        f"#!/bin/sh\n{trap}echo $$ > {file}.new; mv {file}.new {file}; sleep 300 & wait; wait\n"
    )
    script.chmod(0o700)
    with pytest.raises(ShellError, match=r"^Timeout"):
        run(shell, shell=f"{trap}{line.format(child=script)}; true", timeout=BEGIN)
    (pid,) = pids(file)
    eventually(lambda: not alive(pid), timeout=30, describe="it is gone")
    eventually(lambda: not named(str(script)), timeout=30, describe="and so are its kin")


def named(text: str) -> list[str]:
    """The command lines that hold a text, of all processes."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(place.read_bytes().decode("utf-8", "replace"))
    return [line for line in found if text in line]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the group is known")
def test_what_was_asked_to_end_is_remembered(
    shell: ShellJob, run: Any, tmp_path: Path, eventually: Any
) -> None:
    """What ignores SIGTERM in a session of its own is killed, although its parent has heeded SIGTERM before."""
    file = shlex.quote(str(tmp_path / "pid"))
    child = f"trap '' TERM HUP; echo $$ > {file}.new; mv {file}.new {file}; while :; do sleep 1; done"
    with pytest.raises(ShellError, match=r"^Timeout"):
        run(shell, shell=f"setsid sh -c {shlex.quote(child)}; true", timeout=BEGIN)
    (pid,) = pids(tmp_path / "pid")
    eventually(lambda: not alive(pid), timeout=30)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the group is known")
def test_who_was_in_a_group_of_its_own_may_clean_up(shell: ShellJob, run: Any, tmp_path: Path) -> None:
    """It hears SIGTERM, and nothing before it, as the command does."""
    file = tmp_path / "heard"
    child = f"trap 'echo HUP >> {file}' HUP; trap 'echo TERM >> {file}; exit' TERM; sleep 300 & wait"
    line = f"trap 'wait; exit' TERM; timeout 500 sh -c {shlex.quote(child)} & wait"
    with pytest.raises(ShellError, match=r"^Timeout"):
        run(shell, shell=line, timeout=BEGIN)
    assert file.read_text().split() == ["TERM"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the group is known")
def test_what_is_left_in_another_group(shell: ShellJob, run: Any, eventually: Any) -> None:
    """What a command leaves behind in its session is killed when it ends, whatever its group."""
    result = run(shell, shell="bash -c 'set -m; sleep 300 & echo $!'")
    eventually(lambda: not alive(int(result["output"])), timeout=30)


def test_a_command_may_clean_up(shell: ShellJob, run: Any, tmp_path: Path) -> None:
    """At a timeout a command hears SIGTERM first, and has time to end by itself."""
    file = tmp_path / "cleaned"
    line = f"trap 'sleep 0.2; echo yes > {shlex.quote(str(file))}; exit 0' TERM; sleep 300 & wait"
    with pytest.raises(ShellError, match=r"^Timeout"):
        run(shell, shell=line, timeout=BEGIN)
    assert file.read_text() == "yes\n"


def test_what_is_left_in_the_background(shell: ShellJob, run: Any, tmp_path: Path, eventually: Any) -> None:
    """A run ends with its command, although a child keeps the output open; the child is killed."""
    began = time.monotonic()
    result = run(shell, shell="sleep 300 & echo $!")
    assert time.monotonic() - began < 10
    eventually(lambda: not alive(int(result["output"])), timeout=30)


def test_who_left_the_group_holds_nothing_up(
    shell: ShellJob, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A daemon that left the group and keeps the output open does not hold the run up for long."""
    monkeypatch.setattr(shell_module, "CLOSING", 0.2)
    file = shlex.quote(str(tmp_path / "pid"))
    # It says that it has left the group; before that, the command does not end.
    daemon = f"echo $$ > {file}.new; mv {file}.new {file}; exec sleep 150"
    starter = f"setsid sh -c {shlex.quote(daemon)} & while [ ! -e {file} ]; do sleep 0.05; done"
    began = time.monotonic()
    try:
        assert run(shell, shell=starter)["exit_code"] == 0
        assert time.monotonic() - began < 60
    finally:
        (pid,) = pids(tmp_path / "pid")
        assert alive(pid)  # it was there all the time
        os.kill(pid, signal.SIGKILL)


# --- through a scheduler -----------------------------------------------------------------------------


def test_timeout_of_the_job(dsn: str, tmp_path: Path, eventually: Any) -> None:
    """The job's own timeout ends the group too, and the run is recorded as timed out with its output."""
    file = tmp_path / "pids"
    shell = ShellJob(enabled=True)
    config = JobConfig.one_time("shell_job", {"shell": f"echo begun; {sleepers(file)}"}, timeout=BEGIN)
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as scheduler:
        record = scheduler.schedule(shell.with_config(config))
        scheduler.run_pending()
        (run,) = scheduler.runs(record.id)
    assert run.outcome == Outcome.TIMED_OUT
    assert "Timeout, killed; its output ends with:\nbegun" in (run.error or "")
    assert len(pids(file)) == 3
    eventually(lambda: not any(alive(pid) for pid in pids(file)), timeout=30)


def test_cancel(dsn: str, tmp_path: Path, eventually: Any) -> None:
    """A cancel ends the whole group."""
    file = tmp_path / "pids"
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as scheduler:
        scheduler.register(ShellJob(enabled=True))
        scheduler.start()
        record = scheduler.enqueue("shell_job", {"shell": sleepers(file)})
        eventually(lambda: len(pids(file)) == 3)
        scheduler.cancel(record)
        assert scheduler.wait(record, timeout=20).state == JobState.CANCELLED
    eventually(lambda: not any(alive(pid) for pid in pids(file)), timeout=30)


def test_shutdown(dsn: str, tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shutdown gives a command its time; at the deadline the group is killed and the job is due again."""
    monkeypatch.setattr(
        _node, "RELEASE_TIME", 20.0
    )  # to give it back in; it does not wait for longer than it takes
    monkeypatch.setattr(_node, "MARGIN", 20.2)
    file = tmp_path / "pids"
    scheduler = Scheduler(SchedulerConfig(dsn=dsn, logger=Silent()))
    with scheduler:
        scheduler.register(ShellJob(enabled=True))
        scheduler.start()
        record = scheduler.enqueue("shell_job", {"shell": sleepers(file, stubborn=True)})
        eventually(lambda: len(pids(file)) == 3)
        assert scheduler.shutdown(timeout=0.5)
    eventually(lambda: not any(alive(pid) for pid in pids(file)), timeout=30)
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as other:
        assert other.get_job(record).state == JobState.PENDING
        assert [run.outcome for run in other.runs(record.id)] == [Outcome.INTERRUPTED]


def test_checked_before_storing_and_before_running(dsn: str, db: Any) -> None:
    """Wrong parameters are not stored; those that came by another way fail their run."""
    shell = ShellJob(enabled=True)
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as scheduler:
        with pytest.raises(InvalidValueError, match="command must be a list of str"):
            scheduler.schedule(shell.with_config(JobConfig.one_time("shell_job", {"command": [5]})))
        with pytest.raises(InvalidValueError, match="ShellParameters"):
            scheduler.schedule(shell)
        assert scheduler.jobs() == []

        scheduler.register(shell)
        with pytest.raises(InvalidValueError, match="a line for the shell goes by its name"):
            scheduler.enqueue("shell_job", {"command": "echo hunter2"})
        ((stored,),) = db.execute(
            """select pgscheduler_enqueue('shell_job', '{"command": "echo hunter2"}')"""
        ).fetchall()
        scheduler.run_pending()
        ended = scheduler.get_job(stored)
    assert ended.state == JobState.FAILED
    assert "a line for the shell goes by its name" in (ended.last_error or "")
    assert "hunter2" not in (ended.last_error or "")


def test_not_in_a_process_of_its_own(dsn: str) -> None:
    """Isolation in a process is refused, also when a row asks for it: it could not end the command's group."""
    with pytest.raises(InvalidValueError, match=r"^isolation"):
        ShellJob(JobConfig(isolation="process"), enabled=True)
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as scheduler:
        scheduler.register(ShellJob(enabled=True))
        record = scheduler.enqueue("shell_job", {"shell": "true"}, isolation="process")
        scheduler.run_pending()
        assert "it has one already" in (scheduler.get_job(record).last_error or "")


# --- wrong arguments ---------------------------------------------------------------------------------


def test_off_by_default(dsn: str) -> None:
    """Neither the class nor an instance can be had without saying that commands may run."""
    with pytest.raises(InvalidValueError, match=r"^enabled must be True"):
        ShellJob()
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as scheduler:
        with pytest.raises(InvalidValueError, match=r"^enabled"):
            scheduler.register(ShellJob)
        scheduler.enqueue("shell_job", {"shell": "true"})
        assert scheduler.run_pending().claimed == 0


@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        ({"enabled": False}, "^enabled"),
        ({"enabled": 1}, "^enabled"),
        ({"enabled": "yes"}, "^enabled"),
        ({"environment": ["hunter2"]}, "^environment"),
        ({"environment": {"A": 5}}, "^environment"),
        ({"environment": {"A=B": "hunter2"}}, "^environment"),
        ({"environment": {"A": "hunter2\x00"}}, "^environment"),
        ({"directory": "/no/such/place"}, "^directory"),
    ],
)
def test_wrong_policy(wrong: dict[str, Any], pattern: str) -> None:
    """A wrong argument of the constructor is refused by name."""
    with pytest.raises((InvalidValueError, InvalidTypeError), match=pattern) as caught:
        ShellJob(**{"enabled": True, **wrong})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        ({}, "^command or shell must be given"),
        ({"command": ["true"], "shell": "true"}, "^command or shell must be given"),
        ({"command": "rm -rf hunter2"}, '^command must be a list.*"shell"'),
        ({"command": []}, "^command cannot be empty"),
        ({"command": [" "]}, "^command cannot be empty"),
        ({"command": ["echo", 5]}, "^command must be a list of str"),
        ({"command": {"a": 1}}, "^command must be a list of str"),
        ({"command": ["echo", "hunter2\x00"]}, "^command must not hold NUL"),
        ({"command": ["echo", "x" * 70_000]}, "^command must not be longer"),
        ({"shell": ""}, "^shell cannot be empty"),
        ({"shell": ["hunter2"]}, "^shell must be a str"),
        ({"shell": "true", "timeout": 0}, "^timeout"),
        ({"shell": "true", "timeout": float("nan")}, "^timeout"),
        ({"shell": "true", "timeout": "1"}, "^timeout"),
    ],
)
def test_wrong_parameters(wrong: dict[str, Any], pattern: str) -> None:
    """A wrong parameter is refused by name, and a command's text, which may hold a password, is not repeated."""
    with pytest.raises((InvalidValueError, InvalidTypeError), match=pattern) as caught:
        ShellParameters(**wrong)
    assert "hunter2" not in str(caught.value)
