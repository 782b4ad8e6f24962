"""What the checker stands on: the file that keeps a history, arithmetic of intervals, and what faults excuse."""

from __future__ import annotations

import dataclasses
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checker import main
from tests.chaos.history import (
    Away,
    Call,
    End,
    History,
    Life,
    Record,
    append,
    boottime,
    dump,
    epoch,
    load,
    read,
)
from tests.chaos.spans import complement, length, merged, passed, widened
from tests.chaos.story import BASE, db, good
from tests.chaos.view import BACK_AFTER_AWAY, BACK_AFTER_CUT, View, same_json


def replaced(kind: type[Record], process: str | None = None, **facts: Any) -> View:
    """The good story with other facts."""
    records = [
        dataclasses.replace(r, **facts)  # type: ignore[type-var]
        if type(r) is kind and (process is None or getattr(r, "process", None) == process)
        else r
        for r in good()
    ]
    return View(History.of(records))


def test_a_history_comes_back_from_its_file(tmp_path: Path) -> None:
    """Every kind of record survives the way to a file and back, tokens of 63 bits and tuples included."""
    history = History.of(good())
    history.save(tmp_path / "history.jsonl")
    assert History.load(tmp_path / "history.jsonl") == history
    assert {type(r) for r in history} == {type(r) for r in good()}
    big = dataclasses.replace(history.begans[0], token=2**63 - 1)
    assert load(dump(big)) == big


def test_a_line_that_its_process_did_not_finish_is_left_out(tmp_path: Path) -> None:
    """A killed process may leave half a line at the end of its file; the lines before it count."""
    path = tmp_path / "n0.jsonl"
    first, second = good()[4:6]
    append(path, first)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    append(descriptor, second)
    os.write(descriptor, dump(first).encode()[:30])
    os.close(descriptor)
    assert list(read(path)) == [first, second]


def test_a_history_has_one_end() -> None:
    """Two runs' files are not mixed up without a word."""
    with pytest.raises(ValueError, match="one End, this one has two"):
        History.of([*good(), End(faults_over=1.0, rows_read=2.0)])


def test_the_databases_times_are_placed_by_the_nearest_pair() -> None:
    """A clock that was set in between is followed."""
    records = [r for r in good() if type(r).__name__ != "Clock"]
    with pytest.raises(ValueError, match="without a Clock"):
        History.of(records).boot(BASE)
    history = History.of(good())
    assert history.boot(db(10.0)) == pytest.approx(10.0)
    stepped = History.of([*good(), type(history.clocks[0])(database=BASE + 3600.0, boottime=50.0)])
    assert stepped.boot(BASE + 3601.0) == pytest.approx(51.0)
    assert stepped.boot(db(10.0)) == pytest.approx(10.0)


def test_times_keep_their_microseconds() -> None:
    """An occurrence is the same number wherever it was read."""
    assert epoch(datetime(2027, 1, 15, 8, 0, 0, 123457, tzinfo=UTC)) == 1_800_000_000.123457
    assert boottime() > 0


def test_the_checker_answers_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 for a good history, 1 for a bad one with what was found, 2 without a file."""
    path = tmp_path / "history.jsonl"
    History.of(good()).save(path)
    assert main([str(path)]) == 0
    assert "violations 0" in capsys.readouterr().out
    append(path, next(r for r in good() if isinstance(r, Call)))
    append(path, dataclasses.replace(next(r for r in good() if isinstance(r, Call)), job_id=99, name="gone"))
    assert main([str(path)]) == 1
    assert "nothing_lost: job 99 (gone) was stored by c" in capsys.readouterr().out
    assert main([]) == 2


def test_spans() -> None:
    """Intervals are merged, cut, measured and waited out."""
    spans = merged([(5.0, 6.0), (1.0, 2.0), (1.5, 3.0), (4.0, 4.0)])
    assert spans == [(1.0, 3.0), (5.0, 6.0)]
    assert widened(spans, 2.0) == [(1.0, 8.0)]
    assert complement(spans, 0.0, 10.0) == [(0.0, 1.0), (3.0, 5.0), (6.0, 10.0)]
    assert complement(spans, 2.0, 5.5) == [(3.0, 5.0)]
    assert length(spans, 2.0, 5.5) == 1.5
    assert passed(0.0, 0.5, spans) == 0.5
    assert passed(0.0, 2.0, spans) == 4.0
    assert passed(2.0, 2.5, spans) == 6.5
    assert passed(7.0, 1.0, spans) == 8.0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": [1, 2.0]}, {"a": [1.0, 2]}, True),
        (True, 1, False),
        (0, False, False),
        ([], {}, False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        (2**63 + 1, 2**63, False),
        ("1", 1, False),
        (None, 0, False),
    ],
)
def test_json_is_compared_as_json(one: Any, other: Any, same: bool) -> None:
    """Numbers by value, true and false by themselves, nothing by chance."""
    assert same_json(one, other) is same


def test_silence_is_excused_only_by_what_was_done_to_the_process() -> None:
    """A node that nobody touched has no excuse, nor one that was stopped too short or too long ago."""
    view = View(History.of(good()))
    assert view.silent("b", 24.0)  # stopped since 20
    assert not view.silent("b", 20.5)
    assert not view.silent("b", 45.0)
    assert not view.silent("a", 24.0)
    assert view.silent("a", 54.0)  # nobody had a database
    assert not replaced(Life, "b", stopped=((22.0, 23.0),)).silent("b", 24.0)


def test_who_was_away_is_given_a_time_to_come_back_and_no_more() -> None:
    """After an outage, and after a partition, a node is expected at work within a stated time."""
    view = replaced(Away, began=50.0, ended=52.0)
    assert view.speechless("a") == [(50.0, 52.0 + BACK_AFTER_AWAY)]
    assert view.speechless("d")[-1] == (70.0, 77.0 + BACK_AFTER_CUT)
    assert view.frozen("b") == [(20.0, 30.0)]
    assert view.frozen("d") == []


def test_nobody_attends_while_no_node_can() -> None:
    """The time in which a death must be found stands still only while no node is there, or no database."""
    view = View(History.of(good()))
    assert length(view.unattended, 1.0, 49.0) == 0.0
    assert length(view.unattended, 50.0, 52.0) == 2.0
    alone = replaced(Life, "a", ended=5.0, asked_to_stop=None, exit_code=-9)
    assert length(alone.unattended, 44.0, 49.0) == 0.0
    nobody = [r for r in good() if not isinstance(r, Life)]
    assert length(View(History.of(nobody)).unattended, 10.0, 20.0) == 10.0


def test_a_crash_forgets_only_what_had_just_been_claimed() -> None:
    """A claim of seconds before a crash is on the disk."""
    view = View(History.of(good()))
    by_run = view.began
    assert view.forgotten(by_run["12-0000000000000121"]) == 50.0
    assert view.forgotten(by_run["11-0000000000000112"]) is None
    restarted = replaced(Away, crashed=False)
    assert restarted.forgotten(restarted.began["12-0000000000000121"]) is None
