"""Definitions files: what they mean, what is refused and where, and the schema that editors use."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import pgscheduler
from pgscheduler import (
    Backoff,
    Cron,
    DuplicateJobError,
    Every,
    InvalidTypeError,
    InvalidValueError,
    JobConfig,
)
from pgscheduler._declared import compare, mark_of
from pgscheduler.cli import main
from pgscheduler.definitions import Definition, DefinitionError, Definitions, load, parse, schema
from pgscheduler.jobs import ShellJob
from tests.support import ROOT

KRONII_README = """
jobs:
  - name: cleanup
    cron: "0/30 * * * * *"
"""
KRONII_CODE = """
jobs:
  - name: cleanup
    schedule: "0/30 * * * * *"
    command: "echo cleaning"
    retries: 3
    timeout_seconds: 10
"""


def only(text: str) -> Definition:
    """The one job of a document."""
    (found,) = parse(text, "test").jobs
    return found


def job(line: str) -> str:
    """A document with one job, on line 3, and one more line in it."""
    return f"source: s\njobs:\n  - name: a\n    cron: '* * * * *'\n    {line}\n"


def test_kronii_by_its_readme() -> None:
    """`name` and `cron`, six fields with the seconds first: the job of that name, each half minute."""
    found = only(KRONII_README)

    assert (found.name, found.key) == ("cleanup", "cleanup")
    assert found.config.schedule == Cron("0/30 * * * * *")
    assert found.config.retries == 0


def test_kronii_by_its_code() -> None:
    """`schedule`, `command`, `retries` and `timeout_seconds` are a job for `ShellJob`, under its name as key."""
    found = only(KRONII_CODE)

    assert (found.name, found.key) == (ShellJob(enabled=True).name, "cleanup")
    assert found.config.parameters == {"shell": "echo cleaning"}
    assert found.config.retries == 3
    assert found.config.timeout == timedelta(seconds=10)
    assert found.config.schedule == Cron("0/30 * * * * *")


def test_every_key_arrives() -> None:
    """Each key of ours reaches the job's configuration."""
    found = only(
        """
jobs:
  - name: north
    job: report
    cron: "0 9 * * 1-5"
    timezone: Europe/Berlin
    parameters: {region: north, deep: [1, 2.5, null, true, "x"]}
    enabled: false
    retries: 2
    backoff: {initial: 2, factor: 3, maximum: 60, jitter: 0}
    timeout: 90.5
    priority: 1
    misfire: run_all
    misfire_grace: 5
    catchup: 7
    jitter: 3
    isolation: process
    max_stalls: 4
    metadata: {team: sales}
"""
    )

    assert found == Definition(
        JobConfig(
            name="report",
            key="north",
            schedule=Cron("0 9 * * 1-5", "Europe/Berlin"),
            parameters={"region": "north", "deep": [1, 2.5, None, True, "x"]},
            retries=2,
            backoff=Backoff(timedelta(seconds=2), 3, timedelta(seconds=60), 0),
            timeout=timedelta(seconds=90.5),
            priority=1,
            misfire="run_all",
            misfire_grace=timedelta(seconds=5),
            catchup=7,
            jitter=timedelta(seconds=3),
            isolation="process",
            max_stalls=4,
            metadata={"team": "sales"},
        ),
        enabled=False,
    )


def test_defaults() -> None:
    """Defaults hold for each job that does not say otherwise, in whichever spelling."""
    found = parse(
        "source: s\ndefaults: {retries: 3, timezone: Asia/Tokyo, timeout: 9}\njobs:\n"
        "  - {name: a, cron: '* * * * *'}\n"
        "  - {name: b, every: 30, retries: 1, timeout_seconds: 7}\n"
    )

    assert [one.config.retries for one in found.jobs] == [3, 1]
    assert [one.config.timeout for one in found.jobs] == [timedelta(seconds=9), timedelta(seconds=7)]
    assert [one.config.schedule for one in found.jobs] == [
        Cron("* * * * *", "Asia/Tokyo"),
        Every(timedelta(seconds=30)),
    ]


