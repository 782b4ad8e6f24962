"""Settings from outside: what other programs' variables and a TOML file may say, and which of them wins."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from psycopg.conninfo import conninfo_to_dict

from pgscheduler import InvalidTypeError, InvalidValueError, SchedulerConfig
from pgscheduler.cli import main
from pgscheduler.cli.run import run
from tests.support import ROOT

URL = "postgresql://app:hunter2@db.example/shop"


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """`file(text)`: a settings file; its path."""

    def write(text: str | bytes) -> str:
        path = tmp_path / "pgscheduler.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


# --- variables of other programs ---------------------------------------------------------------------


def test_the_variables_of_kronii() -> None:
    """DATABASE_URL and WORKER_COUNT mean here what they mean there; without WORKER_COUNT it is our own default."""
    config = SchedulerConfig.from_env({"DATABASE_URL": URL, "WORKER_COUNT": "5"})
    assert (config.dsn, config.max_concurrent_jobs) == (URL, 5)
    assert SchedulerConfig.from_env({"DATABASE_URL": URL}).max_concurrent_jobs == 10
    assert SchedulerConfig.from_env({"DATABASE_URL": URL, "WORKER_COUNT": ""}).max_concurrent_jobs == 10


def test_the_variables_of_cron_service() -> None:
    """DB_USER and its kin are a database, whatever is in the password; Redis and its queue have no meaning here."""
    environment = {
        "DB_USER": "app",
        "DB_HOST": "db.example",
        "DB_DATABASE": "shop",
        "DB_PASSWORD": "it's a \\ hunter2@/",
        "DB_PORT": "5433",
        "REDIS_HOST": "redis",
        "QUEUE_NAME": "cron-tasks",
    }
    config = SchedulerConfig.from_env(environment)
    assert conninfo_to_dict(config.conninfo) == {
        "user": "app",
        "host": "db.example",
        "dbname": "shop",
        "password": "it's a \\ hunter2@/",
        "port": "5433",
    }
    assert config.table_prefix == "pgscheduler_"
    assert conninfo_to_dict(SchedulerConfig.from_env({"DB_USER": "app"}).conninfo) == {"user": "app"}


def test_a_host_without_a_user_is_no_database() -> None:
    """DB_USER decides: DB_HOST alone may be that of some other program's database."""
    with pytest.raises(InvalidValueError, match="exactly one of dsn and pool"):
        SchedulerConfig.from_env({"DB_HOST": "db.example", "DB_DATABASE": "shop"})


def test_our_own_variables_win() -> None:
    """PGSCHEDULER_DSN before DATABASE_URL before DB_USER; PGSCHEDULER_MAX_CONCURRENT_JOBS before WORKER_COUNT."""
    environment = {"DB_USER": "a", "DATABASE_URL": "service=b", "WORKER_COUNT": "5"}
    assert SchedulerConfig.from_env(environment).dsn == "service=b"
    environment |= {"PGSCHEDULER_DSN": "service=c", "PGSCHEDULER_MAX_CONCURRENT_JOBS": "7"}
    config = SchedulerConfig.from_env(environment)
    assert (config.dsn, config.max_concurrent_jobs) == ("service=c", 7)


# --- the file -----------------------------------------------------------------------------------------


def test_a_file_holds_every_kind_of_setting(file: Any) -> None:
    """Keys are the fields' names, durations are seconds; the table `run` belongs to the command."""
    path = file(
        f'dsn = "{URL}"\nmax_concurrent_jobs = 3\nheartbeat_interval = 2.5\nlisten = false\nschema = "jobs"\n'
        "[run]\nprocesses = 2\n"
    )
    config = SchedulerConfig.from_env({}, file=path)
    assert config == SchedulerConfig(
        dsn=URL, max_concurrent_jobs=3, heartbeat_interval=timedelta(seconds=2.5), listen=False, schema="jobs"
    )
    assert SchedulerConfig.from_env({"PGSCHEDULER_SETTINGS": path}) == config


