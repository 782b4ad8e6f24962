"""What a job is and how a node is set up: one test for each feature, by its number in `test_all_rows`."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import structlog

from pgscheduler import (
    DuplicateTemplateError,
    InvalidValueError,
    Job,
    JobConfig,
    JobState,
    Outcome,
    Scheduler,
    SchedulerConfig,
    SchemaError,
    TemplateNotFoundError,
    definitions,
)
from pgscheduler.definitions import DefinitionError
from pgscheduler.jobs import CallJob, HttpJob, ShellJob
from tests.engine.conftest import Call, Quiet
from tests.jobs.conftest import Web
from tests.rows.conftest import WORKS
from tests.support import eventually
from tests.support.postgres import execute
from tests.support.processes import NodeProcess

Made = Callable[..., Scheduler]
Node = Callable[..., tuple[NodeProcess, dict[str, Any]]]
Command = Callable[..., subprocess.CompletedProcess[str]]

INIT = """
import sys
from pgscheduler import Scheduler, SchedulerConfig
from tests.support.processes import commands, emit

emit("ready")
for _ in commands():
    scheduler = Scheduler(SchedulerConfig(dsn=sys.argv[1], create_schema=True))
    scheduler.init()
    scheduler.shutdown()
    emit("initialized")
"""

#: The two shapes of a file: names of registered jobs, and commands.
NAMED = """
jobs:
  - {name: sweep, cron: "0/30 * * * * *"}
  - {name: digest, cron: "0 0 */1 * * *"}
"""
COMMANDS = """
jobs:
  - name: count
    schedule: "* * * * * *"
    command: "echo one | wc -l"
    retries: 2
    timeout_seconds: 30
"""


def test_row_2_recurring_config(api: httpx.Client, command: Command) -> None:
    """Recurring jobs have a name and a cron line, checked where they are written (Kronii, Laki, Cron Service)."""
    config = JobConfig.recurring("report", "0 9 * * 1-5")
    assert (config.name, str(config.schedule_json())) == ("report", '{"cron":"0 9 * * 1-5","timezone":"UTC"}')

    with pytest.raises(ValueError, match="name cannot be empty"):
        JobConfig.recurring("", "0 9 * * *")
    for line in ("", "* * * *", "61 * * * *", "every day", "0 0 30 2 *"):
        with pytest.raises(ValueError, match=r"^invalid cron schedule: "):
            JobConfig.recurring("report", line)

    # The same through the other doors.
    with pytest.raises(DefinitionError, match="invalid cron schedule: "):
        definitions.parse('jobs:\n  - {name: report, cron: "61 * * * *"}', "mine")
    said = api.post("/api/v1/jobs", json={"name": "report", "schedule": {"cron": "61 * * * *"}})
    assert (said.status_code, said.json()["code"]) == (422, "invalid_cron")
    refused = command("schedule", "report", "--cron", "61 * * * *")
    assert (refused.returncode, "invalid cron schedule: " in refused.stderr) == (2, True)


def test_row_6_create_schema(nodes: Callable[..., NodeProcess], empty_dsn: str) -> None:
    """Nodes make the tables themselves if told to, eight at once and again; untold they say what is missing (Kronii,
    Bildad)."""
    with pytest.raises(SchemaError):
        Scheduler(SchedulerConfig(dsn=empty_dsn, logger=Quiet())).init()

    eight = [nodes(INIT, empty_dsn) for _ in range(8)]
    for _ in range(2):
        for process in eight:
            if not process.seen("initialized"):
                process.wait_for("ready", timeout=60)
        for process in eight:
            process.send({"do": "init"})
        for process in eight:
            process.wait_for("initialized", timeout=60)

    with Scheduler(SchedulerConfig(dsn=empty_dsn, logger=Quiet())) as scheduler:
        assert scheduler.jobs() == []
    twice = "select count(*) - count(distinct version) from pgscheduler_migrations"
    assert execute(empty_dsn, twice) == [(0,)]


def test_row_9_structured_logging(dsn: str, scheduler_on: Made, quiet: Quiet, call: type[Call]) -> None:
    """Each event about a run is data, with job, key, attempt and node, in a logger of your own or structlog (all four)."""

    class Careless(Job):
        config = JobConfig.one_time("careless", key="k")

        def run(self, ctx: Any) -> Any:
            ctx.log.info("said", rows=3)
            return object()

        def shutdown(self, ctx: Any) -> None:
            raise ValueError("not closed")

    scheduler = scheduler_on(dsn, logger=quiet)
    scheduler.schedule(Careless())
    scheduler.run_pending()

    events = {event: fields for _, event, fields in quiet.lines}
    facts = {"job": "careless", "key": "k", "attempt": 1, "node": scheduler.id}
    assert events["said"].items() >= {**facts, "rows": 3}.items()
    assert events["shutdown hook failed"].items() >= facts.items()
    assert events["result was not stored"].items() >= facts.items()

    with structlog.testing.capture_logs() as lines:
        scheduler_on(dsn, logger=None, start=True).shutdown()
    assert {"scheduler started", "all jobs completed gracefully"} <= {line["event"] for line in lines}
    assert all(line["node"] for line in lines)


def test_row_10_yaml_job_file(node: Node, scheduler: Scheduler, tmp_path: Path) -> None:
    """Recurring jobs as a YAML file, with the keys of Kronii's README and with those of its code (Kronii)."""
    named = definitions.parse(NAMED, "mine")
    assert [(job.name, job.key) for job in named.jobs] == [("sweep", "sweep"), ("digest", "digest")]
    for wrong in (
        NAMED + '  - {name: sweep, cron: "* * * * *"}',  # twice
        NAMED + '  - {name: third, cron: "* * * * *", comand: ls}',  # unknown
        NAMED + '  - {name: third, cron: "* * * * *", schedule: "* * * * *"}',  # both
        NAMED + "  - {name: third}",  # none
    ):
        with pytest.raises(DefinitionError, match=r"line \d+, column \d+"):
            definitions.parse(wrong, "mine")

    file = tmp_path / "jobs.yaml"
    file.write_text(COMMANDS)
    process, _ = node("run", "--config", str(file), "--allow-shell")
    # Occurrences that a slow start has missed are on record before the first run.
    run = eventually(lambda: scheduler.runs(key="count", outcome="completed"), timeout=60)[0]
    assert run.result["output"].strip() == "1"
    options = scheduler.get_job(("shell_job", "count")).options or {}
    assert (options["retries"], options["timeout"]) == (2, 30.0)
    process.terminate()
    assert process.wait() == 0