def test_aliases() -> None:
    """An anchor and its aliases are the same data, and text that looks like a date stays text."""
    found = parse(
        "source: s\njobs:\n - {name: a, every: 1, parameters: &p {day: 2027-01-31}}\n - {name: b, every: 1, parameters: *p}"
    )

    assert [one.config.parameters for one in found.jobs] == [{"day": "2027-01-31"}] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("source: s\njobs:\n\t- name: a\n", r"line \d+.*spaces.*quote"),
        ("source: s\njobs:\n  - name: a\n    cron: */5 * * * *\n", r"line 4, column 12.*quote"),
        ("source: s\njobs:\n  - name: a\n    cron: @daily\n", r"line 4, column 11.*quote"),
        (job("metadata: !!python/object/apply:os.system ['true']"), r"tag !!python.*not allowed.*line 5"),
        (job("metadata: !!str x"), r"tag !!str.*not allowed.*line 5"),
        (job("cron: '0 * * * *'"), r"duplicate key 'cron', first on line 4 \(line 5, column 5\)"),
        (
            job("").rstrip() + "\n  - {name: a, every: 1}",
            r"duplicate job 'a', first on line 3 \(line 5, column 12\)",
        ),
        ("source: s\njobs: []\n---\njobs: []\n", "duplicate.*line 3"),
        (
            "source: s\njobs:\n  - name: a\n    shedule: '* * * * *'\n",
            r"unknown key 'shedule'.*'schedule'.*line 4, column 5",
        ),
        ("source: s\njbs: []\n", "unknown key 'jbs'.*'jobs'.*line 2"),
        (job("backoff: {inital: 1}"), "unknown key 'inital'.*'initial'.*line 5"),
        (job("retries: 010"), "retries.*'010'.*ten.*eight.*line 5, column 14"),
        (job("parameters: {at: 12:30}"), r"at.*12:30.*str.*int.*line 5"),
        ("source: s\njobs:\n  - name: NO\n", "name.*str.*bool.*line 3"),
        (job("timeout: 1e3"), "timeout.*float.*str.*line 5"),
        (job("parameters: {on: 1}"), "'on'.*str.*bool.*line 5"),
        (job("parameters: {1: x}"), "key must be a str.*int.*line 5"),
        (job("parameters: {x: .nan}"), "finite.*line 5"),
        (job('parameters: "\\ud800"'), "(surrogate|not YAML).*line 5"),
        (job('parameters: "\\0"'), "NUL.*line 5"),
        (job("parameters: {<<: {a: 1}}"), "merge.*line 5"),
        (job("parameters: &a [*a]"), "alias.*holds itself.*line 5"),
        (job("parameters: *nothing"), "alias.*no anchor.*line 5"),
        (job("job: os.system"), "job is not allowed.*registered.*line 5, column 10"),
        (job("job: builtins:exec"), "not allowed.*line 5"),
        (job("retries: -1"), r"retries must be non-negative \(>= 0\), got -1 \(line 5, column 14\)"),
        (job("retries: '3'"), "retries must be an int, got str '3' .line 5"),
        (job("retries: 2.0"), "retries must be an int.*float.*line 5"),
        (job("enabled: 1"), "enabled must be a bool, got int 1 .line 5"),
        (job("timeout: 0"), "timeout must be > 0, got 0 .line 5"),
        (job("misfire: later"), "misfire must be one of run_once, skip, run_all.*line 5"),
        (job("backoff: {factor: 0}"), "backoff.factor must be >= 1, got 0 .line 5"),
        (job("timezone: Nope/Nope"), "time zone 'Nope/Nope' is unknown .line 5, column 15"),
        ("source: s\ndefaults: {timezone: Nope}\njobs: []", "time zone 'Nope' is unknown .line 2, column 22"),
        (job("schedule: '* * * * *'"), "cron and schedule.*one of them.*line 3"),
        (job("every: 5"), "every excludes.*line 3"),
        (job("- timeout: 1"), "not YAML.*line 5"),
        (job("timeout: 1\n    timeout_seconds: 1"), "timeout and timeout_seconds.*line 3"),
        (job("command: x\n    job: y"), "job or command.*line 3"),
        (job("command: ' '"), "command cannot be empty.*line 5"),
        (job("command: []"), "command cannot be empty.*line 5"),
        (job("command: 5"), "command must be a str or a list, got int 5 .line 5"),
        (job("command: [x, 5]"), "command must be a str, got int 5 .line 5"),
        (job("command: x\n    parameters: {command: y}"), "parameters beside a command.*line 6"),
        (job("metadata: {definitions_source: x}"), "metadata must not hold.*line 5"),
        ("source: s\njobs: [{name: a}]", "needs a cron line.*line 2"),
        ("source: s\njobs: [{every: 1}]", "name is missing.*line 2"),
        ("source: s\njobs: [{name: a, cron: '* * * *'}]", "5 fields.*got 4.*line 2, column 24"),
        ("source: s\njobs: [{name: a, cron: '0 0 30 2 *'}]", "never.*line 2"),
        ("source: s\njobs: [{name: a, cron: null}]", "cron must be a str.*NoneType.*line 2"),
        ('source: s\njobs: [{name: "a\\e[2J", every: 1}]', "name must be printable.*line 2"),
        ("source: s", "jobs is missing.*line 1"),
        ("source: ' '\njobs: []", "source cannot be empty.*line 1"),
        ("jobs: []", "source is missing.*--source"),
        ("source: s\njobs: {}", "jobs? must be a list.*line 2|must be a list.*line 2"),
        ("[1]", "the document must be a mapping.*line 1"),
        ("a: \x01", r"character '\\x01' is not allowed.*line 1"),
    ],
)
def test_refused(text: str, words: str) -> None:
    """What is wrong is refused with the field, the rule, line and column; it is a ValueError too."""
    with pytest.raises(DefinitionError, match=f"(?is)^jobs.yaml: .*({words})") as caught:
        parse(text, file="jobs.yaml")
    assert isinstance(caught.value, InvalidValueError)
    assert "\n" not in str(caught.value)


