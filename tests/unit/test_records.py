"""What was just stored is a record like any other, though it is made in a quicker way."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from pgscheduler.records import JobRecord

NOON = datetime(2031, 3, 1, 12, tzinfo=UTC)
GIVEN = {"name": "mail", "priority": 3, "parameters": '{"a": [1]}', "options": '{"retries": 2}'}


def test_a_fresh_record_is_what_the_row_would_be() -> None:
    """Every field, also those that nobody said: as the constructor has them."""
    fresh = JobRecord.fresh(
        {"id": 7, "run_at": NOON, "scheduled_at": NOON, "created_at": NOON - timedelta(hours=1)}, GIVEN
    )
    said: dict[str, Any] = {
        field.name: getattr(fresh, field.name)
        for field in dataclasses.fields(JobRecord)
        if field.name in vars(fresh)
    }
    required = {field.name for field in dataclasses.fields(JobRecord) if field.default is dataclasses.MISSING}
    assert required <= said.keys()
    built = JobRecord(**said)
    assert fresh == built
    assert repr(fresh) == repr(built)
    assert dataclasses.asdict(fresh) == dataclasses.asdict(built)
    assert fresh.to_dict() == built.to_dict()
    assert (fresh.id, fresh.name, fresh.priority, fresh.parameters) == (7, "mail", 3, {"a": [1]})
    assert (fresh.retries_left, fresh.attempt, fresh.failures, fresh.result) == (2, 1, 0, None)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r)), dataclasses.replace]
)
def test_a_fresh_record_can_be_copied(again: Any) -> None:
    fresh = JobRecord.fresh({"id": 7, "run_at": NOON, "scheduled_at": NOON, "created_at": NOON}, GIVEN)
    assert again(fresh) == fresh
    with pytest.raises(dataclasses.FrozenInstanceError):
        again(fresh).name = "other"


def test_a_fresh_record_s_times_are_utc_and_its_own() -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    row = {
        "id": 7,
        "run_at": NOON.astimezone(india),
        "scheduled_at": (NOON + timedelta(minutes=1)).astimezone(india),
        "created_at": (NOON - timedelta(minutes=1)).astimezone(india),
    }
    fresh = JobRecord.fresh(row, GIVEN)
    assert (fresh.run_at, fresh.scheduled_at, fresh.created_at) == (
        NOON,
        NOON + timedelta(minutes=1),
        NOON - timedelta(minutes=1),
    )
    assert {fresh.run_at.tzinfo, fresh.scheduled_at.tzinfo, (fresh.created_at or NOON).tzinfo} == {UTC}
