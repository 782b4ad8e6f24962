"""The commands that look back and change what waits: history, retry, reschedule, update; schema, completion, exit codes."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pgscheduler import Backoff, Job, JobConfig, JobState, Outcome, Retry, Scheduler
from pgscheduler.cli import main
from pgscheduler.cli._group import EXIT_CODES
from tests.support import ROOT, Terminal
from tests.support.postgres import execute

pytestmark = pytest.mark.usefixtures("commanded")


class Greet(Job):
    """Fails as long as it is told to."""

    config = JobConfig.one_time("greet")

    def run(self, ctx: Any) -> Any:
        ctx.log.info("calling", headers={"X-Key": "hunter2", "Accept": "text/html"})
        if "twice" in ctx.parameters and ctx.attempt == 1:
            raise Retry
        if ctx.parameters.get("fail"):
            raise RuntimeError("no luck")
        return {"greeted": ctx.parameters.get("who"), "headers": {"X-Key": "hunter2"}}


class Tick(Job):
    config = JobConfig.recurring("tick", "0 0 1 1 *")

    def run(self, ctx: Any) -> None:
        raise RuntimeError("no luck")


def states(scheduler: Scheduler) -> list[tuple[str, str | None, JobState]]:
    return [(job.name, job.key, job.state) for job in scheduler.jobs()]


# --- history ------------------------------------------------------------------------------------------


def test_history_is_runs(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """The same filters and pages under both names; times and nodes limit it."""
    for n in range(3):
        scheduler.enqueue("greet", {"who": n, "fail": n == 1}, key=str(n))
    scheduler.run_pending()

    everything = say("history", "--json")
    assert say("runs", "--json") == everything
    assert [run["key"] for run in everything] == ["2", "1", "0"]
    assert say("history", "--count") == "3\n"
    assert say("runs", "--outcome", "failed", "--count", "--json") == {"count": 1}
    assert [run["key"] for run in say("history", "--limit", 1, "--offset", 1, "--json")] == ["1"]
    assert [run["key"] for run in say("history", "--outcome", "failed", "--json")] == ["1"]
    assert [run["key"] for run in say("history", "greet/0", "--json")] == ["0"]
    middle = everything[1]["finished_at"]
    assert [run["key"] for run in say("history", "--since", middle, "--json")] == ["2", "1"]
    assert [run["key"] for run in say("history", "--until", middle, "--json")] == ["0"]
    assert len(say("history", "--node", scheduler.id, "--json")) == 3
    assert say("history", "--node", "0" * 32, "--json") == []


def test_what_is_due_and_what_is_searched(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """`jobs` finds those whose time has come, and those with a text in name or key."""
    now = scheduler.enqueue("greet").id
    later = scheduler.enqueue("greet", key="Invoice-7", delay=3600).id
    assert [job["id"] for job in say("jobs", "--due", "--json")] == [now]
    assert [job["id"] for job in say("jobs", "--not-due", "--json")] == [later]
    assert [job["id"] for job in say("jobs", "--search", "nvoice", "--json")] == [later]
    assert say("jobs", "--not-due", "--count") == "1\n"


def test_secrets_of_requests_are_hidden(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """Headers that may be secret are shown in no listing, of jobs, history or logs; the others are."""
    headers = {"Authorization": "Bearer hunter2", "Accept": "text/html"}
    request = {"url": "https://x.example", "headers": headers, "params": {"page": 2, "api_key": "hunter2"}}
    shown = [say("enqueue", "greet", "--params", json.dumps(request)), say("jobs"), say("jobs", "--json")]
    assert shown[2][0]["parameters"]["headers"] == {"Authorization": "***", "Accept": "text/html"}
    assert shown[2][0]["parameters"]["params"] == {"page": 2, "api_key": "***"}
    shown += [say("pause", "greet"), say("resume", "greet", "--json")]
    scheduler.run_pending()
    (run,) = say("history", "--json")
    assert run["parameters"]["headers"]["Accept"] == "text/html"
    shown += [run, say("history"), say("logs", run["id"]), say("logs", run["id"], "--json")]
    assert "text/html" in shown[-2]
    assert "hunter2" not in str(shown)
    assert scheduler.runs()[0].parameters == request  # what a job gets is another matter


def test_plans_hide_them_too(say: Callable[..., Any], tmp_path: Path) -> None:
    """What a definitions file would change is shown without them."""
    file = tmp_path / "jobs.yaml"
    for value in ("hunter2", "hunter22"):
        file.write_text(
            f"source: s\njobs:\n  - {{name: a, every: 60, parameters: {{headers: {{X-Key: {value}}}}}}}\n"
        )
        shown = [say("plan", file), say("plan", file, "--json"), say("apply", file), say("plan", file)]
        assert "hunter2" not in str(shown)
    assert "***" in str(shown)


def test_a_log_has_pages(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """Oldest first, with a limit and an offset."""

    class Talk(Job):
        config = JobConfig.one_time("talk")

        def run(self, ctx: Any) -> None:
            for line in ("line 0", "line 1", "line 2", "line 3", "line 4"):
                ctx.log.info(line)

    scheduler.register(Talk)
    scheduler.enqueue("talk")
    scheduler.run_pending()
    (run,) = scheduler.runs()
    assert [line["event"] for line in say("logs", run.id, "--limit", 2, "--offset", 1, "--json")] == [
        "line 1",
        "line 2",
    ]
    assert say("logs", run.id, "--offset", 4).endswith("line 4\n")


# --- retry --------------------------------------------------------------------------------------------


def test_retry_one_run(say: Callable[..., Any], refuse: Callable[..., str], scheduler: Scheduler) -> None:
    """A job that is gone is stored anew, with its parameters; what is no run is refused."""
    scheduler.enqueue("greet", {"fail": True}, key="k")
    scheduler.run_pending()
    (run,) = scheduler.runs()
    (job,) = say("retry", run.id, "--json")
    assert (job["name"], job["key"], job["parameters"], job["state"]) == (
        "greet",
        "k",
        {"fail": True},
        "pending",
    )
    assert "run must be a run's id" in refuse(2, "retry", "nonsense")
    assert "not found" in refuse(1, "retry", "99-0000000000000001")
    assert "give RUNs, or --name" in refuse(2, "retry")
    assert "give RUNs, or --name" in refuse(2, "retry", run.id, "--name", "greet")


def test_retry_many(
    say: Callable[..., Any],
    refuse: Callable[..., str],
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All jobs whose last run went wrong, once each: not what went well after all, nor what will be tried again."""
    for n in range(4):
        scheduler.enqueue("greet", {"fail": True, "n": n})
    scheduler.enqueue("greet", {"twice": True}, retries=1, backoff=lambda failures, error: None)
    waits = Backoff(initial=timedelta(hours=1), maximum=timedelta(hours=1))
    scheduler.enqueue("greet", {"fail": True, "n": "waits"}, retries=1, backoff=waits)
    scheduler.schedule(Tick())
    scheduler.trigger("tick")
    scheduler.run_pending()
    scheduler.run_pending()
    assert scheduler.count_runs(outcome=Outcome.FAILED) >= 5
    before = len(scheduler.jobs())

    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert "no terminal" in refuse(2, "retry", "--name", "greet")
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert main(["retry", "--outcome", "failed"]) == 1
    said = capsys.readouterr()
    assert "Run 5 jobs again (1 tick, 4 greet)?" in said.err
    assert "nothing was retried" in said.err
    assert len(scheduler.jobs()) == before

    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert main(["retry", "--name", "greet", "--json"]) == 0
    assert sorted(job["parameters"]["n"] for job in json.loads(capsys.readouterr().out)) == [0, 1, 2, 3]
    assert len(scheduler.jobs()) == before + 4
    assert [job["name"] for job in say("retry", "--name", "tick", "--json")] == ["tick"]
    assert scheduler.run_pending().failed == 5

    scheduler.delete("tick")  # its history stays, and cannot be repeated
    for _ in range(2):
        scheduler.enqueue("greet", {"fail": True}, key="k")
        scheduler.run_pending()
    scheduler.enqueue("greet", {"fail": True}, key="then well")
    scheduler.run_pending()
    scheduler.enqueue("greet", key="then well")
    scheduler.run_pending()
    assert [job["key"] for job in say("retry", "--key", "k", "--json")] == ["k"]
    assert say("retry", "--key", "k") == "nothing to retry\n"  # it waits
    assert say("retry", "--key", "then well") == "nothing to retry\n"
    assert say("retry", "--name", "tick") == "nothing to retry\n"
    scheduler.run_pending()

    since = max(run.finished_at for run in scheduler.runs()).isoformat()
    assert say("retry", "--since", since, "--outcome", "timed_out", "--yes") == "nothing to retry\n"
    assert len(say("retry", "--name", "greet", "--since", since, "--yes", "--limit", 3, "--json")) <= 3


