"""What history holds of a run that a kind of job has ended on purpose: what it has to say, and nothing of our insides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pgscheduler import Job, Scheduler
from pgscheduler.jobs import CallJob, HttpJob, ShellJob


@pytest.mark.parametrize(
    ("kind", "parameters", "text"),
    [
        (
            lambda: ShellJob(enabled=True),
            {"shell": "echo no disk; exit 3"},
            "Command exited with failure (exit code 3); its output ends with:\nno disk\n",
        ),
        (
            lambda: ShellJob(enabled=True),
            {"command": ["/no/such/program"]},
            "the command could not be started: No such file or directory",
        ),
        (
            lambda: HttpJob(allow=["127.0.0.1:1"]),
            {"url": "http://127.0.0.1:1/", "method": "GET"},
            "API Call execution FAILED. No answer from http://127.0.0.1:1/: ConnectError",
        ),
        (
            HttpJob,
            {"url": "http://127.0.0.1/", "method": "GET"},
            (
                "blocked: host '127.0.0.1' has the address 127.0.0.1, which is not public: address not allowed; "
                "HttpJob(allow=[…]) opens it"
            ),
        ),
    ],
    ids=["exit code", "no program", "no answer", "blocked"],
)
def test_only_its_text_is_recorded(
    dsn: str,
    scheduler_on: Callable[..., Scheduler],
    kind: Callable[[], Job],
    parameters: dict[str, Any],
    text: str,
) -> None:
    """No traceback and no class name: the error's text, with the command's output if there is one."""
    job = kind()
    # Stored by one that does not know the kind, which would refuse some of them before they run.
    stored = scheduler_on(dsn).enqueue(job.name, parameters)
    node = scheduler_on(dsn, register=(job,))
    node.run_pending()
    (run,) = node.runs(stored)
    assert run.error == text
    assert node.get_job(stored).last_error == text


def test_what_a_function_raises_keeps_its_traceback(dsn: str, scheduler_on: Callable[..., Scheduler]) -> None:
    """An error that is not the kind's own comes with where it happened."""
    node = scheduler_on(dsn, register=(CallJob(modules=["json"]),))
    stored = node.enqueue("call_job", {"module": "json", "function": "loads", "args": ["{"]})
    node.run_pending()
    (run,) = node.runs(stored)
    assert run.error is not None
    assert run.error.startswith("Traceback")
    assert "JSONDecodeError" in run.error