def test_row_11_env_config(command: Command, node: Node, scheduler: Scheduler, tmp_path: Path) -> None:
    """A node is set up by the environment; without a database it ends with 1 and says why (Kronii, Cron Service).

    Two defaults are our own: ten runs at once, not five, and no metrics until a port is given. QUEUE_NAME has no
    meaning, because `table_prefix` tells several schedulers apart.
    """
    bare = command("run", env={}, cwd=tmp_path)
    assert bare.returncode == 1
    assert "no database: give --dsn, set PGSCHEDULER_DSN, DATABASE_URL or DB_USER" in bare.stderr

    parts = {"DB_USER": "u", "DB_PASSWORD": "p w", "DB_HOST": "db", "DB_PORT": "5433", "DB_DATABASE": "shop"}
    config = SchedulerConfig.from_env({**parts, "QUEUE_NAME": "cron-tasks"})
    found = psycopg.conninfo.conninfo_to_dict(config.conninfo)
    assert found == {"user": "u", "password": "p w", "host": "db", "port": "5433", "dbname": "shop"}
    assert (config.max_concurrent_jobs, config.table_prefix) == (10, "pgscheduler_")

    process, said = node("worker", WORKS, WORKER_COUNT="3", METRICS_PORT="0")
    assert said["metrics_port"] > 0
    assert [one.slots for one in scheduler.nodes() if one.id == said["node"]] == [3]
    process.signal(signal.SIGINT)
    assert process.wait() == 0


