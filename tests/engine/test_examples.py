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
    "custom_schedule.py": [
        "Friday 30 January 2026, 17:00 UTC",
        "Tuesday 31 March 2026, 16:00 UTC",  # by then on summer time
        "its result: paid",
        "next time as before: True",
    ],
    "enqueue_from_sql.py": ["from psql: hello Jo", "from the trigger: hello Ada (user-2)", "runs: 3"],
    "exactly_once.py": ["the job: completed at attempt 2", "alice has 90", "bob has 110"],
    "graceful_shutdown_in_a_container.py": [
        "exit code after SIGTERM: 0",
        "short: completed: finished although asked to stop (shutdown)",
        "long: interrupted: shutdown",
        "long is pending again, at attempt 1",
    ],
    "many_nodes.py": [
        "jobs that ran: ['a', 'b', 'c', 'd', 'e']",
        "the most runs of one occurrence: 1",
        "exit codes: [0, 0, 0]",
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
        "PassSummary(claimed=2, completed=1, failed=1)",
        "PassSummary(claimed=0, completed=0, failed=0)",
        "still to come: ['garden']",
    ],
    "transactional_sqlalchemy.py": ["the committed one: completed", "orders: ['a book']", "runs: 1"],
    "typed_parameters.py": [
        "Ada owes 19.99 EUR",
        "refused: do not fit Invoice: cents must be positive",
        "unexpected keyword argument 'price'",
    ],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, empty_dsn: str) -> None:
    """An example ends by itself with exit code 0, prints what it is about, and complains about nothing."""
    environment = {**os.environ, "PGSCHEDULER_DSN": empty_dsn, "PYTHONWARNINGS": "error::ResourceWarning"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / name)], env=environment, capture_output=True, text=True, timeout=120
    )
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