# --- reschedule and update ----------------------------------------------------------------------------


def test_reschedule(say: Callable[..., Any], refuse: Callable[..., str], scheduler: Scheduler) -> None:
    """Another time for a one-time job, another schedule for a recurring one; one of them at a time."""
    scheduler.enqueue("greet", key="k", delay=60)
    scheduler.schedule(Tick())
    assert say("reschedule", "greet/k", "--at", "2099-01-31T09:00+01:00", "--json")["run_at"].startswith(
        "2099-01-31T08:00"
    )
    say("reschedule", "greet/k", "--delay", 0)
    job = say("reschedule", "tick", "--cron", "0 9 * * *", "--timezone", "Asia/Tokyo", "--json")
    assert job["schedule"]["timezone"] == "Asia/Tokyo"
    assert job["run_at"].endswith("T00:00:00+00:00")
    assert say("reschedule", "tick", "--every", 90, "--json")["schedule"] == {"every": 90.0}

    assert "is recurring" in refuse(1, "reschedule", "tick", "--delay", 5)
    assert "give one of them" in refuse(2, "reschedule", "tick", "--delay", 5, "--every", 5)
    assert "--at and --delay exclude" in refuse(
        2, "reschedule", "tick", "--delay", 5, "--at", "2099-01-31T09:00Z"
    )
    assert "goes with --cron" in refuse(2, "reschedule", "tick", "--every", 5, "--timezone", "UTC")
    assert "give --at or --delay" in refuse(2, "reschedule", "tick")
    assert "invalid cron" in refuse(2, "reschedule", "tick", "--cron", "nope")
    assert "not found" in refuse(1, "reschedule", "nobody", "--delay", 5)