def test_row_12_function_jobs(dsn: str, db: psycopg.Connection[Any], scheduler_on: Made) -> None:
    """A job that is no class: module, function and arguments in the database, run only if its module is allowed (Laki)."""
    scheduler = scheduler_on(dsn, register=(CallJob(modules=[WORKS]),))
    another = scheduler_on(dsn)  # any process may store one: those that run it say what may be called

    def simple(function: str, *args: Any, module: str = WORKS) -> Any:
        parameters = {"module": module, "function": function, "args": list(args)}
        job = another.schedule_by_name("call_job", "0 0 1 1 *", parameters, key=f"{module}.{function}")
        scheduler.trigger(job)
        scheduler.run_pending()
        return scheduler.runs(job)[0]

    done = simple("add", 1, 2, 3.5)
    assert (done.outcome, done.result) == (Outcome.COMPLETED, 6.5)
    refused = simple("refuse", "not today")
    assert (refused.outcome, "ValueError: not today" in refused.error) == (Outcome.FAILED, True)
    for module, function in (("no.such.module", "add"), ("os", "getcwd"), (WORKS, "nothing"), (WORKS, "os")):
        run = simple(function, module=module)
        assert (run.outcome, "Traceback" in run.error) == (Outcome.FAILED, False)
        with pytest.raises(InvalidValueError, match="are not allowed here"):
            scheduler.enqueue("call_job", {"module": module, "function": function})
    assert "no.such.module" not in sys.modules

    # What somebody writes into the row calls nothing else either.
    elsewhere = '{"module": "posixpath", "function": "abspath", "args": ["x"]}'
    db.execute("update pgscheduler_jobs set parameters = %s, run_at = now()", [elsewhere])
    assert scheduler.run_pending().failed == len(scheduler.jobs())
    assert all(
        "'posixpath' is not allowed" in run.error for run in scheduler.runs(limit=len(scheduler.jobs()))
    )


def test_row_13_shell_command_jobs(dsn: str, scheduler_on: Made, tmp_path: Path) -> None:
    """A shell's line as a job; a timeout ends it with all the processes that it started (Kronii)."""
    scheduler = scheduler_on(dsn, start=True, register=(ShellJob(enabled=True),))

    def run(**parameters: Any) -> Any:
        job = scheduler.wait(scheduler.enqueue("shell_job", parameters), 60)
        return scheduler.runs(job)[0]

    assert run(shell="echo fine | tr a-z A-Z").result["output"] == "FINE\n"
    failed = run(shell="echo because >&2; exit 3")
    assert failed.outcome is Outcome.FAILED
    assert "Command exited with failure (exit code 3)" in failed.error
    assert "because" in failed.error

    pids = tmp_path / "pids"
    late = run(shell=f"sleep 600 & echo $! $$ > {pids}; wait", timeout=3)  # time enough to write them
    assert "Timeout after 3 s" in late.error
    for pid in pids.read_text().split():
        eventually(lambda pid=pid: not _alive(int(pid)), describe=f"{pid} to be gone")


def _alive(pid: int) -> bool:
    """A process that has ended and that nobody has asked about is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_row_14_http_call_jobs(
    dsn: str, db: psycopg.Connection[Any], scheduler_on: Made, web: Callable[..., Web]
) -> None:
    """An HTTP request as a job: 2xx is success, everything else fails with Cron Service's words (Cron Service)."""

    def answer(request: Any) -> None:
        if request.path.startswith("/slow"):
            server.closing.wait(30)
        status = 500 if request.path.startswith("/bad") else 201
        request.reply(status, b"x" * 300 if status == 500 else b"made")

    server = web(answer)
    http = HttpJob(allow=[server.place])
    scheduler = scheduler_on(dsn, start=True, register=(http,))

    def run(path: str, **parameters: Any) -> Any:
        job = {"type": "API_CALL", "url": server.url + path, "method": "POST", **parameters}
        return scheduler.runs(scheduler.wait(scheduler.enqueue("http_job", job), 60))[0]

    good = run("/ok", headers={"X-Shop": "north"}, data={"a": 1}, params={"page": 2})
    assert (good.outcome, good.result["status"], good.result["body"]) == (Outcome.COMPLETED, 201, "made")
    seen = server.seen[0]
    assert (seen.method, seen.path, seen.headers["x-shop"]) == ("POST", "/ok?page=2", "north")
    assert seen.body.replace(" ", "") == '{"a":1}'
    assert f"API Call execution FAILED. Status: 500, Data: {'x' * 100}..." in run("/bad").error
    assert "No answer" in run("/slow", timeout=0.3).error
    assert inspect.signature(HttpJob).parameters["timeout"].default == 30.0

    missing = "API_CALL task missing required 'url' or 'method' in config."
    for wrong, text in (({"url": server.url}, missing), ({"type": "MAIL"}, "Unsupported job type: MAIL")):
        with pytest.raises(InvalidValueError, match=text):
            http.with_config(JobConfig.one_time("http_job", wrong))
        # Stored where nobody could check them, they end as failed with the same text.
        row = db.execute("select pgscheduler_enqueue('http_job', %s)", [json.dumps(wrong)]).fetchone()
        assert row is not None
        assert text in (scheduler.wait(row[0], 60).last_error or "")


