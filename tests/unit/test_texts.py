"""What error texts say of values: enough to know what is meant, on one line, and no secret."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgscheduler import InvalidTypeError, InvalidValueError, JobRunningError
from pgscheduler._schema import check_parameters
from pgscheduler.errors import show
from pgscheduler.records import JobRecord, RunRecord

CANARY = "canary-in-the-mine"
AT = datetime(2027, 1, 31, 9, tzinfo=UTC)
ENDED = {
    "job_id": 7, "name": "mail", "key": None, "outcome": "completed", "attempt": 1, "scheduled_at": AT,
    "started_at": AT, "finished_at": AT, "node_id": None, "parameters": {"a": CANARY}, "result": None,
    "progress": None, "reason": None, "error": None, "token": 5, "schedule": None, "options": None,
}  # fmt: skip


# --- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(seconds=-1), "-1 s"),
        (timedelta(0), "0 s"),
        (timedelta(milliseconds=1500), "1.5 s"),
        (timedelta(microseconds=1), "0.000001 s"),
        (timedelta(days=100), "8640000 s"),
    ],
)
def test_a_duration_is_said_in_seconds(value: timedelta, text: str) -> None:
    """A duration is shown as seconds, as everywhere else, and not as Python constructs it."""
    assert show(value) == text


def test_a_record_is_said_by_its_id_and_name() -> None:
    """A job or a run in an error is its id, its name and its key, and nothing that it holds."""
    job = JobRecord.from_last_run(ENDED)
    assert str(JobRunningError(job)) == "job is currently running: 7 mail"
    assert show(JobRecord.from_last_run({**ENDED, "key": "kä\n"})) == r"7 mail/k\xe4\n"
    assert show(RunRecord.from_row(ENDED)) == "7-0000000000000005 mail"
    assert str(InvalidTypeError("run", job, "must be a run")) == "run must be a run, got JobRecord 7 mail"
    assert CANARY not in show(job)


def test_what_history_does_not_keep_is_not_made_up() -> None:
    """The record of a one-time job that has ended knows no priority and no time of creation, and says so."""
    job = JobRecord.from_last_run(ENDED)
    assert (job.priority, job.created_at) == (None, None)
    assert (job.to_dict()["priority"], job.to_dict()["created_at"]) == (None, None)


# --- parameters and their schema ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "value", "text"),
    [
        ({"type": "integer"}, CANARY, "must be of type integer"),
        ({"type": ["integer", "null"]}, CANARY, "must be of type integer or null"),
        ({"enum": ["a", 5, None]}, CANARY, "must be one of 'a', 5, None"),
        ({"const": "a"}, CANARY, "must be 'a'"),
        ({"minimum": 3}, 1.25, "must be at least 3"),
        ({"maximum": 1}, 1.25, "must be at most 1"),
        ({"exclusiveMinimum": 3}, 1.25, "must be more than 3"),
        ({"exclusiveMaximum": 1}, 1.25, "must be less than 1"),
        ({"multipleOf": 2}, 1.25, "must be a multiple of 2"),
        ({"minLength": 99}, CANARY, "must have at least 99 characters"),
        ({"maxLength": 9}, CANARY, "must have at most 9 characters"),
        ({"pattern": "^[0-9]{4}$"}, CANARY, "must match the pattern '^[0-9]{4}$'"),
        ({"minItems": 2}, [CANARY], "must hold at least 2 items"),
        ({"maxItems": 0}, [CANARY], "must hold at most 0 items"),
        ({"required": ["a", "b"]}, {"a": CANARY}, "required but missing: 'b'"),
        ({"additionalProperties": False}, {"b": CANARY}, "must not hold 'b'"),
        (
            {"properties": {"a": {}}, "patternProperties": {"^x": {}}, "additionalProperties": False},
            {"a": 1, "x1": 1, "b": CANARY, "c\n": 1},
            r"must not hold 'b', 'c\n'",
        ),
        ({"uniqueItems": True}, [CANARY, CANARY], "uniqueItems True"),
        ({"not": {"type": "string"}}, CANARY, "not {'type': 'string'}"),
    ],
)
def test_parameters_that_do_not_fit(rule: dict[str, Any], value: Any, text: str) -> None:
    """The place, then the rule in words; the value, which may be a secret, is not repeated."""
    for schema, parameters, where in (
        ({"properties": {"m": rule}}, {"m": value}, " at $.m"),
        ({"properties": {"m": {"items": rule}}}, {"m": [value]}, " at $.m[0]"),
        (rule, value, ""),
    ):
        with pytest.raises(InvalidValueError) as caught:
            check_parameters(schema, parameters)
        assert str(caught.value) == f"parameters do not fit their schema{where}: {text}"
        assert CANARY not in f"{caught.value} {vars(caught.value)} {caught.value.__cause__}"


def test_an_error_that_is_raised_anew_says_the_same() -> None:
    """Whoever makes it again, from its own facts, gets the same text under another field's name."""
    with pytest.raises(InvalidValueError) as caught:
        check_parameters({"type": "integer"}, CANARY)
    error = caught.value
    again = type(error)("context", error.value, error.rule)
    assert str(again) == "context do not fit their schema: must be of type integer"
    assert (again.field, again.value) == ("context", "$")
