"""The settings of a scheduler: their defaults, their conversion, and what the environment may say."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from psycopg_pool import ConnectionPool

from pgscheduler import InvalidValueError, PgSchedulerError, Scheduler, SchedulerConfig

DSN = "postgresql://app:hunter2@db.example/shop"

#: The agreed defaults. Changing one changes what a running fleet does, so it takes a second place to edit.
DEFAULTS: dict[str, Any] = {
    "dsn": None,
    "pool": None,
    "pool_size": 4,
    "max_concurrent_jobs": 10,
    "job_check_interval": timedelta(minutes=1),
    "orphaned_job_timeout": timedelta(days=14),
    "heartbeat_interval": timedelta(seconds=30),
    "no_heartbeat_timeout": timedelta(minutes=5),
    "create_schema": False,
    "logger": None,
    "run_immediately": False,
    "table_prefix": "pgscheduler_",
    "schema": "public",
    "shutdown_timeout": timedelta(seconds=30),
    "failed_and_completed_one_time_job_interval": timedelta(hours=1),
    "history_retention": timedelta(days=30),
    "history_keep_completed": None,
    "history_keep_failed": None,
    "notification_debounce_interval": timedelta(milliseconds=5),
    "listen": True,
    "listen_dsn": None,
    "prepared_statements": True,
    "connect_timeout": timedelta(seconds=5),
    "max_parameters_bytes": 65536,
}


def test_defaults() -> None:
    """A scheduler that is told nothing but its database behaves as agreed."""
    config = SchedulerConfig(dsn=DSN)
    found = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    assert found == {**DEFAULTS, "dsn": DSN}


def test_frozen() -> None:
    """What was checked is what runs: a setting cannot be changed afterwards."""
    config = SchedulerConfig(dsn=DSN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_concurrent_jobs = 5  # type: ignore[misc]


def test_positional_arguments_are_refused() -> None:
    """Settings have names; nobody has to count."""
    with pytest.raises(TypeError, match="positional"):
        SchedulerConfig(DSN)  # type: ignore[misc]


def test_copy_is_checked_again() -> None:
    """`dataclasses.replace` makes another checked value."""
    config = SchedulerConfig(dsn=DSN)
    assert dataclasses.replace(config, max_concurrent_jobs=3).max_concurrent_jobs == 3
    with pytest.raises(InvalidValueError, match="max_concurrent_jobs"):
        dataclasses.replace(config, max_concurrent_jobs=0)


@pytest.mark.parametrize("given", [90, 90.0, timedelta(seconds=90)])
def test_durations(given: Any) -> None:
    """A duration is a timedelta, and a number is seconds."""
    assert SchedulerConfig(dsn=DSN, job_check_interval=given).job_check_interval == timedelta(seconds=90)


def test_shutdown_at_once_is_allowed() -> None:
    """No time for shutdown is a choice, unlike a negative one."""
    assert SchedulerConfig(dsn=DSN, shutdown_timeout=0).shutdown_timeout == timedelta(0)  # type: ignore[arg-type]


def test_boundaries_are_inclusive() -> None:
    """The values that a message names as allowed are allowed."""
    config = SchedulerConfig(
        dsn=DSN,
        heartbeat_interval=timedelta(seconds=10),
        no_heartbeat_timeout=timedelta(seconds=30),
        orphaned_job_timeout=timedelta(seconds=30),
        max_concurrent_jobs=1,
        table_prefix="x" * 40,
        schema="s" * 63,
    )
    assert config.no_heartbeat_timeout == 3 * config.heartbeat_interval


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://app:hunter2@db.example/shop",
        "postgres://app:hunter2@db.example:5433/shop?sslmode=verify-full",
        "postgresql://a,b:5433/shop?target_session_attrs=read-write",
        "postgresql:///shop?host=/run/postgresql",
        "postgresql://app:hunter2%40%2F@[::1]:5432/shop",
        "host=db.example user=app password='hun ter2' dbname=shop port=5432,5433",
        "service=shop",
        "dbname=shop",
    ],
)
def test_dsn_forms(dsn: str) -> None:
    """Whatever libpq understands is a DSN."""
    assert SchedulerConfig(dsn=dsn).conninfo == dsn


def test_password_is_not_shown() -> None:
    """Neither repr nor str of a config, nor those of its scheduler, tell the password."""
    config = SchedulerConfig(dsn=DSN)
    scheduler = Scheduler(config)
    for text in (repr(config), str(config), f"{config}", repr(scheduler)):
        assert "hunter2" not in text
    scheduler.shutdown()


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql+psycopg://app:hunter2@db/shop",
        "postgresql://app:hunter2/@db/shop",
        "postgresql://app:@hunter2@db/shop",
        "postgresql://app:%hunter2@db/shop",
        "postgresql://app:hunter2@db/shop?x",
        "postgresql://app:hunter2@db/shop?bogus=1",
        "host=db password=x hunter2",
        "host=db password='hunter2",
        "hunter2",
        "host=db hunter2=x",
        'host=db "hunter2"',
    ],
)
def test_error_about_a_dsn_does_not_repeat_it(dsn: str) -> None:
    """A DSN that cannot be read may hold its password anywhere: the error shows none of it."""
    with pytest.raises(InvalidValueError) as caught:
        SchedulerConfig(dsn=dsn)
    shown = str(caught.value).replace("invalid connection option", "")
    if "hunter2=x" not in dsn:  # there it is the name of a setting, which is what has to be corrected
        assert "hunter2" not in shown
        assert "hunter2" not in repr(caught.value.value)
    assert caught.value.field == "dsn"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_facts_of_an_error() -> None:
    """An error carries the field, the value and the rule, for who wants to show them otherwise."""
    with pytest.raises(PgSchedulerError) as caught:
        SchedulerConfig(dsn=DSN, max_concurrent_jobs=0)
    error = caught.value
    assert isinstance(error, InvalidValueError)
    assert (error.field, error.value, error.rule) == ("max_concurrent_jobs", 0, "must be >= 1")


def test_conninfo_of_a_pool() -> None:
    """With a pool, the loops connect to where the pool does."""
    pool = ConnectionPool(DSN, open=False)
    assert SchedulerConfig(pool=pool).conninfo == DSN


# --- from the environment ---------------------------------------------------------------------------


def test_from_env_reads_every_kind() -> None:
    """Text, numbers, seconds and booleans come from PGSCHEDULER_ variables."""
    config = SchedulerConfig.from_env(
        {
            "PGSCHEDULER_DSN": DSN,
            "PGSCHEDULER_TABLE_PREFIX": "shop_",
            "PGSCHEDULER_MAX_CONCURRENT_JOBS": "25",
            "PGSCHEDULER_HEARTBEAT_INTERVAL": "2.5",
            "PGSCHEDULER_CREATE_SCHEMA": "true",
            "PGSCHEDULER_LISTEN": "Off",
            "PGSCHEDULER_OF_ANOTHER_VERSION": "ignored",
            "PATH": "/bin",
        }
    )
    assert config == SchedulerConfig(
        dsn=DSN,
        table_prefix="shop_",
        max_concurrent_jobs=25,
        heartbeat_interval=timedelta(seconds=2.5),
        create_schema=True,
        listen=False,
    )


def test_from_env_reads_every_setting() -> None:
    """No setting is out of the environment's reach, but for the two that are objects."""
    texts = {"dsn": DSN, "listen_dsn": DSN, "schema": "jobs", "table_prefix": "shop_"}
    for item in dataclasses.fields(SchedulerConfig):
        if item.name in ("pool", "logger"):
            continue
        if isinstance(item.default, bool):
            text, expected = str(not item.default), not item.default
        elif isinstance(item.default, timedelta):
            text, expected = str(item.default.total_seconds() * 1.5), item.default * 1.5
        elif isinstance(item.default, int):
            text, expected = str(item.default + 1), item.default + 1
        elif str(item.type).startswith("int"):
            text, expected = "7", 7
        else:
            text = expected = texts[item.name]
        environment = {"PGSCHEDULER_DSN": DSN, f"PGSCHEDULER_{item.name.upper()}": text}
        assert getattr(SchedulerConfig.from_env(environment), item.name) == expected