def test_row_15_job_templates(scheduler: Scheduler, api: httpx.Client) -> None:
    """Under one code: the handler, its defaults and a schema; made, listed in order, changed and deleted (Bildad)."""
    templates = scheduler.templates
    for code, order, active in (("B", 2, True), ("A", 2, True), ("C", 1, True), ("OLD", 0, False)):
        templates.create(code, handler="report", display_order=order, active=active)
    made = templates.create(
        "MONTH", handler="report", name="Each month", parameters_schema={"type": "object"}
    )
    assert (made.timeout, made.retries, made.active) == (timedelta(minutes=60), 3, True)
    with pytest.raises(DuplicateTemplateError):
        templates.create("MONTH", handler="other")

    def codes(active: bool | None = None) -> list[str]:
        return [template.code for template in templates.list(active)]

    assert codes() == ["MONTH", "OLD", "C", "A", "B"]
    assert codes(True) == ["MONTH", "C", "A", "B"]
    assert codes(False) == ["OLD"]
    assert [one["code"] for one in api.get("/api/v1/templates").json()] == codes()

    templates.update("MONTH", retries=0, display_order=9)
    assert (templates.get("MONTH").retries, codes()[-1]) == (0, "MONTH")
    job = templates.enqueue("MONTH", {"month": "2027-01"})
    assert (job.name, job.template, job.options["timeout"]) == ("report", "MONTH", 3600.0)
    templates.delete("MONTH")
    with pytest.raises(TemplateNotFoundError):
        templates.get("MONTH")


def test_row_16_context_validation(
    scheduler: Scheduler, db: psycopg.Connection[Any], call: type[Call]
) -> None:
    """Parameters that do not fit the template's schema never launch a job: failed, with a readable reason (Bildad)."""
    launched: list[Any] = []
    scheduler.register(call(JobConfig(name="report"), lambda ctx: launched.append(ctx.parameters)))
    schema = {"type": "object", "required": ["month"], "properties": {"month": {"type": "string"}}}
    scheduler.templates.create("MONTH", handler="report", parameters_schema=schema)
    with pytest.raises(InvalidValueError, match="type"):
        scheduler.templates.create("BAD", handler="report", parameters_schema={"type": "no such type"})

    with pytest.raises(InvalidValueError, match="month"):
        scheduler.templates.enqueue("MONTH", {"month": 1})
    assert scheduler.jobs() == []
    # Changed by somebody after it was stored.
    job = scheduler.templates.enqueue("MONTH", {"month": "2027-01"})
    db.execute("""update pgscheduler_jobs set parameters = '{"month": 1}'""")
    scheduler.run_pending()
    assert launched == []
    (run,) = scheduler.runs(job)
    assert run.outcome is Outcome.FAILED
    assert "parameters do not fit their schema at $.month: must be of type string" in run.reason
    assert scheduler.get_job(job).state is JobState.FAILED


def test_row_17_metadata_on_a_job(scheduler: Scheduler, api: httpx.Client) -> None:
    """A free JSON object goes with a job, empty by default, and comes back as it was (Laki)."""
    assert JobConfig(name="work").metadata == {}
    metadata = {"owner": "Zoë", "tags": ["a", {"b": None}], "cost": 1.5, "n": 10**18}
    job = scheduler.schedule_by_name("work", "0 0 1 1 *", metadata=metadata)
    assert (scheduler.get_job(job).options or {})["metadata"] == metadata
    assert api.get(f"/api/v1/jobs/{job.id}").json()["options"]["metadata"] == metadata
    plain = scheduler.enqueue("other")
    assert "metadata" not in (scheduler.get_job(plain).options or {})
    scheduler.update(job, metadata={"owner": "Ann"})
    assert (scheduler.get_job(job).options or {})["metadata"] == {"owner": "Ann"}
