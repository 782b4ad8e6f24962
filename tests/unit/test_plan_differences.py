"""What a plan shows of a change: only what differs, in one order, and that a secret differs without showing it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from pgscheduler import secret
from pgscheduler._declared import MARK, Change, compare
from pgscheduler.jobs._secrets import shown_change

AT = datetime(2027, 1, 31, 9, tzinfo=UTC)
CANARY = "canary-in-the-mine"
CHANGED = "*** (secret changed)"


def change(before: Any, after: Any, **options: tuple[Any, Any]) -> Change | None:
    """The plan for one job whose stored parameters are `before`, as jsonb answers them, and shall be `after`."""

    def policies(side: int) -> str:
        return json.dumps(
            {**{name: pair[side] for name, pair in options.items()}, "metadata": {MARK: "s"}},
            sort_keys=side == 0,
        )

    same = {"name": "a", "key": "a", "priority": 5, "schedule": '{"every": 60.0}'}
    row = {
        **same, "id": 1, "state": "pending", "after_run": None, "completed_at": None,
        "parameters": dict(sorted(before.items(), key=lambda item: (len(item[0]), item[0]))), "options": policies(0),
    }  # fmt: skip
    wanted = {**same, "parameters": json.dumps(after), "options": policies(1)}
    changes = compare("s", [(wanted, None)], [row]).changes
    return changes[0] if changes else None


def sides(before: Any, after: Any) -> Any:
    found = change(before, after)
    assert found is not None
    assert list(found.differences) == ["parameters"]
    return found.differences["parameters"]


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ({"b": 1, "aa": 2}, {"aa": 2, "b": 3}, ({"b": 1}, {"b": 3})),
        ({"b": 1, "aa": 2}, {"aa": 3, "b": 4}, ({"aa": 2, "b": 1}, {"aa": 3, "b": 4})),
        ({"a": {"x": 1, "y": [1, 2]}}, {"a": {"y": [1, 3], "x": 1}}, ({"a": {"y": [1, 2]}}, {"a": {"y": [1, 3]}})),
        ({"a": 1}, {"a": 1, "b": {"z": 1, "y": 2}}, ({}, {"b": {"y": 2, "z": 1}})),
        ({"a": 1, "b": 2}, {"a": 1}, ({"b": 2}, {})),
        ({"a": {"b": 1}}, {"a": [1]}, ({"a": {"b": 1}}, {"a": [1]})),
    ],
)  # fmt: skip
def test_only_what_differs_is_shown(before: Any, after: Any, shown: Any) -> None:
    """Of objects the parts that differ, by path, with their keys in one order on both sides."""
    assert json.dumps(sides(before, after)) == json.dumps(shown)
    assert change(before, json.loads(json.dumps(before, sort_keys=True))) is None


def test_policies_are_shown_like_parameters() -> None:
    """Of stored policies too, only those that differ."""
    found = change({}, {}, retries=(1, 2), timeout=(5.0, 5.0), backoff=({"initial": 1.0}, {"initial": 2.0}))
    assert found is not None
    assert found.differences == {
        "options": ({"backoff": {"initial": 1.0}, "retries": 1}, {"backoff": {"initial": 2.0}, "retries": 2})
    }


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (
            {"token": secret(CANARY), "same": secret(CANARY)},
            {"token": secret(CANARY + "2"), "same": secret(CANARY)},
            ({"token": {"$secret": "***"}}, {"token": {"$secret": CHANGED}}),
        ),
        ({"n": 1, "t": secret(1)}, {"n": 2, "t": secret(1)}, ({"n": 1}, {"n": 2})),
        ({"t": CANARY}, {"t": secret(CANARY)}, ({"t": CANARY}, {"t": {"$secret": "***"}})),
        ({}, {"t": secret(CANARY)}, ({}, {"t": {"$secret": "***"}})),
        ({"l": [secret(CANARY)]}, {"l": [secret("x")]}, ({"l": [{"$secret": "***"}]}, {"l": CHANGED})),
        # What SQL has stored beside a mark is hidden with it.
        ({"t": {"$secret": 1, "b": CANARY}}, {"t": secret(1)}, ({"t": {"$secret": "***"}}, {"t": {"$secret": CHANGED}})),
    ],
)  # fmt: skip
def test_a_secret_that_differs(before: Any, after: Any, shown: Any) -> None:
    """Of a marked value is said that it changed, and neither what it was nor what it will be; also by the command."""
    found = sides(before, after)
    assert found == shown
    assert shown_change(*found) == shown


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ({"headers": {"X": "a"}}, {"headers": {"X": "b"}}, ({"headers": {"X": "***"}}, {"headers": {"X": CHANGED}})),
        ({"data": {"pass": 1}}, {"data": {"pass": 2}}, ({"data": {"pass": "***"}}, {"data": {"pass": CHANGED}})),
        (
            {"url": "https://h/?key=1"}, {"url": "https://h/?key=2"},
            ({"url": "https://h/?key=***"}, {"url": "https://h/?key=*** (secret changed)"}),
        ),
        ({"headers": {"X": "a"}, "n": 1}, {"n": 1}, ({"headers": {"X": "***"}}, {})),
    ],
)  # fmt: skip
def test_what_a_listing_hides_and_what_differs(before: Any, after: Any, shown: Any) -> None:
    """The same holds of what a listing hides without a mark."""
    assert shown_change(*sides(before, after)) == shown


def test_what_is_the_same_in_a_schedule_is_no_secret() -> None:
    """A schedule is shown whole: its cron line beside another time zone is as it was."""
    before = {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "tzdata": "2026b"}
    after = {"cron": "0 3 * * *", "timezone": "UTC"}
    assert shown_change(before, after) == (before, after)