def test_update(
    say: Callable[..., Any], refuse: Callable[..., str], scheduler: Scheduler, tmp_path: Path
) -> None:
    """What is given changes, the rest stays."""
    scheduler.schedule(Tick())
    before = scheduler.get_job("tick")
    job = say(
        "update", "tick", "--params", '{"who": 1}', "--priority", 2, "--retries", 3, "--timeout", 1.5,
        "--metadata", '{"team": "x"}', "--misfire", "skip", "--json",
    )  # fmt: skip
    assert (job["parameters"], job["priority"]) == ({"who": 1}, 2)
    assert job["options"] == {"retries": 3, "timeout": 1.5, "metadata": {"team": "x"}, "misfire": "skip"}
    assert (job["schedule"], scheduler.get_job("tick").run_at) == (before.schedule, before.run_at)
    assert "timeout" not in say("update", "tick", "--no-timeout", "--json")["options"]
    assert say("update", "tick", "--cron", "0 5 * * *", "--json")["schedule"]["cron"] == "0 5 * * *"
    file = tmp_path / "p.json"
    file.write_text('{"who": 2}')
    assert "who" in say("update", "tick", "--params", f"@{file}")

    assert "give what to change" in refuse(2, "update", "tick")
    assert "retries must be" in refuse(2, "update", "tick", "--retries", -1)
    assert "metadata is not JSON" in refuse(2, "update", "tick", "--metadata", "{")
    assert "exclude each other" in refuse(2, "update", "tick", "--timeout", 1, "--no-timeout")
    assert "not found" in refuse(1, "update", "nobody", "--retries", 1)


# --- storing by name, showing, waiting --------------------------------------------------------------------


def test_enqueue_takes_policies(say: Callable[..., Any], refuse: Callable[..., str]) -> None:
    """Those of one job; without any they are the class's. A key that exists may be kept, or an error."""
    assert say("enqueue", "greet", "--json")["options"] is None
    job = say(
        "enqueue", "greet", "--key", "k", "--retries", 2, "--timeout", 5, "--expires-in", 60, "--backoff", "5:3",
        "--metadata", '{"team": "x"}', "--delay", 60, "--json",
    )  # fmt: skip
    assert job["options"] == {
        "retries": 2, "timeout": 5.0, "expires_in": 60.0, "backoff": [5.0, 3.0, 3600.0, 0.1], "metadata": {"team": "x"},
    }  # fmt: skip
    assert say("enqueue", "greet", "--key", "k", "--if-exists", "keep", "--json")["options"] == job["options"]
    assert "k" in refuse(1, "enqueue", "greet", "--key", "k", "--if-exists", "error")
    spread = say("enqueue", "greet", "--backoff", "5:3:60:0", "--json")
    assert spread["options"] == {"backoff": [5.0, 3.0, 60.0, 0.0]}
    for wrong in ("x", "1:2:3:0.1:5", "1:", "nan"):
        assert re.search("--backoff must be|finite", refuse(2, "enqueue", "greet", "--backoff", wrong))