@pytest.mark.parametrize(
    ("argument", "variable", "in_file", "expected"),
    [(1, 2, 3, 1), (None, 2, 3, 2), (None, None, 3, 3), (None, None, None, 10)],
)
def test_who_wins(
    file: Any, argument: int | None, variable: int | None, in_file: int | None, expected: int
) -> None:
    """Argument, then environment, then file, then default."""
    environment = {} if variable is None else {"WORKER_COUNT": str(variable)}
    path = file(f'dsn = "{URL}"\n' + ("" if in_file is None else f"max_concurrent_jobs = {in_file}\n"))
    given = {} if argument is None else {"max_concurrent_jobs": argument}
    assert SchedulerConfig.from_env(environment, file=path, **given).max_concurrent_jobs == expected


def test_every_variable_wins_over_the_file(file: Any) -> None:
    """DATABASE_URL does, too: a deploy says where the database is, a file in the repository does not know."""
    path = file('dsn = "service=file"\n')
    assert SchedulerConfig.from_env({"DATABASE_URL": "service=a"}, file=path).dsn == "service=a"
    assert SchedulerConfig.from_env({"DB_USER": "a"}, file=path).dsn == "user=a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('heartbeat_intervall = 3\n', r"^pgscheduler\.toml holds an unknown setting \(did you mean heartbeat_interval\?\)"),
        ('pool = "x"\n', r"^pgscheduler\.toml holds an unknown setting.*'pool'"),
        ('password = "hunter2"\n', r"^pgscheduler\.toml holds an unknown setting"),
        ('dsn = "hunter2\n', r"^pgscheduler\.toml is not TOML: .*line 1"),
        ('dsn = hunter2\n', r"^pgscheduler\.toml is not TOML: .*line 1"),
        (b'dsn = "\xff"\n', r"^pgscheduler\.toml is not UTF-8"),
        ("max_concurrent_jobs = 0\n", r"^max_concurrent_jobs must be >= 1, got 0 \(from pgscheduler\.toml\)$"),
        ('max_concurrent_jobs = "3"\n', r"^max_concurrent_jobs must be an int, got str '3' \(from pgscheduler\.toml\)$"),
        ("heartbeat_interval = 1e99\n", r"^heartbeat_interval must be <= .* \(from pgscheduler\.toml\)$"),
        ("heartbeat_interval = 2027-01-31\n", r"^heartbeat_interval must be a timedelta or a number"),
        ("heartbeat_interval = 200\n", r"^no_heartbeat_timeout must be at least 3 times.*\(from pgscheduler\.toml\)$"),
        ("listen = 1\n", r"^listen must be a bool, got int 1 \(from"),
        ("dsn = 5\n", r"^dsn must be a str \(its value is not shown\).*\(from"),
        ('dsn = "host=x hunter2"\n', r"^dsn is invalid.*\(from pgscheduler\.toml\)$"),
    ],
)  # fmt: skip
def test_a_bad_file(file: Any, text: str | bytes, message: str) -> None:
    """The file, the key and the rule are named; what stands there is shown only where it cannot be a secret."""
    if isinstance(text, str) and not text.startswith("dsn"):
        text = f'dsn = "{URL}"\n{text}'
    with pytest.raises((InvalidValueError, InvalidTypeError), match=message) as caught:
        SchedulerConfig.from_env({"PGSCHEDULER_TABLE_PREFIX": "shop_"}, file=file(text))
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [("/no/such/file.toml", "No such file"), ("/", "directory"), ("/dev/zero", "too large")],
)
def test_a_file_that_cannot_be_read(path: str, words: str) -> None:
    """One that is named must be there, and be of a size."""
    with pytest.raises(InvalidValueError, match=f"^settings .*{words}"):
        SchedulerConfig.from_env({"DATABASE_URL": URL}, file=path)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORKER_COUNT": "five"}, r"^WORKER_COUNT must be a whole number, got 'five'$"),
        ({"WORKER_COUNT": "0"}, r"^max_concurrent_jobs must be >= 1, got 0 \(from WORKER_COUNT\)$"),
        ({"DATABASE_URL": "mysql://app:hunter2@db/x"}, r"^dsn is invalid.*\(from DATABASE_URL\)$"),
        ({"DATABASE_URL": "", "DB_USER": "a", "DB_PORT": "hunter"}, r"^DB_PORT must be a port.*got 'hunter'$"),
        ({"DATABASE_URL": "", "DB_USER": "a", "DB_PORT": "0"}, r"^DB_PORT must be a port from 1 to 65535, got '0'$"),
        ({"PGSCHEDULER_TABLE_PREFIX": "a-b"}, r"^table_prefix must match.*\(from PGSCHEDULER_TABLE_PREFIX\)$"),
        ({"PGSCHEDULER_CONNECT_TIMEOUT": "-1"}, r"^connect_timeout must be > 0, got -1\.0 \(from PGSCHEDULER_"),
    ],
)  # fmt: skip
def test_a_bad_variable(environment: dict[str, str], message: str) -> None:
    """The variable, the value and the rule are named."""
    with pytest.raises(InvalidValueError, match=message) as caught:
        SchedulerConfig.from_env({"DATABASE_URL": URL, **environment})
    assert "hunter2" not in str(caught.value)


