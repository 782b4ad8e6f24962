"""Every file in examples/ runs, ends by itself, and prints what it promises."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from tests.support import ROOT

FOLDER = ROOT / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("[!_]*.py"))

#: Lines, or parts of lines, that an example must print. An example without an entry fails its test.
PRINTS = {
    "async_job.py": [
        "fetched https://example.org/0",
        "20 fetches at the same time: True",
        "too_slow cleans up",
        "too_slow ended as timed_out",
    ],
    "changing_jobs.py": [
        "refused: job 'invoice' with key '2027-001' exists already",
        "the second's place: 2",
        "and now: 1 of 2",
        "invoice 2027-002 goes to Bob, 2nd floor\ninvoice 2027-001 goes to Ada\n",
        "nightly comes at 05:00 with {'retries': 5, 'timeout': 60.0}",
        "failed: 3",
        "completed: 5",
    ],
    "custom_schedule.py": [
        "Friday 30 January 2026, 17:00 UTC",
        "Tuesday 31 March 2026, 16:00 UTC",  # by then on summer time
        "its result: paid",
        "next time as before: True",
    ],
    "enqueue_from_sql.py": ["from psql: hello Jo", "from the trigger: hello Ada (user-2)", "runs: 3"],
    "exactly_once.py": ["the job: completed at attempt 2", "alice has 90", "bob has 110"],
    "from_bildad.py": [
        "refused: job 'greet' with key 'run-1' exists already",
        "refused: parameters do not fit their schema",
        "waiting: 3 - place: 2",
        "hello no. 1\nPassSummary(claimed=1, completed=1, failed=0, reset=0)\nhello no. 5\nhello no. 9\n",
        "{'start': {'ok_count': 2, 'error_count': 0}, 'expire': {'ok_count': 0, 'error_count': 0}}",
        "attempts: [(1, 'failed'), (2, 'failed'), (3, 'completed')]",
        "stop: requested\nStop: cancelled, cancelled\nSlow: timed_out, timeout\nLate: failed, expired\n",
        "runs: {'good': 4, 'all': 9}",
    ],
    "from_cron_service.py": [
        "Job scheduled successfully. {'name': 'Each second', 'cron_expression': '* * * * * *', 'is_active': True}",
        "409 Job with name 'Daily' already exists.",
        "400 Missing required fields: name, cron_expression, and task_payload.",
        "400 Invalid cron_expression format.",
        "[('Each second', True), ('Daily', False)]",
        "400 jobId must be a valid integer. - 404 Job with ID 999 not found.",
        'SUCCESS 200 thanks for {"a":1} from /hook?q=2',
        "Job ID N and all its execution history deleted successfully.",
        "400 Invalid job ID provided.",
    ],
    "from_go_pg_scheduler.py": [
        "mail: completed at attempt 2: told Ada about tea",
        "cleanup: completed, found 2, was due at a whole second: True",
        "all jobs completed gracefully: True",
    ],
    "from_kronii.py": [
        "started: ['shell_job']",
        "jobs: 10, the last of them comes on 01 January at 00:00:00",
        "every_two_seconds: completed, tick",
        "always_fails: failed, Command exited with failure (exit code 3)",
        "too_slow: timed_out, Timeout, killed",
        "figures: scheduler_jobs_failed, scheduler_jobs_running, scheduler_jobs_success, scheduler_jobs_total",
        "each attempt counts once: True",
        "exit code: 0",
    ],
    "from_laki.py": [
        "average is pending, next at 09:00, {'team': 'ops'}",
        "average: completed, result 3.0",
        "hostile: failed, result None module 'os' is not allowed",
        "disabled: paused\nenabled: pending\nupdated: next on a Monday at 06:30\n",
        "executions, newest first: [2, 3.0]",
        "listed: ['average', 'hostile']",
        "gone: job not found: ('call_job', 'average')",
        "executions left: 0",
    ],
    "graceful_shutdown_in_a_container.py": [
        "exit code after SIGTERM: 0",
        "short: completed: finished although asked to stop (shutdown)",
        "long: interrupted: shutdown",
        "long is pending again, at attempt 1",
    ],
    "http_job.py": [
        '201 got {"book":1} from ***',
        'API Call execution FAILED. Status: 404, Data: got {"book":1} from ***...',
        "refused: blocked: host '169.254.169.254' has the address 169.254.169.254, which is not public",
    ],
    "job_templates.py": [
        "its result: sales report of 2027-01",
        "refused: parameters do not fit their schema",
        "offered now: []",
        "its runs: 1",
    ],
    "many_nodes.py": [
        "jobs that ran: ['a', 'b', 'c', 'd', 'e']",
        "the most runs of one occurrence: 1",
        "exit codes: [0, 0, 0]",
    ],
    "metrics_endpoint.py": [
        "text/plain; version=0.0.4; charset=utf-8",
        'job_executions_total{job_name="thumbnail"} 6.0',
        'job_failures_total{job_name="thumbnail"} 3.0',
        'job_duration_seconds_count{job_name="thumbnail"} 6.0',
        'pgscheduler_jobs{job_name="thumbnail",state="pending"} 1.0',
    ],
    "one_time_with_parameters.py": [
        "its result: {'sent_to': 42}",
        "its result: {'sent_to': 43}",
        "pending: user-44 with {'vip': True, 'user_id': 44}",
        "cancelling it: cancelled",
    ],
    "plain_function.py": [
        "resized to 640 x 480",
        "TypeError: resize() got an unexpected keyword argument 'depth'",
        "cleanup comes at 03:00",
    ],
    "process_job_with_hard_timeout.py": [
        "crunch: completed in a process of its own: True",
        "endless: failed, its run timed_out",
    ],
    "progress_and_cancel.py": [
        "while it runs: running with ['done', 'message', 'total']",
        "cancel: requested",
        "the job was told: cancelled",
        "in the end: cancelled - got anywhere: True",
        "its log: info page read {'page': 0}",
    ],
    "recurring.py": [
        "heartbeat 1 was due at",
        "heartbeat 3 was due at",
        ".000000",
        "the next report is due on a",
    ],
    "rest_api.py": [
        "with the wrong one: This token may only read.",
        "201 Job scheduled successfully.",
        "409 duplicate_job",
        "SUCCESS sent to Ada",
        "ready: {'status': 'ready', 'reasons': []}",
    ],
    "retries_and_backoff.py": [
        "flaky ended as completed",
        "attempt 2: failed: ConnectionError: no answer at attempt 2",
        "attempt 3: completed: worked",
        "decides ended as failed",
        "attempt 1: interrupted: the partner is down for maintenance",
        "attempt 1: failed: the account was closed",
    ],
    "run_pending.py": [
        "stored: 3",
        "tidied the kitchen",
        "PassSummary(claimed=2, completed=1, failed=1, reset=0)",
        "PassSummary(claimed=0, completed=0, failed=0, reset=0)",
        "still to come: ['garden']",
    ],
    "shell_job.py": [
        "not by default: enabled must be True",
        "0 $GREETING; *",
        "0 HELLO",
        "Command exited with failure (exit code 3); its output ends with:; no disk",
        "the slow one: timed_out",
    ],
    "transactional_sqlalchemy.py": ["the committed one: completed", "orders: ['a book']", "runs: 1"],
    "typed_parameters.py": [
        "Ada owes 19.99 EUR",
        "refused: do not fit Invoice: cents must be positive",
        "unexpected keyword argument 'price'",
    ],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, direct_empty_dsn: str) -> None:
    """An example ends by itself with exit code 0, prints what it is about, and complains about nothing.

    From its own folder as from the project's, and a second time on the same server.
    """
    environment = {
        **os.environ,
        "PGSCHEDULER_DSN": direct_empty_dsn,
        "PYTHONWARNINGS": "error::ResourceWarning",
    }
    for folder in (FOLDER, ROOT):
        path = str((FOLDER / name).relative_to(folder))
        try:
            done = subprocess.run(
                [sys.executable, path],
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=80,
            )
        except subprocess.TimeoutExpired as late:
            pytest.fail(f"it does not end; it has said: {late.stdout!r} and {late.stderr!r}")
        said = f"\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        assert [line for line in PRINTS[name] if line not in done.stdout] == [], said
        assert done.stderr == "", said


def test_nothing_is_expected_of_a_missing_example() -> None:
    """The table above names the files of the folder, no more and no less."""
    assert sorted(PRINTS) == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_explains_itself(name: str) -> None:
    """An example opens with a docstring, guards its start for spawned processes, and fits on a page or two."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert 'if __name__ == "__main__":' in text
    assert len(text.splitlines()) <= 90


def test_example_brings_its_own_server() -> None:
    """Without PGSCHEDULER_DSN an example starts a PostgreSQL of its own, and needs no set-up."""
    environment = {name: value for name, value in os.environ.items() if name != "PGSCHEDULER_DSN"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run_pending.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "stored: 3" in done.stdout