def test_schedule(say: Callable[..., Any], refuse: Callable[..., str]) -> None:
    """A recurring job by name, from where its class is not known."""
    job = say(
        "schedule",
        "report",
        "--cron",
        "0 9 * * *",
        "--timezone",
        "Asia/Tokyo",
        "--retries",
        2,
        "--paused",
        "--json",
    )
    assert (job["state"], job["schedule"]["cron"], job["options"]["retries"]) == ("paused", "0 9 * * *", 2)
    both = say("schedule", "both", "--cron", "0 9 1 * mon", "--day-and", "--json")
    assert both["schedule"] == {"cron": "0 9 1 * mon", "timezone": "UTC", "day_or": False}
    assert "--day-and goes with --cron" in refuse(2, "schedule", "x", "--every", 60, "--day-and")
    assert "report" in refuse(1, "schedule", "report", "--every", 60)
    assert say("schedule", "report", "--every", 60, "--if-exists", "update", "--json")["schedule"] == {
        "every": 60.0
    }
    assert "give --cron or --every" in refuse(2, "schedule", "report")


def test_show(say: Callable[..., Any], refuse: Callable[..., str], scheduler: Scheduler) -> None:
    """All of a job, with its place in the queue; all of a run, with its traceback."""
    scheduler.enqueue("greet", priority=1)
    job = scheduler.enqueue("greet", {"fail": True}, key="k", priority=7)
    assert say("show", "greet/k", "--json")["queue_position"] == 2
    shown = say("show", job.id)
    assert re.search(r"^place in queue +2$", shown, re.MULTILINE)
    assert re.search(r"^priority +7$", shown, re.MULTILINE)
    scheduler.run_pending()
    assert re.search(r"^state +failed$", say("show", "greet/k"), re.MULTILINE)
    run = scheduler.runs(outcome=Outcome.FAILED)[0]
    assert say("show", run.id, "--json")["error"] == run.error
    assert "Traceback" in say("show", run.id)
    assert "not found" in refuse(1, "show", "99-0000000000000001")