NINES = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(NINES, "alias", id="nine to the ninth by aliases"),
        pytest.param("[" * 1_000_000, "deep", id="a million lists"),
        pytest.param("{a: " * 250_000, "(?s)key|deep", id="a quarter of a million mappings"),
        pytest.param("- " * 500_000, "deep", id="half a million dashes"),
        pytest.param("jobs: [" + "1," * 500_000 + "]", "too large", id="half a million values"),
        pytest.param("x" * (2 << 20), "too large", id="two megabytes"),
    ],
)
def test_bombs_are_cheap(text: str, words: str) -> None:
    """What expands or nests without end is refused in a moment, and costs little memory."""
    import tracemalloc

    def seconds() -> float:
        """This thread's own, which a busy machine does not add to."""
        began = time.thread_time()
        with pytest.raises(DefinitionError, match=words):
            parse(text, "s")
        return time.thread_time() - began

    # The best of three: a cache shared with others makes one of them slower. The dearest takes a third of a second.
    assert any(seconds() < 1 for _ in range(3))

    tracemalloc.start()
    try:
        with pytest.raises(DefinitionError, match=words):
            parse(text[: 1 << 18] if text is not NINES and words != "too large" else text, "s")
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


def test_files(tmp_path: Path) -> None:
    """A file that is missing, a directory, empty, too large or not UTF-8 is refused by name; a BOM is no harm."""
    path = tmp_path / "jobs.yaml"
    for content, words in (
        (None, "jobs.yaml: file not found"),
        (b"", "empty"),
        (b"#" * (100 << 20), "too large"),
        (b"source: s\njobs: \xff", r"UTF-8 \(line 2, column 7\)"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DefinitionError, match=words):
            load(path)
    with pytest.raises(DefinitionError, match="not found"):
        load(tmp_path)
    with pytest.raises(DefinitionError, match="too large"):
        load("/dev/zero")
    path.write_bytes(b"\xef\xbb\xbfsource: s\njobs: []\n")
    assert load(path) == Definitions("s")
    assert load(path, "other").source == "other"


def test_nothing_is_imported_or_executed(tmp_path: Path) -> None:
    """Neither tags nor names make Python look for code."""
    mark = tmp_path / "executed"
    for line in (
        f"metadata: !!python/object/apply:os.system ['touch {mark}']",
        "job: xml.dom.pulldom",
    ):
        with pytest.raises(DefinitionError):
            parse(job(line))
    assert not mark.exists()
    program = (
        "import sys; from pgscheduler.definitions import parse\n"
        "parse('source: s\\njobs: [{name: wave, every: 1}, {name: xml.dom.pulldom, every: 1}]')\n"
        "assert not {'wave', 'xml.dom.pulldom'} & sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_either_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libyaml, which some builds of PyYAML lack, documents mean the same and errors name the same place."""

    def outcome(text: str) -> Any:
        try:
            return parse(text, "s")
        except DefinitionError as error:
            return error.line

    texts = [KRONII_CODE, job("retries: 010"), job("cron: 1"), job("parameters: &a [*a]"), job("job: */5 *")]
    fast = [outcome(text) for text in texts]
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert [outcome(text) for text in texts] == fast


def keys_of(rules: Any) -> list[Any]:
    """All descriptions of keys, in a schema, with `$ref` followed."""
    found = []
    if isinstance(rules, dict):
        for name, rule in rules.get("properties", {}).items():
            target = schema()["$defs"].get(rule.get("$ref", "").rpartition("/")[2], {})
            found.append((name, rule.get("description") or target.get("description")))
        for inner in rules.values():
            found += keys_of(inner)
    if isinstance(rules, list):
        for inner in rules:
            found += keys_of(inner)
    return found


def test_schema_is_for_editors() -> None:
    """The schema is shipped in the package, is a valid JSON Schema, describes every key, and is the caller's own."""
    shipped = Path(pgscheduler.__file__).with_name("definitions.schema.json")
    assert json.loads(shipped.read_text(encoding="utf-8")) == schema()
    jsonschema.Draft202012Validator.check_schema(schema())
    described = keys_of(schema())
    assert len(described) > 40
    assert [name for name, text in described if not text] == []
    schema().clear()
    assert schema()


def test_whose_jobs_they_are(tmp_path: Path) -> None:
    """What is said at the call wins over what the file says, which wins over the fallback."""
    path = tmp_path / "jobs.yaml"
    path.write_text("jobs: []\n")
    assert load(path, fallback="c").source == "c"
    assert load(path, "a", fallback="c").source == "a"
    path.write_text("source: b\njobs: []\n")
    assert load(path, fallback="c").source == "b"
    assert load(path, "a", fallback="c").source == "a"


def test_example() -> None:
    """The example is a good file, with a job of each sort."""
    found = load(ROOT / "examples" / "jobs.yaml")

    assert found.source == "shop"
    assert {one.key: one.name for one in found.jobs} == {
        "daily_report": "daily_report",
        "monthly_report": "daily_report",
        "heartbeat": "heartbeat",
        "vacuum_uploads": "shell_job",
        "newsletter": "newsletter",
    }


def test_readme() -> None:
    """The README's file is a good one."""
    (text,) = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )

    assert [one.key for one in parse(text).jobs] == ["daily_report", "vacuum_uploads"]


def test_from_python() -> None:
    """Definitions made in Python need no YAML, and are checked as well."""
    config = JobConfig.recurring("a", "* * * * *")
    assert Definitions("s", [Definition(config)]).jobs == (Definition(config),)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="schedule must be given"):
        Definition(JobConfig.one_time("a"))
    with pytest.raises(InvalidTypeError, match="name must be a str"):
        Definition(JobConfig(schedule=Cron("* * * * *")))
    with pytest.raises(DuplicateJobError, match="duplicate job 'a'"):
        Definitions("s", (Definition(config), Definition(config)))
    with pytest.raises(InvalidTypeError, match="jobs must hold Definition"):
        Definitions("s", (config,))  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="text must be a str"):
        parse(b"jobs: []")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        None,
        "{}",
        "definitions_source",
        '{"metadata": 1, "x": "definitions_source"}',
        '{"definitions_source": "s"}',
    ],
)
def test_only_the_mark_counts(options: str | None) -> None:
    """A job without the mark, whatever else its policies hold, was declared by nobody and is not retired."""
    row = {
        "id": 1,
        "name": "a",
        "key": "a",
        "options": options,
        "schedule": "{}",
        "after_run": None,
        "state": "pending",
    }
    assert mark_of(options) is None
    assert compare("s", [], [row]).changes == ()
    mine = {**row, "options": '{"metadata":{"definitions_source":"s"}}'}
    assert [change.action for change in compare("s", [], [mine]).changes] == ["retire"]


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_command_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad file is one line with its place and status 2, before any database is looked for."""
    path = tmp_path / "jobs.yaml"
    path.write_text(job("retries: x"))

    assert main([command, str(path)]) == 2
    assert capsys.readouterr().err == (
        "pgscheduler: error: jobs.yaml: retries must be an int, got str 'x' (line 5, column 14)\n"
    )


def test_threads_may_parse_at_once() -> None:
    """Nothing is shared between two readers."""
    found: list[Definition] = []
    threads = [threading.Thread(target=lambda: found.append(only(KRONII_CODE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [only(KRONII_CODE)] * 4