def test_an_argument_is_not_blamed_on_the_environment() -> None:
    """Only what came from a variable or the file is said to."""
    with pytest.raises(InvalidValueError, match=r"^max_concurrent_jobs must be >= 1, got 0$"):
        SchedulerConfig.from_env({"DATABASE_URL": URL, "WORKER_COUNT": "5"}, max_concurrent_jobs=0)


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is a good file, for a scheduler and for the command."""
    config = SchedulerConfig.from_env({}, file=ROOT / "examples" / "settings.toml")
    assert (config.table_prefix, config.history_retention) == ("shop_", timedelta(days=7))
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/x")
    monkeypatch.chdir(ROOT)
    context = run.make_context("run", ["--settings", "examples/settings.toml"])
    assert {
        name: context.params[name] for name in ("config", "allow_shell", "processes", "metrics_port")
    } == {
        "config": "examples/jobs.yaml",
        "allow_shell": True,
        "processes": 4,
        "metrics_port": 3000,
    }


# --- in the command -----------------------------------------------------------------------------------


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Any]:
    """`command(*arguments, **environment)`: run it in an empty directory; its status and its one line."""
    for name in list(os.environ):
        if name.startswith(("PGSCHEDULER_", "DB_")) or name in (
            "DATABASE_URL",
            "WORKER_COUNT",
            "METRICS_PORT",
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        with monkeypatch.context() as context:
            for name, value in environment.items():
                context.setenv(name, value)
            status = main(list(arguments))
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        return status, line

    yield run
    structlog.reset_defaults()  # `run` sets it up for its whole process


#: A port at which nobody listens: what is asked for is found, and then is not there.
NOWHERE = "postgresql://me:hunter2@127.0.0.1:1/x"


def test_the_command_without_a_database(command: Any) -> None:
    """One line says where it may be named, and the status is 1, also for `run` with nothing else."""
    for arguments in (["jobs"], ["run"], ["worker"], ["scheduler"], ["doctor"], ["migrate"]):
        status, line = command(*arguments)
        assert status == 1
        for word in ("no database", "--dsn", "DATABASE_URL", "DB_USER", "pgscheduler.toml"):
            assert word in line


def test_the_command_finds_its_file(command: Any, tmp_path: Path) -> None:
    """pgscheduler.toml in the current directory, or --settings, or PGSCHEDULER_SETTINGS; options win over it."""
    (tmp_path / "pgscheduler.toml").write_text('schema = "a-b"\n')
    assert "from pgscheduler.toml" in command("jobs", "--dsn", NOWHERE)[1]
    status, line = command("jobs", "--dsn", NOWHERE, "--schema", "jobs")
    assert (status, "cannot connect" in line) == (1, True)
    (tmp_path / "other.toml").write_text(f'dsn = "{NOWHERE}"\n')
    assert "cannot connect" in command("jobs", "--settings", "other.toml")[1]
    assert "cannot connect" in command("jobs", PGSCHEDULER_SETTINGS="other.toml")[1]
    assert "cannot be read" in command("jobs", "--settings", "none.toml")[1]


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (
            ["jobs", "--dsn", NOWHERE, "--prefix", "a-b"],
            {},
            "table_prefix must match.*'a-b' \\(from --table-prefix\\)",
        ),
        (["jobs", "--database-url", "host=x hunter2"], {}, "dsn is invalid.*\\(from --dsn\\)"),
        (["jobs"], {"DATABASE_URL": "host=x hunter2"}, "dsn is invalid.*\\(from DATABASE_URL\\)"),
        (["run", "json", "--dsn", NOWHERE, "--max-concurrency", "x"], {}, "--max-concurrency.*'x'"),
        (
            ["scheduler", "--dsn", NOWHERE, "--max-concurrency", "0"],
            {},
            "max_concurrent_jobs must be >= 1, got 0",
        ),
        (["scheduler", "--dsn", NOWHERE], {"METRICS_PORT": "many"}, "'many' is not.*\\(from METRICS_PORT\\)"),
        (["scheduler", "--dsn", NOWHERE, "--metrics-port", "65536"], {}, "--metrics-port.*65536"),
        (["scheduler", "--dsn", NOWHERE], {"WORKER_COUNT": "many"}, "WORKER_COUNT must be a whole number"),
        (["scheduler", "--dsn", NOWHERE, "--processes", "0"], {}, "--processes.*0"),
    ],
)
def test_a_bad_value_is_named(
    command: Any, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    """Flag, variable or field, the value and the rule, in one line; status 2; never a password."""
    status, line = command(*arguments, **environment)
    assert status == 2
    assert re.search(words, line), line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    "environment",
    [
        {"DATABASE_URL": NOWHERE},
        {"DB_USER": "me", "DB_HOST": "127.0.0.1", "DB_PORT": "1", "DB_PASSWORD": "hunter2"},
    ],
)
def test_a_connection_that_fails_shows_no_password(command: Any, environment: dict[str, str]) -> None:
    """What libpq says of a failed connection is told without the conninfo."""
    status, line = command("jobs", **environment)
    assert (status, "cannot connect" in line, "hunter2" in line) == (1, True, False)


def test_the_table_run_holds_defaults_for_options(command: Any, tmp_path: Path) -> None:
    """It is for run, worker and scheduler; an option and a variable win over it, an unknown key is refused."""
    settings = tmp_path / "pgscheduler.toml"
    settings.write_text(f'dsn = "{NOWHERE}"\n[run]\nconfig = "nowhere.yaml"\n')
    assert "nowhere.yaml: file not found" in command("run")[1]
    assert "other.yaml: file not found" in command("scheduler", "--config", "other.yaml")[1]
    settings.write_text(f'dsn = "{NOWHERE}"\n[run]\nmetrics_port = "many"\n')
    assert "'many'" in command("scheduler")[1]
    assert "'several'" in command("scheduler", METRICS_PORT="several")[1]
    settings.write_text(f'dsn = "{NOWHERE}"\n[run]\nproceses = 3\n')
    status, line = command("worker")
    assert (status, "did you mean processes?" in line) == (2, True)
    settings.write_text(f'dsn = "{NOWHERE}"\nrun = 5\n')
    assert "must be a table" in command("worker")[1]
