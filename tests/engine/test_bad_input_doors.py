"""The same wrong thing through every door: Python, the command, a definitions file, SQL. Each refuses it by name.

What Python says, the command says too, word for word; a file adds the place; SQL has PostgreSQL's own way to say it.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from pgscheduler import Job, JobConfig, JobState, PgSchedulerError, RunContext, Scheduler
from pgscheduler.cli import main
from pgscheduler.definitions import DefinitionError, parse
from tests.engine import test_bad_input as matrix
from tests.support import eventually

SECRET = "hunter2"


class Plain(Job):
    def run(self, ctx: RunContext) -> None: ...


class Reader(Job):
    def run(self, ctx: RunContext) -> None:
        assert ctx.parameters


@dataclass(frozen=True)
class Wrong:
    """One wrong thing. A door that cannot be handed it at all (a process's arguments hold no NUL) is None."""

    id: str
    pattern: str
    python: Callable[[Scheduler], Any] | None = None
    command: list[str] | None = None
    document: str | None = None  # the lines of one job
    sql: tuple[str, list[Any]] | None = None
    state: str = "22"  # how SQLSTATE begins


def text(id_: str, value: str, pattern: str, *, argument: bool = True, document: bool = True) -> list[Wrong]:
    """A name, and a key, that is no good."""
    escaped = json.dumps(value)
    return [
        Wrong(
            f"name-{id_}",
            f"name {pattern}",
            lambda s: s.enqueue(value),
            ["enqueue", value] if argument else None,
            f"name: {escaped}\nevery: 60" if document else None,
            ("name => %s", [value]),
        ),
        Wrong(
            f"key-{id_}",
            f"key {pattern}",
            lambda s: s.enqueue("plain", key=value),
            ["enqueue", "plain", "--key", value] if argument else None,
            None,  # there the name is the key
            ("name => 'plain', key => %s", [value]),
        ),
    ]


def parameters(
    id_: str, value: Any, pattern: str, written: str, *, yaml: str | None = None, by_sql: bool = True
) -> Wrong:
    """Parameters that JSON, jsonb or good sense cannot hold."""
    return Wrong(
        f"parameters-{id_}",
        f"param.*{pattern}",
        lambda s: s.enqueue("plain", value),
        ["enqueue", "plain", "--params", written],
        None if yaml is None else f"name: a\nevery: 60\nparameters: {yaml}",
        ("name => 'plain', parameters => %s::jsonb", [written]) if by_sql else None,
    )


def policy(id_: str, field: str, value: Any, pattern: str, *, option: str | None = None) -> Wrong:
    """A number that is out of range."""
    return Wrong(
        id_,
        pattern,
        lambda s: s.enqueue("plain", **{field: value}),
        None if option is None else ["enqueue", "plain", option, str(value)],
        f"name: a\nevery: 60\n{field}: {json.dumps(value)}",
        (f"name => 'plain', {field} => %s", [value]) if field == "priority" else None,
    )


def nested(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


WRONG = [
    *text("empty", "", "(cannot be empty|must be 1 to 255)"),
    *text("blank", "   ", "(cannot be empty|must be 1 to 255)"),
    *text("long", "n" * 256, "(.*too long|must be 1 to 255)"),
    *text("newline", "a\nb", "must be .*printable"),
    *text("escape", "a\x1b[31m", "must be .*printable"),
    *text("c1-control", "a\x85b", "must be .*printable"),
    *text("bidi", "a\u202eb", "must be .*printable"),
    *text("isolate", "a\u2066b", "must be .*printable"),
    *text("zero-width", "a\u200bb", "must be .*printable"),
    *text("byte-order-mark", "\ufeffa", "must be .*printable"),
    *text("line-separator", "a\u2028b", "must be .*printable"),
    *text("no-break-space", "a\u00a0b", "must be .*printable"),
    *text("tag", "a\U000e0041b", "must be .*printable", document=False),
    *text("private-use", "a\U000f1234b", "must be .*printable", document=False),
    parameters("nan", {"a": float("nan")}, "(NaN|type json)", '{"a": NaN}', yaml="{a: .nan}"),
    parameters("infinity", {"a": float("inf")}, "(infinity|finite|type json)", '{"a": Infinity}', yaml="{a: .inf}"),
    parameters("nul", {"a": "x\x00"}, "(NUL|u0000|Unicode escape)", '{"a": "x\\u0000"}', yaml='{a: "x\\0"}'),
    parameters("nul-in-key", {"x\x00": 1}, "(NUL|u0000|Unicode escape)", '{"x\\u0000": 1}', yaml='{"x\\0": 1}'),
    parameters("surrogate", {"a": "\ud800"}, "(surrogate|type json)", '{"a": "\\ud800"}'),
    parameters("surrogate-in-key", {"x\ud800": 1}, "(surrogate|type json)", '{"x\\ud800": 1}'),
    parameters("deep", nested(101), "(deep|aliases)", "[" * 101 + "1" + "]" * 101, by_sql=False),
    parameters("large", "x" * 70_000, "size.*limit", json.dumps("x" * 70_000), by_sql=False, yaml="x" * 70_000),
    parameters("integer", 10**5000, "(integer|range)", "1" + "0" * 5000, by_sql=False),
    policy("priority-negative", "priority", -1, r"priority must be (non-negative|between)", option="--priority"),
    policy("priority-huge", "priority", 40_000, r"priority must be (<= 32767|between)", option="--priority"),
    policy("retries-negative", "retries", -1, r"retries must be non-negative"),
    policy("retries-float", "retries", 2.5, r"retries must be an int, got float 2\.5"),
    policy("retries-bool", "retries", True, r"retries must be an int, got bool True"),
    policy("timeout-zero", "timeout", 0, r"timeout must be > 0"),
    policy("timeout-text", "timeout", "5s", r"timeout must be a (timedelta or a )?number"),
    Wrong("delay-negative", "delay must be >= 0", lambda s: s.enqueue("plain", delay=-1),
          ["enqueue", "plain", "--delay=-1"]),
    Wrong("run-at-naive", "(run_at must have a time zone|--at must be .* offset)",
          None, ["enqueue", "plain", "--at", "2030-01-01T00:00"]),
    Wrong("run-at-infinite", "run_at must be finite", sql=("name => 'plain', run_at => 'infinity'", [])),
    Wrong("run-at-beyond", "run_at must be between the years", None,
          ["enqueue", "plain", "--at", "9999-12-31T00:00Z"], sql=("name => 'plain', run_at => '9999-12-31Z'", [])),
    Wrong("run-at-before", "run_at must be between the years", None,
          ["enqueue", "plain", "--at", "0001-01-02T00:00Z"], sql=("name => 'plain', run_at => '0044-03-15Z BC'", [])),
    Wrong("cron-minute", "minute.*60", None, ["cron", "60 * * * *"], "name: a\ncron: '60 * * * *'"),
    Wrong("cron-never", "never", None, ["cron", "0 0 31 4 *"], "name: a\ncron: '0 0 31 4 *'"),
    Wrong("zone", "time zone.*unknown", None, ["cron", "@daily", "--timezone", "../../etc/passwd"],
          "name: a\ncron: '@daily'\ntimezone: ../../etc/passwd"),
    Wrong("one-time-under-recurring", "tick.*recurring", lambda s: s.enqueue("tick"), ["enqueue", "tick"], None,
          ("name => 'tick'", []), "42710"),
]  # fmt: skip


@pytest.fixture
def scheduler(dsn: str, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    for name in [n for n in os.environ if n.startswith("PGSCHEDULER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PGSCHEDULER_DSN", psycopg.conninfo.make_conninfo(dsn, password=SECRET))
    found: Scheduler = scheduler_on(dsn)
    found.schedule(Plain(JobConfig.recurring("tick", "0 0 1 1 *")))
    return found


def test_ids_are_unique() -> None:
    """Each wrong thing has a name of its own, and at least one door."""
    assert len({wrong.id for wrong in WRONG}) == len(WRONG)
    assert all(wrong.python or wrong.command or wrong.document or wrong.sql for wrong in WRONG)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.id)
def test_every_door_refuses_it(
    wrong: Wrong, scheduler: Scheduler, db: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each door says which field breaks which rule, briefly, on one line and without a secret; nothing is written."""
    said: dict[str, str] = {}
    before = db.execute("select count(*) from pgscheduler_jobs").fetchone()
    if wrong.python is not None:
        with pytest.raises(PgSchedulerError) as refused:
            wrong.python(scheduler)
        said["python"] = str(refused.value)
    if wrong.command is not None:
        status = main(wrong.command)
        answer = capsys.readouterr()
        assert answer.out == ""
        (said["command"],) = answer.err.splitlines()
        # A name that is taken is found out only by asking the database.
        assert status == (1 if wrong.state == "42710" else 2)
        assert said["command"].startswith("pgscheduler: error: ")
    if wrong.document is not None:
        first, *others = wrong.document.split("\n")
        lines = "\n".join([f"  - {first}", *(f"    {line}" for line in others)])
        with pytest.raises(PgSchedulerError) as misread:
            scheduler.plan(parse(f"source: s\njobs:\n{lines}\n", file="jobs.yaml"))
        said["document"] = str(misread.value)
        # How large parameters may be is the scheduler's setting, and not the file's.
        assert re.search(r"line \d", said["document"]) or not isinstance(misread.value, DefinitionError)
    if wrong.sql is not None:
        arguments, values = wrong.sql
        with pytest.raises(psycopg.Error) as error:
            db.execute(f"select pgscheduler_enqueue({arguments})", values)  # type: ignore[arg-type]
        assert (error.value.sqlstate or "").startswith(wrong.state)
        # For what jsonb refuses by itself there is no field in the text; the call has one json.
        said["sql"] = f"{'parameters: ' if 'jsonb' in arguments else ''}{error.value.diag.message_primary} "
        said["sql"] += error.value.diag.message_detail or "" if "jsonb" in arguments else ""

    for door, words in said.items():
        assert re.search(wrong.pattern, words, re.IGNORECASE), (door, words)
        assert len(words) <= 600, (door, words)
        assert not re.search(r"(.)\1{80}", words), f"{door}: more than 80 characters of the value are shown"
        assert "\n" not in words or door == "sql"
        assert SECRET not in words
    if wrong.python and wrong.command and not wrong.id.startswith(("parameters", "delay")):
        # The command reads JSON and seconds first, so of those it may say something else.
        assert " ".join(said["python"].split()) in " ".join(said["command"].split())
    assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == before
    # And a good one is taken right afterwards.
    assert scheduler.get_job(scheduler.enqueue("plain", delay=60)).state is JobState.PENDING


def test_sql_takes_two_spellings_for_one_name(scheduler: Scheduler, db: psycopg.Connection[Any]) -> None:
    """Composed or not, a name and a key are stored as the Python API stores them: one job, and one kind for a name."""
    call = "select pgscheduler_enqueue(%s, key => %s, run_at => '2100-01-01Z')"
    composed, other = "r\u00e9sum\u00e9 \u1e69", "re\u0301sume\u0301 s\u0307\u0323"
    first = scheduler.enqueue(composed, key=composed, delay=60)
    assert db.execute(call, [other, other]).fetchone() == (first.id,)
    assert db.execute(call, [composed, other]).fetchone() == (first.id,)
    assert [(job.name, job.key) for job in scheduler.jobs(name=other)] == [(composed, composed)]
    assert scheduler.schedule_by_name(f"{other} daily", "@daily").name == f"{composed} daily"
    with pytest.raises(psycopg.errors.DuplicateObject):
        db.execute(call, [f"{other} daily", None])
    for visible in (
        "\u65e5\u672c\u8a9e",
        "\U0001f389 \u2764\ufe0f",
        "\u0645\u0631\u062d\u0628\u0627",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
    ):
        (id_,) = db.execute(call, [visible, visible]).fetchone() or (None,)
        assert scheduler.enqueue(visible, key=visible, delay=60).id == id_


def test_sql_refuses_what_python_does(db: psycopg.Connection[Any]) -> None:
    """Character by character: what has a meaning in Unicode and is not printable is no part of a name in either."""
    characters = [
        chr(n)
        for n in range(1, 0x110000)
        if unicodedata.category(chr(n)) not in ("Cs", "Cn") and (n < 0x3400 or n > 0xDFFF)
    ]
    odd = [c for c in characters if not c.isprintable()]
    assert len(odd) > 100_000  # private use, most of it
    some = odd[:: len(odd) // 400] + [c for c in odd if unicodedata.category(c) != "Co"]
    some += [c for c in characters if c.isprintable()][::300]
    db.execute(
        "create function said(name text) returns boolean language plpgsql as $$ begin"
        " perform pgscheduler_enqueue(name, notify => false); return true;"
        " exception when invalid_parameter_value then return false; end $$"
    )
    found = db.execute("select c, said('a' || c) from unnest(%s::text[]) c", [some]).fetchall()
    assert [hex(ord(c)) for c, taken in found if taken != c.isprintable()] == []


def test_what_sql_cannot_know_fails_its_run_in_words(
    scheduler: Scheduler, db: psycopg.Connection[Any]
) -> None:
    """What jsonb can hold and Python cannot read is one failed run with the reason, and hides nothing else."""
    scheduler.register(Reader(JobConfig(name="plain")))
    (job,) = (
        db.execute(
            "select pgscheduler_enqueue('plain', %s::jsonb)", ['{"a": 1' + "0" * 5000 + "}"]
        ).fetchone()
        or ()
    )
    assert "unreadable" in scheduler.get_job(job).parameters
    scheduler.run_pending()
    (run,) = scheduler.runs(job)
    assert run.outcome == "failed"
    assert "integer string conversion" in (run.error or "")
    assert [found.id for found in scheduler.runs(name="plain")] == [run.id]


def test_the_matrix_on_a_live_node_leaves_nothing(
    dsn: str, direct_dsn: str, db: psycopg.Connection[Any], scheduler_on: Any
) -> None:
    """All of it, against a node at work: nothing is written, as many threads and hardly more memory than before, and the
    node goes on."""
    import threading

    node = scheduler_on(dsn, start=True, register=(matrix.Plain(JobConfig(name="plain")),))
    node.schedule(matrix.Plain(JobConfig.recurring("tick", "0 0 1 1 *")))
    play = matrix.Play(dsn, node, db, direct_dsn)
    rows = [row for row in matrix.ROWS if row.prepare is matrix.unprepared]
    assert len(rows) > 200

    def walk() -> None:
        for wrong in WRONG:
            if wrong.python is not None:
                with pytest.raises(PgSchedulerError):
                    wrong.python(node)
        for row in rows:
            with pytest.raises(row.error, match=f"(?i){row.pattern}"):
                row.call(play)

    walk()  # what is made at the first use
    node.wait(node.enqueue("plain"), 20)
    node._client.notifier.poke(
        "due"
    )  # its thread is made when a hint has to wait, which is a matter of timing
    threads, memory, stored = set(threading.enumerate()), _memory(), play.count()
    for _ in range(5):
        walk()
    eventually(
        lambda: set(threading.enumerate()) <= threads,
        describe=lambda: f"no thread more than before: {set(threading.enumerate()) - threads}",
    )
    assert _memory() - memory < 32 << 20
    assert play.count() == stored
    assert node.wait(node.enqueue("plain"), 20).state is JobState.COMPLETED
    assert [job.name for job in node.jobs()] == ["tick"]
    assert {name for name, loop in node.node_stats()["loops"].items() if loop["failures"]} == set()


def _memory() -> int:
    """Bytes that this process has in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
