"""The command without a database: bad input, exit codes, what it prints, and `cron`."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from pgscheduler import cli
from pgscheduler.cli import main, one_line, printable
from pgscheduler.cli._options import log_settings
from pgscheduler.cli._serve import port_of
from tests.support import ROOT

COMMAND = [sys.executable, "-m", "pgscheduler"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [n for n in os.environ if n.startswith("PGSCHEDULER_")] + ["DATABASE_URL"]:
        monkeypatch.delenv(name, raising=False)
    yield
    structlog.reset_defaults()  # `run` sets it up for its whole process


def spawn(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen([*COMMAND, *arguments], env=env, text=True, **options)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "usage"),
        (["frobnicate"], 2, "usage"),
        (["jobs"], 1, "--dsn.*PGSCHEDULER_DSN"),
        (["jobs", "--dsn", ""], 2, "dsn.*empty"),
        (["jobs", "--dsn", "nonsense"], 2, "dsn.*invalid"),
        (["jobs", "--dsn", "host=x", "--table-prefix", "a-b"], 2, "table_prefix"),
        (["jobs", "--limit", "0"], 2, "limit"),
        (["jobs", "--state", "completed"], 2, "state"),
        (["runs", "--since", "yesterday"], 2, "--since.*ISO"),
        (["enqueue", "a", "--params", "{bad"], 2, r"params.*JSON.*line 1 column 2"),
        (["enqueue", "a", "--params", '{"a": NaN}'], 2, "params.*NaN"),
        (["enqueue", "a", "--params", "[" * 100_000], 2, "params.*JSON"),
        (["enqueue", "a", "--params", "@missing.json"], 2, "params.*cannot read"),
        (["enqueue", "a", "--params", "@/"], 2, "params.*cannot read"),
        (["enqueue", "a", "--params", "@/dev/zero"], 2, "params.*too large"),
        (["enqueue", "a", "--at", "tomorrow"], 2, "--at.*ISO"),
        (["enqueue", "a", "--at", "2027-01-31T09:00"], 2, "--at.*offset"),
        (["enqueue", "a", "--at", "2027-01-31T09:00Z", "--delay", "3"], 2, "--at.*--delay"),
        (["enqueue", "a", "--delay", "nan", "--dsn", "host=x"], 2, "finite"),
        (["cron", "* * * *"], 2, "5 fields"),
        (["cron", "0 0 30 2 *"], 2, "never"),
        (["cron", "* * * * *", "--timezone", "Nope/Nope"], 2, "time zone.*Nope"),
        (["cron", "* * * * *", "--from", "noon"], 2, "--from.*ISO"),
        (["run", "no_such_module_here"], 1, "cannot import.*no_such_module_here"),
        (["run", "jobs.yaml"], 1, "cannot import.*--config jobs.yaml"),
        (["run", "json:nothing"], 1, "cannot import.*nothing.*json"),
        (["run", "json:decoder"], 1, "cannot import.*decoder.*json"),
        (["run", "json:JSONDecoder"], 1, "cannot import.*JSONDecoder.*json"),
        (["run", "json:dumps"], 1, "cannot import.*json.*dumps.*TypeError"),
        (["run", "json"], 1, "cannot import.*json.*no Job"),
        (["jobs", "--dsn", "postgresql://me@127.0.0.1:1/x"], 1, "cannot connect.*host"),
    ],
)
def test_each_failure_is_one_line(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong input ends with 2, a failure with 1; one line on stderr says why, and nothing is on stdout."""
    assert main(arguments) == status

    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("pgscheduler: error: ")
    assert re.search(words, said.err), said.err


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise SystemExit", "SystemExit"),
        ("def run(:", r"SyntaxError: invalid syntax \(faulty.py, line 1\)"),
        ("import no_such_module_here", "ModuleNotFoundError: .*no_such_module_here"),
        ("raise BaseException('of two\\nlines \\x1b[31m')", r"BaseException: of two lines \\x1b\[31m"),
    ],
)
def test_a_module_that_raises_at_its_import(
    code: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the user's own module raises is told in one line, with status 1: also what would end the process."""
    (tmp_path / "faulty.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PGSCHEDULER_DSN", "host=nowhere.invalid")

    assert main(["run", "faulty"]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert re.match(f"pgscheduler: error: cannot import module 'faulty': {words}", line), line


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """--debug adds the traceback, and the one line stays the last."""
    assert main(["run", "no_such_module_here", "--debug"]) == 1

    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("pgscheduler: error: cannot import")


@pytest.mark.parametrize("debug", [[], ["--debug"]])
@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:hunter2@127.0.0.1:1/x",
        "postgresql://me:hunter2@127.0.0.1/x?bogus=1",
        "postgres//me:hunter2@127.0.0.1/x",
        "postgresql://me:a@hunter2@127.0.0.1:1/x",
        "postgresql://me:a@b:hunter2@127.0.0.1:1/x",
        "host=127.0.0.1 port=1 password='hunter2",
        "host=127.0.0.1 port=1 password=a hunter2",
    ],
)
def test_no_password_is_shown(dsn: str, debug: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with a DSN, its password is in no output."""
    assert main(["jobs", "--dsn", dsn, *debug]) in (1, 2)

    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err


def test_help_documents_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """--help lists every command and every exit code."""
    assert main(["--help"]) == 0

    said = capsys.readouterr().out
    for word in ("demo", "run", "migrate", "jobs", "runs", "nodes", "cancel", "pause", "resume", "trigger",
                 "delete", "logs", "stats", "doctor", "enqueue", "cron", "  0 ", "  1 ", "  2 ", "  130 "):  # fmt: skip
        assert word in said


def test_every_file_of_commands_is_loaded() -> None:
    """A file with commands that is not listed would be no command at all."""
    files = Path(cli.__file__).parent.glob("[!_]*.py")
    assert sorted(file.stem for file in files) == sorted(cli.MODULES)


def test_a_closed_pipe_is_no_error() -> None:
    """`pgscheduler … | head -1` ends without a traceback, with 0 or 141."""
    process = spawn(
        "cron", "* * * * *", "--count", "1000", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()

    assert process.wait(30) == 141  # more than a pipe holds was to be written, so it must have noticed
    assert errors == ""


def test_a_locale_without_unicode_is_no_error() -> None:
    """What the locale cannot say is written in escapes."""
    arguments = ["cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--from", "2027-03-28", "--count", "1"]
    process = spawn(
        *arguments, env={"PYTHONIOENCODING": "ascii"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, errors = process.communicate(timeout=30)

    assert process.returncode == 0
    assert errors == ""
    assert out.isascii()
    assert "02:00" in out


def test_missing_extras_are_named() -> None:
    """Without click, one line names the extra that brings it."""
    block = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from pgscheduler.__main__ import main\n"
        "main()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, env=env, check=False
    )

    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.splitlines() == [
        'pgscheduler: error: the command needs click and rich: pip install "pgscheduler[cli]"'
    ]


def test_a_terminal_gets_colour_and_a_pipe_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences are written to a terminal only."""
    leader, follower = pty.openpty()
    process = spawn("cron", "@daily", stdout=follower, stderr=follower, env={"TERM": "xterm", "NO_COLOR": ""})
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # Linux: the other end is closed
        pass
    os.close(leader)
    assert process.wait(30) == 0
    assert b"\x1b[" in shown

    assert main(["cron", "@daily"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_stored_text_cannot_move_the_cursor() -> None:
    """Control characters that a job left in an error or a log line are escaped."""
    assert one_line("a\x1b[2Jb\nc\u202e") == "a\\x1b[2Jb c\\u202e"
    assert printable("a\x1b\nb\r") == "a\\x1b\nb\\r"


def test_each_process_has_a_port_of_its_own() -> None:
    """They count up; 0 stays any free one, and none stays none."""
    assert [port_of(3000, place) for place in range(3)] == [3000, 3001, 3002]
    assert (port_of(0, 2), port_of(None, 2)) == (0, None)


# --- cron ----------------------------------------------------------------------------------------------


def occurrences(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["cron", *arguments, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["occurrences"]
    return found


def test_cron_marks_the_day_on_which_the_clock_goes_forward(capsys: pytest.CaptureFixture[str]) -> None:
    """The skipped 02:30 runs at 03:00, the day is marked, and its neighbours are not."""
    found = occurrences(
        capsys, "30 2 * * *", "--timezone", "Europe/Berlin", "--from", "2027-03-26T12:00", "--count", "3"
    )

    assert [(r["local"], r["offset"], r["utc"], r["note"]) for r in found] == [
        ("2027-03-27T02:30:00", "+01:00", "2027-03-27T01:30:00Z", None),
        ("2027-03-28T03:00:00", "+02:00", "2027-03-28T01:00:00Z", "02:00 → 03:00, 1 h skipped"),
        ("2027-03-29T02:30:00", "+02:00", "2027-03-29T00:30:00Z", None),
    ]


def test_cron_marks_the_day_on_which_the_clock_goes_back(capsys: pytest.CaptureFixture[str]) -> None:
    """The same wall-clock time twice is told apart by its offset."""
    found = occurrences(
        capsys,
        "0 * * * *",
        "--timezone",
        "Europe/Berlin",
        "--from",
        "2027-10-31T01:30:00+02:00",
        "--count",
        "3",
    )

    assert [(r["local"], r["offset"], r["abbreviation"]) for r in found] == [
        ("2027-10-31T02:00:00", "+02:00", "CEST"),
        ("2027-10-31T02:00:00", "+01:00", "CET"),
        ("2027-10-31T03:00:00", "+01:00", "CET"),
    ]
    assert {r["note"] for r in found} == {"03:00 → 02:00, 1 h shown twice"}


@pytest.mark.parametrize(
    ("zone", "day", "note"),
    [
        ("Australia/Lord_Howe", "2027-10-03", "02:00 → 02:30, 30 min skipped"),
        ("Africa/Cairo", "2027-04-30", "00:00 → 01:00, 1 h skipped"),
        ("America/Havana", "2027-11-07", "01:00 → 00:00, 1 h shown twice"),
        ("UTC", "2027-03-28", None),
    ],
)
def test_cron_notes(zone: str, day: str, note: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """The note tells when, from what to what, and how much, also for half hours and at midnight."""
    (found,) = occurrences(capsys, "0 12 * * *", "--timezone", zone, "--from", day, "--count", "1")

    assert found["local"].startswith(day)
    assert found["note"] == note


def test_cron_shows_ten_by_default_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Without options: ten lines and a heading, in UTC."""
    assert main(["cron", "*/10 * * * * *", "--from", "2027-01-01"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert "2027-01-01T00:00:10Z" in lines[1]


def test_cron_knows_the_zone_in_the_expression(capsys: pytest.CaptureFixture[str]) -> None:
    """A CRON_TZ prefix decides in which zone times are shown."""
    (found,) = occurrences(
        capsys, "CRON_TZ=Asia/Tokyo 0 9 * * *", "--from", "2027-01-01T00:00", "--count", "1"
    )

    assert (found["local"], found["utc"]) == ("2027-01-01T09:00:00", "2027-01-01T00:00:00Z")


def test_cron_explains_that_nothing_follows(capsys: pytest.CaptureFixture[str]) -> None:
    """At the end of the calendar it says that there is nothing more, and ends well."""
    assert main(["cron", "0 0 1 1 *", "--from", "9998-06-01T00:00:00Z"]) == 0

    said = capsys.readouterr().out
    assert "9999-01-01" in said
    assert "never after that" in said


def test_the_script_for_a_dba_needs_no_database(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`migrate --print` prints one transaction with the prefix in it, as SQL or as JSON."""
    assert main(["migrate", "--print", "--table-prefix", "shop_"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("begin;")
    assert '"public"."shop_jobs"' in text

    assert main(["migrate", "--print", "--table-prefix", "shop_", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sql"].strip() == text.strip()


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "text", ['x\n{"level":"error"}', "x\x1b[2J", "x\x1b[2J y", "a\u202eb", "a\u2028b", "a\rb"]
)
def test_a_log_line_stays_on_its_line(text: str, as_json: bool) -> None:
    """Whatever a value holds: one printable line, in which it can be recognised."""
    written = io.StringIO()
    log = structlog.wrap_logger(structlog.WriteLogger(written), **log_settings("info", as_json))
    log.error("run failed", job="a", error=text)
    line = written.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert "level" in line or text[0] in line


def test_a_traceback_in_the_log_has_its_lines() -> None:
    """For a terminal a traceback has one line for each of its own, and nothing that the terminal obeys."""
    written = io.StringIO()
    log = structlog.wrap_logger(structlog.WriteLogger(written), **log_settings("info"))
    try:
        raise ValueError("clear \x1b[2J")
    except ValueError as error:
        log.error("loop failed", exc_info=error)
    lines = written.getvalue().splitlines()
    assert len(lines) > 3
    assert all(line.isprintable() for line in lines)
    assert lines[-1].endswith(r"ValueError: clear \x1b[2J")
