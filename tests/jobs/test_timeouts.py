"""What a timeout gives back: the only slot of a node, and every process that a command has started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgscheduler import Job, JobConfig, Scheduler
from pgscheduler.jobs import HttpJob, ShellJob
from tests.engine.conftest import gate, scheduler_on
from tests.jobs.conftest import Web
from tests.jobs.test_shell_job import BEGIN, alive, pids, sleepers
from tests.support import eventually

__all__ = ["gate", "scheduler_on"]

FOR_EVER = 150  # seconds; a test that waits for it is ended by its own limit


@pytest.fixture
def node(dsn: str, scheduler_on: Callable[..., Scheduler]) -> Scheduler:
    """A node with one slot, which runs."""
    return scheduler_on(dsn, start=True, max_concurrent_jobs=1)


def ended(node: Scheduler, job: Job, parameters: dict[str, Any], **policies: Any) -> tuple[str, str]:
    """How the run of a job ended, and its error."""
    name = job.config.name or job.name
    config = JobConfig.one_time(name, parameters, **policies)
    record = node.schedule(job.with_config(config))  # type: ignore[attr-defined]
    node.wait(record, timeout=60)
    (run,) = node.runs(record)
    return run.outcome.value, run.error or ""


@pytest.mark.parametrize(
    ("own", "policies", "outcome", "words"),
    [
        ({"timeout": BEGIN}, {}, "failed", "No answer from"),
        ({}, {"timeout": BEGIN}, "timed_out", ""),
    ],
    ids=["of the request", "of the job"],
)
def test_a_request_without_an_answer_frees_its_slot(
    node: Scheduler,
    web: Callable[..., Web],
    own: dict[str, Any],
    policies: dict[str, Any],
    outcome: str,
    words: str,
) -> None:
    """The next request has the slot while the server still thinks about the first."""

    def answer(request: Any) -> None:
        if request.path == "/slow":
            request.server.web.closing.wait(FOR_EVER)
        request.reply(200, b"fine")

    server = web(answer)
    http = HttpJob(allow=[server.place])
    node.register(http)
    fast = {"url": server.url, "method": "GET"}
    assert ended(node, http, fast) == (
        "completed",
        "",
    )  # what is imported for the first request takes its time
    slow = {"url": f"{server.url}/slow", "method": "GET", **own}
    found, error = ended(node, http, slow, **policies)
    assert (found, words in error) == (outcome, True)
    assert ended(node, http, fast) == ("completed", "")
    assert [seen.path for seen in server.seen] == ["/", "/slow", "/"]
    assert not server.closing.is_set()  # it has not answered the first until now
    eventually(lambda: node.node_stats()["held"] == 0)


@pytest.mark.parametrize(
    ("own", "policies", "outcome"),
    [({"timeout": BEGIN}, {}, "failed"), ({}, {"timeout": BEGIN}, "timed_out")],
    ids=["of the command", "of the job"],
)
def test_a_command_that_takes_too_long_leaves_nothing(
    node: Scheduler, tmp_path: Path, own: dict[str, Any], policies: dict[str, Any], outcome: str
) -> None:
    """Neither a process of its group, nor a slot that is taken."""
    shell = ShellJob(enabled=True)
    node.register(shell)
    file = tmp_path / "pids"
    found, error = ended(node, shell, {"shell": sleepers(file), **own}, **policies)
    assert (found, "Timeout" in error) == (outcome, True)
    assert ended(node, shell, {"command": ["true"]}) == ("completed", "")
    assert len(pids(file)) == 3
    eventually(lambda: not any(alive(pid) for pid in pids(file)))
    eventually(lambda: node.node_stats()["held"] == 0)