def test_wait(say: Callable[..., Any], scheduler: Scheduler, capsys: pytest.CaptureFixture[str]) -> None:
    """Until the job has ended; the status tells how, and that the time is over."""
    good, bad = scheduler.enqueue("greet", {"who": 1}), scheduler.enqueue("greet", {"fail": True})
    assert main(["wait", str(good.id), "--timeout", "0"]) == 1
    assert "still pending" in capsys.readouterr().err
    scheduler.run_pending()
    assert say("wait", good.id, "--json")["result"]["greeted"] == 1
    assert main(["wait", str(bad.id), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["state"] == "failed"


# --- schema -------------------------------------------------------------------------------------------


def test_the_schema_may_be_applied_twice(say: Callable[..., Any], empty_dsn: str) -> None:
    """`schema` prints what `migrate --print` does; a second time it changes nothing, and what is stored stays."""
    text = say("schema", "--prefix", "x_")
    assert text == say("migrate", "--print", "--table-prefix", "x_")
    assert say("schema", "--prefix", "x_", "--json")["sql"] == text.removesuffix("\n")
    for _ in range(2):
        execute(empty_dsn, text)
        say("enqueue", "greet", "--dsn", empty_dsn, "--prefix", "x_")
    assert len(say("jobs", "--dsn", empty_dsn, "--prefix", "x_", "--json")) == 2
    assert say("migrate", "--dsn", empty_dsn, "--prefix", "x_") == "the tables are up to date\n"


@pytest.mark.skipif(shutil.which("psql") is None, reason="no psql here")
def test_the_schema_goes_through_psql_twice(say: Callable[..., Any], empty_dsn: str) -> None:
    """`pgscheduler schema --prefix x | psql $DSN`, twice."""
    text = say("schema", "--prefix", "x_")
    for _ in range(2):
        subprocess.run(
            ["psql", "-X", "-v", "ON_ERROR_STOP=1", empty_dsn],
            input=text,
            text=True,
            capture_output=True,
            check=True,
        )
    assert say("jobs", "--dsn", empty_dsn, "--prefix", "x_") == "no jobs\n"


# --- completion ---------------------------------------------------------------------------------------


def complete(*words: str, **environment: str) -> list[str]:
    """What a shell would offer for the last word."""
    process = subprocess.run(
        [sys.executable, "-c", "from pgscheduler.__main__ import main; main()"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "_PGSCHEDULER_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["pgscheduler", *words]),
            "COMP_CWORD": str(len(words)),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (process.returncode, process.stderr) == (0, "")
    return [line.partition(",")[2] for line in process.stdout.splitlines() if line]


def test_completion(say: Callable[..., Any], scheduler: Scheduler) -> None:
    """Commands, options and the names of recurring jobs are completed; without a database nothing is said."""
    scheduler.schedule(Tick())
    assert complete("res") == ["resume", "reschedule"]
    assert complete("jobs", "--rec") == ["--recurring"]
    assert complete("jobs", "--state", "pa") == ["paused"]
    assert complete("pause", "ti") == ["tick"]
    assert complete("history", "t") == ["tick"]
    assert complete("pause", "x") == []
    assert complete("pause", "ti", PGSCHEDULER_DSN="postgresql://127.0.0.1:1/x") == []
    assert complete("pause", "ti", PGSCHEDULER_DSN="") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(say: Callable[..., Any], refuse: Callable[..., str], shell: str) -> None:
    """The script asks by the variable that the command listens to; click's own way prints the same."""
    script = say("completion", shell)
    assert f"_PGSCHEDULER_COMPLETE={shell}_complete" in script
    assert say("completion", shell, "--json") == {"shell": shell, "script": script.removesuffix("\n")}
    asked = subprocess.run(
        [sys.executable, "-c", "from pgscheduler.__main__ import main; main()"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "_PGSCHEDULER_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.rstrip() == script.rstrip()
    assert "SHELL" in refuse(2, "completion", "tcsh")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_takes_the_script(say: Callable[..., Any]) -> None:
    """bash reads it without a complaint and knows the command afterwards."""
    script = say("completion", "bash")
    done = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p pgscheduler"], capture_output=True, text=True, check=True
    )
    assert (done.stderr, "_pgscheduler_completion" in done.stdout) == ("", True)


# --- exit codes ---------------------------------------------------------------------------------------


def test_exit_codes_are_documented_alike() -> None:
    """The README's table and --help name the same codes."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (rows,) = re.findall(r"^\| exit code \|.*\n\|[-|]+\n((?:\|.*\n)+)", readme, re.MULTILINE)
    assert re.findall(r"^\| `(\d+)` \|", rows, re.MULTILINE) == re.findall(
        r"^  (\d+) ", EXIT_CODES, re.MULTILINE
    )


def test_destructive_verbs_need_a_yes(
    say: Callable[..., Any],
    refuse: Callable[..., str],
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Without a terminal and without --yes: refused with 2, whatever stands in stdin, and nothing is done."""
    for n in range(2):
        scheduler.enqueue("greet", {"fail": True}, key=str(n))
    scheduler.run_pending()
    scheduler.schedule(Tick())
    file = tmp_path / "jobs.yaml"
    file.write_text("source: s\njobs: [{name: a, every: 60}]\n")
    say("apply", file)
    file.write_text("source: s\njobs: []\n")
    before = states(scheduler)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    for arguments in (["delete", "tick"], ["retry", "--name", "greet"], ["apply", str(file)]):
        assert "it takes --yes" in refuse(2, *arguments)
    assert states(scheduler) == before


def test_a_terminal_is_asked(scheduler: Scheduler, dsn: str) -> None:
    """On a real terminal the question is shown there, and its answer counts."""
    job = scheduler.enqueue("greet", delay=3600)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pgscheduler", "delete", str(job.id)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
            if shown.endswith(b"[y/N]: "):
                os.write(leader, b"y\n")
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(leader)
        assert process.wait(60) == 0
        watchdog.cancel()
    assert f"Delete job {job.id} (greet)?".encode() in shown
    assert b"is deleted" in shown
