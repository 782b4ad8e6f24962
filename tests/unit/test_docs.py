"""What the README says is true: its tables are compared with the code, and its program runs."""

from __future__ import annotations

import ast
import dataclasses
import enum
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import pgscheduler
from pgscheduler import Backoff, Cron, InvalidCronError, JobConfig, Outcome, Scheduler, SchedulerConfig
from tests.support import ROOT, eventually
from tests.support.processes import hears

README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no section {title}"
    return found[1]


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the table whose first column has this heading."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def code(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def written(default: Any) -> str:
    """A default as the tables write it."""
    if isinstance(default, timedelta):
        if not default:
            return "0"
        for unit, length in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
            if default % timedelta(seconds=length) == timedelta(0):
                return f"{default // timedelta(seconds=length)} {unit}"
        return f"{default // timedelta(milliseconds=1)} ms"
    if isinstance(default, str) and not isinstance(default, enum.Enum):
        return f'"{default}"'
    return "Backoff()" if default == Backoff() else repr(default)


def defaults(kind: type[Any]) -> list[list[str]]:
    """Each field of a dataclass and its default, as the tables write them."""
    rows = []
    for item in dataclasses.fields(kind):
        factory = item.default_factory
        default = item.default if factory is dataclasses.MISSING else factory()
        rows.append([f"`{item.name}`", f"`{written(default)}`"])
    return rows


def test_settings() -> None:
    """The table of settings has every field of SchedulerConfig, in its order, with its default and a reason."""
    rows = table(section("Settings"), "setting")
    assert [row[:2] for row in rows] == defaults(SchedulerConfig)
    assert all(len(row) == 3 and row[2] for row in rows)


def test_job_options() -> None:
    """The table of job options has every field of JobConfig, with its default and meaning."""
    rows = table(section("Jobs"), "option")
    assert [row[:2] for row in rows] == defaults(JobConfig)
    assert all(len(row) == 3 and row[2] for row in rows)


def test_outcomes() -> None:
    """Every way in which a run can end is explained, and no other."""
    assert [row[0] for row in table(section("Jobs"), "outcome")] == [f"`{outcome}`" for outcome in Outcome]


def test_verbs() -> None:
    """The table of verbs has every method of a scheduler but those of its own life."""
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in table(section("Jobs"), "verb")))
    life = {"init", "start", "shutdown", "abandon", "wait_for_signal"}
    methods = {n for n in dir(Scheduler) if not n.startswith("_") and callable(getattr(Scheduler, n))}
    assert sorted(named) == sorted(methods - life)


def test_commands() -> None:
    """The table of commands has those that exist: a new one is written down, or fails here."""
    click = pytest.importorskip("click")
    from pgscheduler import cli

    rows = table(section("The command"), "command")
    named = [row[0].strip("`").split()[0] for row in rows]
    group = cli.cli
    assert sorted(named) == sorted(group.list_commands(click.Context(group)))
    # `--json` is promised for each, and the arguments are spelt as the command spells them.
    for (signature, _), name in zip(rows, named, strict=True):
        command = group.commands[name]
        for one in command.commands.values() if isinstance(command, click.Group) else [command]:
            assert any("--json" in parameter.opts for parameter in one.params), (name, one.name)
        arguments = [p for p in command.params if isinstance(p, click.Argument) and p.required]
        assert signature.strip("`").split()[1:] == [a.metavar or (a.name or "").upper() for a in arguments]


def test_the_two_commands() -> None:
    """The two lines that a newcomer copies are there, word for word."""
    assert code("sh")[:2] == [
        'python3 -m venv .venv && .venv/bin/pip install -e ".[all]" && .venv/bin/pgscheduler demo\n',
        'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/pytest -n 3\n',
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"all", "test", "cli", "embedded"} <= set(project["optional-dependencies"])
    assert "pgscheduler" in project["scripts"]


def test_names_exist() -> None:
    """Every name that the README's programs import is public."""
    for text in code("python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module == "pgscheduler":
                assert {alias.name for alias in node.names} <= set(pgscheduler.__all__)


def test_links_lead_to_files() -> None:
    """A link to a file of the project leads to one."""
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def imported(path: Path) -> set[str]:
    """The modules of the package that a module imports when it runs, not only for the type checker."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and id(node) not in hidden:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


def test_layers() -> None:
    """Every module is in the table of layers, and imports only what is below it, or left of it."""
    rank = {}
    for layer, modules, _ in table(section("Development"), "layer"):
        for index, name in enumerate(re.findall(r"`(\w+)/?`", modules)):
            rank[name] = (int(layer), index)
    package = ROOT / "pgscheduler"
    files = {path.stem: path for path in package.glob("*.py") if not path.stem.startswith("__")}
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(rank) == sorted(files.keys() | folders)
    wrong = [
        f"{name} imports {other}"
        for name in files
        for other in imported(files[name])
        if rank[other] >= rank[name]
    ]
    assert wrong == []


def test_cron_dialect() -> None:
    """What the README says of cron lines holds for each of its examples."""
    text = section("Cron lines")
    for spelling, expression in {
        "`L`": "0 0 L * *",
        "`fri#2`": "0 0 * * fri#2",
        "`L5`": "0 0 * * L5",
        "`@daily`": "@daily",
        "`@every 1h30m`": "@every 1h30m",
        "`CRON_TZ=Europe/Berlin`": "CRON_TZ=Europe/Berlin 0 9 * jan mon",
        "seconds first": "*/10 * * * * *",
    }.items():
        assert spelling in text.replace("*", "")
        assert Cron(expression)
    for spelling, expression in {
        "`5-1`": "5-1 * * * *",
        "`*/90`": "*/90 * * * *",
        "`R`": "R * * * *",
        "`H`": "H * * * *",
        "`@reboot`": "@reboot",
        "seven fields": "* * * * * * *",
        "`0 0 30 2 *`": "0 0 30 2 *",
    }.items():
        assert spelling in text
        with pytest.raises(InvalidCronError):
            Cron(expression)


def test_changelog_has_this_version() -> None:
    """The version that is installed has its entry."""
    assert re.search(
        rf"^## \[{re.escape(pgscheduler.__version__)}\] - \d{{4}}-\d\d-\d\d$", CHANGELOG, re.MULTILINE
    )


def test_smallest_program_runs(empty_dsn: str, tmp_path: Path) -> None:
    """The README's program runs as it stands, does what it says, and ends in good order at SIGTERM."""
    program = tmp_path / "app.py"
    program.write_text(code("python")[0], encoding="utf-8")
    environment = {**os.environ, "PGSCHEDULER_DSN": empty_dsn, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, str(program)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        # A program that says nothing is not waited for: the watchdog closes its output, and the loop ends.
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if line == "welcome, user 42\n":
                    # The job may be faster than the program's last line, from which on it hears signals.
                    eventually(lambda: hears(process.pid, signal.SIGTERM), timeout=30)
                    process.send_signal(signal.SIGTERM)
            assert process.wait() == 0, "".join(said)
            assert "welcome, user 42\n" in said
        finally:
            watchdog.cancel()
            process.kill()