def test_from_env_reads_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the process's own environment counts."""
    monkeypatch.setenv("PGSCHEDULER_DSN", DSN)
    monkeypatch.setenv("PGSCHEDULER_MAX_CONCURRENT_JOBS", "7")
    assert SchedulerConfig.from_env().max_concurrent_jobs == 7


def test_from_env_falls_back_to_database_url() -> None:
    """DATABASE_URL is where platforms put it; our own variable wins; an empty one is no answer."""
    assert SchedulerConfig.from_env({"DATABASE_URL": "service=a"}).dsn == "service=a"
    both = {"DATABASE_URL": "service=a", "PGSCHEDULER_DSN": "service=b"}
    assert SchedulerConfig.from_env(both).dsn == "service=b"
    assert SchedulerConfig.from_env({**both, "PGSCHEDULER_DSN": ""}).dsn == "service=a"


def test_arguments_win_over_the_environment() -> None:
    """What the program says explicitly counts more than what the environment says."""
    environment = {"PGSCHEDULER_DSN": "service=a", "PGSCHEDULER_CREATE_SCHEMA": "true"}
    config = SchedulerConfig.from_env(environment, dsn="service=b", create_schema=False)
    assert (config.dsn, config.create_schema) == ("service=b", False)
    pool = ConnectionPool(DSN, open=False)
    assert SchedulerConfig.from_env(environment, pool=pool).dsn is None


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("MAX_CONCURRENT_JOBS", "ten", r"PGSCHEDULER_MAX_CONCURRENT_JOBS must be a whole number, got 'ten'"),
        ("MAX_CONCURRENT_JOBS", "2.5", r"PGSCHEDULER_MAX_CONCURRENT_JOBS must be a whole number"),
        ("MAX_CONCURRENT_JOBS", "", r"PGSCHEDULER_MAX_CONCURRENT_JOBS must be a whole number"),
        ("MAX_CONCURRENT_JOBS", "0", r"max_concurrent_jobs must be >= 1"),
        ("HEARTBEAT_INTERVAL", "30s", r"PGSCHEDULER_HEARTBEAT_INTERVAL must be a number of seconds"),
        ("HEARTBEAT_INTERVAL", "nan", r"heartbeat_interval must be finite"),
        ("CREATE_SCHEMA", "maybe", r"PGSCHEDULER_CREATE_SCHEMA must be true or false"),
        ("TABLE_PREFIX", "a-b", r"table_prefix must match"),
    ],
)
def test_bad_environment(variable: str, text: str, message: str) -> None:
    """A variable that cannot be read is named, with the rule."""
    with pytest.raises(InvalidValueError, match=message):
        SchedulerConfig.from_env({"PGSCHEDULER_DSN": DSN, f"PGSCHEDULER_{variable}": text})


def test_environment_without_a_database() -> None:
    """An environment that names no database is an error, not libpq's defaults."""
    with pytest.raises(InvalidValueError, match="exactly one of dsn and pool"):
        SchedulerConfig.from_env({})
