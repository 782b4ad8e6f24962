"""What a job says about itself: defaults, conversions, and the text that its row carries."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgscheduler import (
    Backoff,
    Cron,
    Every,
    InvalidTypeError,
    InvalidValueError,
    Job,
    JobConfig,
    PgSchedulerError,
    RunContext,
)
from pgscheduler.job import policy_of, schedule_of

#: The agreed defaults of a job's policies.
DEFAULTS: dict[str, Any] = {
    "name": None,
    "key": None,
    "schedule": None,
    "parameters": {},
    "retries": 0,
    "backoff": Backoff(timedelta(seconds=1), 2.0, timedelta(hours=1), 0.1),
    "timeout": None,
    "priority": 5,
    "run_at": None,
    "delay": None,
    "expires_in": None,
    "misfire": "run_once",
    "misfire_grace": timedelta(seconds=60),
    "catchup": 100,
    "jitter": timedelta(0),
    "isolation": "thread",
    "max_stalls": 3,
    "parameters_schema": None,
    "metadata": {},
}


def test_defaults() -> None:
    """A job that says nothing is one-time, due at once, not retried, and runs in a thread."""
    config = JobConfig()
    assert {item.name: getattr(config, item.name) for item in dataclasses.fields(config)} == DEFAULTS


def test_defaults_are_not_shared() -> None:
    """Two configs do not share their parameters."""
    JobConfig().parameters["a"] = 1
    assert JobConfig().parameters == {}


def test_recurring() -> None:
    """A cron line becomes a schedule in the given zone; a schedule object is taken as it is."""
    config = JobConfig.recurring("report", "0 9 * * 1-5", timezone="Europe/Berlin", retries=3)
    assert (config.name, config.schedule, config.retries) == (
        "report",
        Cron("0 9 * * 1-5", "Europe/Berlin"),
        3,
    )
    assert JobConfig.recurring("often", Every(timedelta(minutes=5))).schedule == Every(timedelta(minutes=5))
    assert JobConfig.recurring("daily", "@daily").schedule == Cron("@daily", "UTC")


def test_one_time() -> None:
    """A one-time job has parameters, and no schedule."""
    config = JobConfig.one_time("mail", {"user": 1}, priority=1, delay=5)
    assert (config.name, config.parameters, config.schedule) == ("mail", {"user": 1}, None)
    assert (config.priority, config.delay) == (1, timedelta(seconds=5))


def test_schedule_of_ones_own() -> None:
    """Anything with next_after is a schedule."""

    class Never:
        def next_after(self, instant: datetime) -> datetime | None:
            return None

    assert isinstance(JobConfig.recurring("x", Never()).schedule, Never)


@pytest.mark.parametrize("field", ["timeout", "delay", "expires_in", "misfire_grace", "jitter"])
def test_numbers_are_seconds(field: str) -> None:
    """A duration may be given as a number of seconds."""
    config = JobConfig(**{field: 90})
    assert getattr(config, field) == timedelta(seconds=90)


def test_run_at_is_utc() -> None:
    """An aware instant is kept, in UTC."""
    local = datetime(2030, 1, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    config = JobConfig.one_time("x", run_at=local)
    assert config.run_at == local
    assert config.run_at is not None
    assert config.run_at.tzinfo is UTC


def test_names_are_normalised() -> None:
    """Two spellings of the same text are one name."""
    assert JobConfig(name="cafe\u0301").name == JobConfig(name="caf\u00e9").name


@pytest.mark.parametrize(
    ("make", "error", "pattern"),
    [
        (lambda: JobConfig(retries=-1), ValueError, "retries must be non-negative"),
        (lambda: JobConfig(retries=True), TypeError, "retries must be an int, got bool"),
        (lambda: JobConfig(timeout=0), ValueError, "timeout must be > 0"),
        (lambda: JobConfig(timeout=timedelta.max), ValueError, "timeout must be <= 3650 days"),
        (lambda: JobConfig(misfire="never"), ValueError, "misfire must be one of run_once, skip, run_all"),
        (lambda: JobConfig(isolation="fork"), ValueError, "isolation must be one of thread, async, process"),
        (lambda: JobConfig(run_at=datetime(2030, 1, 1)), ValueError, "run_at must have a time zone"),
        (lambda: JobConfig(run_at="now"), TypeError, "run_at must be a datetime"),
        (lambda: JobConfig(delay=1, run_at=datetime(2030, 1, 1, tzinfo=UTC)), ValueError, "delay .* run_at"),
        (lambda: JobConfig.recurring("x", "@daily", delay=1), ValueError, "delay is for one-time jobs"),
        (lambda: JobConfig.recurring("x", "61 * * * *"), ValueError, "invalid cron schedule: minute.*61"),
        (lambda: JobConfig.recurring("x", 5), TypeError, r"schedule must be a cron line \(str\)"),
        (lambda: JobConfig.recurring("x", "@daily", timezone=5), TypeError, "timezone must be a str"),
        (lambda: JobConfig.recurring("", "@daily"), ValueError, "name cannot be empty"),
        (lambda: JobConfig.recurring(None, "@daily"), TypeError, "name must be a str"),
        (lambda: JobConfig.one_time("x", schedule=Cron("@daily")), ValueError, "cron .* is not one-time"),
        (lambda: JobConfig(schedule="@daily"), TypeError, "schedule must have next_after"),
        (lambda: JobConfig(backoff=5), TypeError, "backoff must be a Backoff or a callable"),
        (lambda: JobConfig(priority=99_999), ValueError, "priority must be <= 32767"),
        (lambda: JobConfig(metadata=[]), TypeError, "metadata must be a mapping"),
        (lambda: JobConfig(parameters_schema="x"), TypeError, "parameters_schema must be"),
        (lambda: Backoff(jitter=2.0), ValueError, "backoff.jitter must be between 0 and 1"),
        (lambda: Every(timedelta(milliseconds=1500)), ValueError, "interval must be whole seconds"),
    ],
)
def test_refused(make: Any, error: type[Exception], pattern: str) -> None:
    """A wrong policy is refused where it is written, with its name and the rule."""
    with pytest.raises(error, match=pattern) as caught:
        make()
    assert isinstance(caught.value, PgSchedulerError)


# --- the text that a row carries --------------------------------------------------------------------


def test_defaults_take_no_room() -> None:
    """A row says only what differs from the defaults."""
    assert JobConfig().options_json() == "{}"
    assert JobConfig(retries=3).options_json() == '{"retries":3}'


durations = st.integers(1, 10**8).map(lambda tenths: timedelta(seconds=tenths / 8))
configs = st.builds(
    JobConfig,
    retries=st.integers(0, 10_000),
    timeout=st.none() | durations,
    expires_in=st.none() | durations,
    misfire=st.sampled_from(["run_once", "skip", "run_all"]),
    misfire_grace=durations,
    catchup=st.integers(1, 10_000),
    jitter=durations,
    isolation=st.sampled_from(["thread", "async", "process"]),
    max_stalls=st.integers(1, 1000),
    backoff=st.builds(
        Backoff,
        initial=st.integers(0, 1000).map(lambda n: timedelta(seconds=n)),
        factor=st.floats(1, 100),
        maximum=st.integers(0, 1000).map(lambda n: timedelta(seconds=n)),
        jitter=st.floats(0, 1),
    ),
    metadata=st.dictionaries(
        st.text("abc", min_size=1), st.integers() | st.text("xyz") | st.none(), max_size=3
    ),
)


@given(configs)
def test_policies_survive_the_row(config: JobConfig) -> None:
    """What a job asked for is what the node reads from its row."""
    policy = policy_of(config.options_json())
    assert policy.retries == config.retries
    assert policy.timeout == (None if config.timeout is None else config.timeout.total_seconds())
    assert policy.expires_in == (None if config.expires_in is None else config.expires_in.total_seconds())
    assert (policy.misfire, policy.misfire_grace) == (config.misfire, config.misfire_grace)
    assert policy.catchup == config.catchup
    assert policy.jitter == config.jitter.total_seconds()
    assert (policy.isolation, policy.max_stalls) == (config.isolation, config.max_stalls)
    assert policy.backoff == config.backoff
    assert policy.metadata == config.metadata


def test_callable_backoff_is_the_class_s() -> None:
    """A function cannot be stored: the row says that the registered class has it."""
    policy = policy_of(JobConfig(backoff=lambda failures, error: timedelta(failures)).options_json())
    assert policy.backoff is None


@pytest.mark.parametrize(
    "schedule",
    [
        Cron("0 9 * * 1-5", "Europe/Berlin"),
        Cron("0 0 1 * 1", day_or=False),
        Cron("@daily"),
        Every(timedelta(hours=1)),
    ],
)
def test_schedules_survive_the_row(schedule: Any) -> None:
    """A schedule that is stored comes back equal."""
    text = JobConfig(schedule=schedule).schedule_json()
    assert text is not None
    assert schedule_of(text) == schedule


def test_zone_rules_are_part_of_a_schedule() -> None:
    """New time zone rules count as a changed schedule; UTC has none."""
    assert "tzdata" in json.loads(JobConfig(schedule=Cron("@daily", "Europe/Berlin")).schedule_json() or "")
    assert "tzdata" not in json.loads(JobConfig(schedule=Cron("@daily")).schedule_json() or "")


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"a": object()}, InvalidTypeError),
        ({"a": {1: "x"}}, InvalidTypeError),
        ({"a": float("nan")}, InvalidValueError),
        ({"a": "x" * 20_000}, InvalidValueError),
    ],
)
def test_metadata_is_json(metadata: dict[str, Any], error: type[Exception]) -> None:
    """Metadata travels with every claim: small, and JSON that comes back as it was given."""
    with pytest.raises(error, match="metadata"):
        JobConfig(metadata=metadata).options_json()


# --- names of classes -------------------------------------------------------------------------------


def test_name_of_a_class() -> None:
    """The class's name in snake case, unless its config or its instance says otherwise."""

    class HTTPPing2Job(Job):
        def run(self, ctx: RunContext) -> None: ...

    class Named(Job):
        config = JobConfig(name="other")

        def run(self, ctx: RunContext) -> None: ...

    assert HTTPPing2Job().name == "http_ping2_job"
    assert Named().name == "other"
    assert Named(JobConfig(name="third")).name == "third"
    assert Named.config.name == "other"
