"""The demo: it keeps its word, leaves nothing behind, and would notice if something were wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog

from pgscheduler import JobConfig, Scheduler, SchedulerConfig
from pgscheduler.demo import plot
from pgscheduler.demo.files import Delivery, UnfinishedFileError, digest, generate, result_is_right
from pgscheduler.demo.jobs import LEDGER, CountResults, DigestSales
from pgscheduler.demo.show import Silent
from tests.support import ROOT, eventually
from tests.support.postgres import execute

COMMAND = [sys.executable, "-m", "pgscheduler", "demo"]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """The temporary directory of the demo alone; short, and open to the server's user."""
    with tempfile.TemporaryDirectory(prefix="d") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def start(scratch: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def processes(scratch: Path) -> list[str]:
    """Command lines of living processes that mention the demo's directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(scratch) in line:
            found.append(line)
    return found


def assert_gone(scratch: Path) -> None:
    eventually(lambda: not processes(scratch), timeout=20, describe="all processes have ended")
    eventually(lambda: not list(scratch.iterdir()), timeout=20, describe="all files are removed")


@pytest.mark.slow
def test_the_demo_loses_and_doubles_nothing(scratch: Path) -> None:
    """A hundred jobs survive a kill -9: the summary is read back from the history, and nothing is left."""
    process = start(scratch, "--json")
    out, errors = process.communicate(timeout=150)

    assert errors == ""
    found = json.loads(out)
    assert process.returncode == 0, found
    assert (found["ok"], found["scheduled"], found["completed"]) == (True, 100, 100)
    assert (found["lost"], found["doubled"], found["wrong_results"]) == (0, 0, 0)
    assert found["taken_over"] >= 1
    assert found["retried"] >= 6
    assert found["ledger_cents"] == found["expected_cents"] > 0
    assert (found["recurring"]["missing"], found["recurring"]["doubled"]) == (0, 0)
    assert found["recurring"]["completed"] >= 1
    victim = found["killed"]["node"]
    assert found["exits"][victim] == -signal.SIGKILL
    assert [status for label, status in found["exits"].items() if label != victim] == [0]
    assert_gone(scratch)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_cleans_up(scratch: Path, number: signal.Signals) -> None:
    """After Ctrl-C or SIGTERM nothing is left; after SIGKILL at least no process is."""
    process = start(scratch)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                if "completed" in line:  # it is in the middle of it
                    break
            assert processes(scratch)
            process.send_signal(number)
            process.stdout.read()
            errors = process.stderr.read()
            status = process.wait(60)
        finally:
            process.kill()
    if number is signal.SIGKILL:
        eventually(lambda: not processes(scratch), timeout=30, describe="all processes have ended")
        return
    assert status == 130
    assert errors == "pgscheduler: error: interrupted\n"
    assert_gone(scratch)


@pytest.mark.slow
def test_a_kept_demo_can_be_looked_at_and_removed(scratch: Path) -> None:
    """--keep leaves the database for the other commands; killing the process that it names removes everything."""
    process = start(scratch, "--keep", "--json")
    out, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    kept = json.loads(out)["kept"]
    try:
        with psycopg.connect(kept["dsn"]) as connection:
            row = connection.execute(
                "select count(*) from pgscheduler_runs where name = 'digest_sales' and outcome = 'completed'"
            ).fetchone()
        assert row == (100,)
        assert Path(kept["files"], "summary.json").exists()
    finally:
        os.kill(kept["pid"], signal.SIGTERM)
    assert_gone(scratch)


# --- would it notice? ----------------------------------------------------------------------------------

FILES = 3


class Rehearsal:
    """Three files, digested here and now, and a demo that has only to reckon."""

    def __init__(self, dsn: str, folder: Path, scheduler: Scheduler) -> None:
        self.dsn = dsn
        self.folder = folder
        self.demo = plot._Play(ExitStack(), Silent(), keep=False)
        self.demo._folder, self.demo._dsn, self.demo._scheduler = folder, dsn, scheduler
        self.demo._deliveries = self.deliveries = generate(folder / "inbox", FILES, 0, seed=1)
        execute(dsn, LEDGER)
        scheduler.schedule(CountResults(folder))
        for name in self.deliveries:
            config = JobConfig.one_time("digest_sales", {"file": name, "pause": 0}, key=name)
            scheduler.schedule(DigestSales(folder, config))
        scheduler.trigger("count_results")
        self.scheduled = self.demo._stored_jobs()
        assert scheduler.run_pending(10).completed == FILES + 1
        # A run that was under way as its next second came has a second line, for the one that it overlapped.
        execute(dsn, "delete from pgscheduler_runs where outcome = 'skipped'")

    def reckon(self, killed: dict[str, Any]) -> dict[str, Any]:
        return self.demo._reckon(self.scheduled, killed, {"A": -9, "B": 0})

    def take_over(self) -> dict[str, Any]:
        """Write history in which another node had stalled with the first job."""
        victim = "00000000-0000-0000-0000-00000000000a"
        execute(
            self.dsn,
            "insert into pgscheduler_runs (job_id, token, scheduled_at, started_at, finished_at, node_id, attempt,"
            " outcome, name, key) select job_id, 1, scheduled_at, started_at, finished_at, %s, 1, 'stalled', name,"
            " key from pgscheduler_runs where name = 'digest_sales' limit 1",
            [victim],
        )
        self.demo._labels = {victim: "A"}
        return {"node": "A", "at": "2026-01-01T00:00:00+00:00", "running": [min(self.scheduled)]}


@pytest.fixture
def rehearsal(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsal]:
    monkeypatch.setattr(plot, "JOBS", FILES)
    silent = structlog.make_filtering_bound_logger("critical")
    log = structlog.wrap_logger(structlog.PrintLogger(io.StringIO()), wrapper_class=silent)
    with Scheduler(SchedulerConfig(dsn=dsn, logger=log)) as scheduler:
        yield Rehearsal(dsn, tmp_path, scheduler)


def test_a_good_history_is_good(rehearsal: Rehearsal) -> None:
    """With a job taken over and everything in place, the reckoning is content."""
    found = rehearsal.reckon(rehearsal.take_over())

    assert (found["ok"], found["completed"], found["lost"], found["doubled"], found["taken_over"]) == (
        True,
        3,
        0,
        0,
        1,
    )


def test_no_take_over_is_not_ok(rehearsal: Rehearsal) -> None:
    """A kill that took nothing over proves nothing."""
    found = rehearsal.reckon({"node": "A", "at": "2026-01-01T00:00:00+00:00", "running": []})

    assert (found["ok"], found["taken_over"], found["lost"], found["doubled"]) == (False, 0, 0, 0)


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        ("insert into demo_ledger select * from demo_ledger limit 1", "doubled"),
        (
            """insert into pgscheduler_runs select * from pgscheduler_runs
               where name = 'digest_sales' and outcome = 'completed' limit 1""",
            "doubled",
        ),
        (
            "insert into pgscheduler_runs select * from pgscheduler_runs where name = 'count_results' limit 1",
            "doubled",
        ),
        ("delete from demo_ledger where file = 'branch-001.csv'", "lost"),
        ("delete from pgscheduler_runs where key = 'branch-002.csv' and outcome = 'completed'", "lost"),
        ("update demo_ledger set cents = cents + 1 where file = 'branch-003.csv'", "wrong_results"),
    ],
)
def test_what_is_wrong_in_the_database_is_found(rehearsal: Rehearsal, damage: str, field: str) -> None:
    """A lost job, a doubled one, and a wrong entry are each counted, and fail the demo."""
    killed = rehearsal.take_over()
    execute(rehearsal.dsn, damage)

    found = rehearsal.reckon(killed)
    assert found[field] == 1
    assert not found["ok"]


def test_a_missing_occurrence_is_found(rehearsal: Rehearsal) -> None:
    """An occurrence between two others that left no record is missing."""
    killed = rehearsal.take_over()
    execute(
        rehearsal.dsn,
        "update pgscheduler_runs set scheduled_at = date_bin('2 s', scheduled_at, '2000-01-01Z') where name = 'count_results'",
    )
    assert rehearsal.reckon(killed)["recurring"]["missing"] == 0
    execute(
        rehearsal.dsn,
        "insert into pgscheduler_runs (job_id, token, scheduled_at, started_at, finished_at, attempt, outcome, name)"
        " select job_id, 2, scheduled_at + interval '4 s', finished_at, finished_at, 1, 'completed', name"
        " from pgscheduler_runs where name = 'count_results'",
    )

    found = rehearsal.reckon(killed)
    assert found["recurring"]["missing"] == 1
    assert not found["ok"]


@pytest.mark.parametrize("suffix", ["json", "gz"])
def test_a_wrong_result_is_found(rehearsal: Rehearsal, suffix: str) -> None:
    """A result file that is not what must come of its input is counted, and fails the demo."""
    killed = rehearsal.take_over()
    results = rehearsal.folder / "results"
    (results / f"branch-001.csv.{suffix}").write_bytes((results / f"branch-002.csv.{suffix}").read_bytes())

    found = rehearsal.reckon(killed)
    assert found["wrong_results"] == 1
    assert not found["ok"]


def test_a_late_file_is_refused_until_it_is_whole(tmp_path: Path) -> None:
    """Half a file is no file; when the rest has come its digest is the expected one."""
    deliveries: dict[str, Delivery] = generate(tmp_path / "inbox", 2, 1, seed=7)
    (late,) = [d for d in deliveries.values() if d.rest is not None]
    with pytest.raises(UnfinishedFileError):
        digest(late.expected.file, late.path.read_text())

    late.finish()
    assert digest(late.expected.file, late.path.read_text()) == late.expected
    assert not result_is_right(tmp_path / "results", late.expected)  # nobody has digested it yet


def test_the_heartbeat_of_the_nodes_is_legal() -> None:
    """The demo's short timeouts obey the rule that applies to everyone."""
    from pgscheduler.demo.node import HEARTBEAT, TIMEOUT

    assert timedelta(seconds=TIMEOUT) >= 3 * timedelta(seconds=HEARTBEAT)
