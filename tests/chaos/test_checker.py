"""The checker itself: a good history passes, and each way to break a promise is found by the rule that it breaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.chaos.checker import check
from tests.chaos.history import (
    Began,
    Call,
    Effect,
    Ended,
    Held,
    History,
    Life,
    Record,
    Row,
    Run,
    Snapshot,
    Told,
)
from tests.chaos.rules import RULES
from tests.chaos.story import SILENT, Story, db, good, row, run_id, skipped

Change = Callable[[list[Record]], Iterable[Record]]


def without(kind: type[Record], **facts: Any) -> Change:
    """The same history without these records; there must be some."""

    def change(records: list[Record]) -> list[Record]:
        kept = [r for r in records if not _is(r, kind, facts)]
        assert len(kept) < len(records)
        return kept

    return change


def changed(kind: type[Record], found: dict[str, Any], **facts: Any) -> Change:
    """The same history with other facts in these records; there must be some."""

    def change(records: list[Record]) -> list[Record]:
        chosen = [_is(r, kind, found) for r in records]
        assert any(chosen)
        return [
            dataclasses.replace(r, **facts) if it else r  # type: ignore[type-var]
            for r, it in zip(records, chosen, strict=True)
        ]

    return change


def told(*steps: Callable[[Story], object]) -> Change:
    """The same history, and this besides."""

    def change(records: list[Record]) -> list[Record]:
        more = Story()
        more.records = list(records)
        for step in steps:
            step(more)
        return more.records

    return change


def both(*changes: Change) -> Change:
    def change(records: list[Record]) -> Iterable[Record]:
        for each in changes:
            records = list(each(records))
        return records

    return change


def _is(record: Record, kind: type[Record], facts: dict[str, Any]) -> bool:
    return type(record) is kind and all(getattr(record, name) == value for name, value in facts.items())


def _late(token: int, at: float) -> Change:
    """A run that is told, and ends, so late."""
    return both(changed(Told, {"token": token}, at=at), changed(Ended, {"token": token}, at=at + 0.1))


def _begun(token: int, at: float) -> Change:
    """A run that begins so late, and is told at once."""
    return both(changed(Began, {"token": token}, at=at), _late(token, at + 0.1))


def _holding(at: float, job: int, token: int, node: str) -> Snapshot:
    """A look at the database that found one claim."""
    return Snapshot(
        began=at, ended=at, held=(Held(job_id=job, token=token, node=node, claimed_at=db(at - 5)),)
    )


def _second_run_of_1(story: Story) -> None:
    again = story.began(1, "a", 60.0, 0x12, scheduled_at=db(1.0))
    story.ended(again, 60.1)
    story.add(row(1, "running", 1.0, token=0x12, node="B", claimed_at=db(99.9)))


def _overlap(story: Story) -> None:
    story.stored(50, 80.0, retries=5)
    first = story.began(50, "a", 80.0, 0x501, scheduled_at=db(80.0))
    story.ended(first, 82.0, "raised")
    story.line(first, 82.0, "failed")
    story.ran(50, "d", 81.9, 0x502, took=1.0, scheduled_at=db(80.0), attempt=2)


def _crowd(story: Story) -> None:
    for job in range(60, 64):
        story.stored(job, 85.0)
        story.ran(job, "d", 85.0 + job / 1000, job, scheduled_at=db(85.0))


def _fifth_stall(story: Story) -> None:
    """Stalls on a node that keeps being killed."""
    story.stored(70, 30.0, max_stalls=2)
    for count in range(3):
        at = 33.0 + count
        story.add(
            Life(process=f"e{count}", node=f"E{count}", started=0.0, ready=0.5, ended=at - 1, exit_code=-9),
            Run(
                job_id=70, name="job70", key=None, token=0x700 + count, node=f"E{count}", attempt=count + 1,
                outcome="stalled", scheduled_at=db(30.0), started_at=db(at - 2), finished_at=db(at), reason=SILENT,
            ),
        )  # fmt: skip
        story.began(70, f"e{count}", at - 2, 0x700 + count, scheduled_at=db(30.0), attempt=count + 1)
    story.ran(70, "a", 36.0, 0x709, scheduled_at=db(30.0), attempt=4)


def _given_up(reason: str, **facts: Any) -> Change:
    def story(story: Story) -> None:
        story.stored(71, 36.0, **facts)
        story.add(
            Run(
                job_id=71, name="job71", key=None, token=0x711, node="A", attempt=1, outcome="failed",
                scheduled_at=db(36.0), started_at=None, finished_at=db(37.0), reason=reason,
            )
        )  # fmt: skip

    return told(story)


def _cancelled() -> Run:
    return Run(
        job_id=30, name="job30", key=None, token=None, node=None, attempt=0, outcome="cancelled",
        scheduled_at=db(60.0), started_at=None, finished_at=db(14.0),
    )  # fmt: skip


def _twin(story: Story) -> None:
    """Stored for certain, by a call that was not told as which job."""
    story.stored(9, 5.0, name="twin", job_id=None)


def _running(story: Story, node: str, claimed: float) -> None:
    story.stored(55, claimed)
    story.add(row(55, "running", claimed, token=0x551, node=node, claimed_at=db(claimed)))


def _after_31(story: Story) -> None:
    """The run that was asked to stop failed instead, and was tried again."""
    failed = both(
        changed(Run, {"token": 0x311}, outcome="failed"), changed(Ended, {"token": 0x311}, how="raised")
    )
    story.records = list(failed(story.records))
    story.ran(31, "a", 17.0, 0x312, scheduled_at=db(15.0), attempt=2)


def _killed(story: Story, returned: float, finished: float) -> None:
    """An isolated run that is over, and whose process was killed, because its claim was lost, before it could say so."""
    story.stored(72, 60.0)
    began = story.began(72, "a", 60.5, 0x721, scheduled_at=db(60.0), isolation="process")
    story.ended(began, returned)
    story.line(began, finished, "interrupted", reason="lost")
    story.ran(72, "a", finished + 0.1, 0x722, scheduled_at=db(60.0))


BAD: dict[str, list[tuple[str, Change]]] = {
    "nothing_lost": [
        ("a stored job left no trace", without(Row, job_id=8)),
        ("its last line is no end", both(without(Run, token=0x112), without(Began, token=0x112), without(Ended, token=0x112))),
        ("a recurring job is gone", without(Row, job_id=40)),
        ("a job is paused by nobody", changed(Row, {"job_id": 8}, state="paused")),
        (
            "one of two alike was not stored",
            told(_twin, _twin, lambda s: s.ran(9, "a", 61.5, 0x91, name="twin", scheduled_at=db(5.0))),
        ),
    ],
    "every_job_was_asked_for": [
        ("nobody stored it", without(Call, job_id=1, verb="schedule")),
        ("its transaction was rolled back", changed(Call, {"job_id": 1}, committed=False)),
        ("its call had failed", changed(Call, {"name": "job3"}, answer="failed")),
        ("one call made two jobs", told(lambda s: s.ran(9, "a", 61.5, 0x91, name="job3", parameters={"job": 3}))),
        (
            "retired, though its name is known",
            told(
                lambda s: s.stored(51, 10.0),
                lambda s: s.add(dataclasses.replace(_cancelled(), job_id=51, name="job51", outcome="orphaned")),
            ),
        ),
    ],
    "finished_is_final": [
        ("it runs again after its end", told(_second_run_of_1)),
        ("it is still there", told(lambda s: s.add(row(1, "pending", 500.0)))),
        ("begun by a process that was long awake", _begun(16 << 8 | 1, 31.0)),
    ],
    "nothing_is_left_undone": [
        ("it was due long ago", told(lambda s: s.stored(52, 80.0), lambda s: s.add(row(52, "pending", 80.0)))),
        ("a recurring one is overdue", changed(Row, {"job_id": 40}, run_at=db(80.0))),
    ],
    "one_job_per_key": [
        ("two lived at the same time", changed(Run, {"job_id": 5}, finished_at=db(9.9), started_at=db(9.8))),
    ],
    "parameters_arrive": [
        ("another value", changed(Began, {"job_id": 1}, parameters={"job": 2})),
        ("true instead of 1", changed(Began, {"job_id": 1}, parameters={"job": True})),
        ("changed by the attempt before", changed(Began, {"token": 0x23}, parameters={"job": 2, "seen": 1})),
        ("those of the key's former job", changed(Began, {"token": 0x61}, parameters={"n": 1})),
    ],
    "one_run_at_a_time": [
        ("two at the same time", told(_overlap)),
        ("the other began before the claim was lost", changed(Run, {"token": 0x101}, finished_at=db(25.0))),
        ("given back while its process lived on", changed(Life, {"process": "a"}, ended=97.5)),
        ("the other began when it was long awake", _begun(17 << 8 | 1, 31.0)),
    ],
    "a_lost_claim_writes_nothing": [
        (
            "two outcomes of one claim",
            told(lambda s: s.add(dataclasses.replace(s.the(Run, 0x101), finished_at=db(23.9), outcome="interrupted"))),
        ),
        (
            "a claim comes back",
            told(
                lambda s: s.add(
                    *(_holding(at, 14, token, "D") for at, token in ((94.5, 0x141), (95.96, 0x142), (97.0, 0x141)))
                )
            ),
        ),
        (
            "a claim is held after it was taken",
            told(lambda s: s.add(_holding(24.75, 10, 0x101, "B"))),
        ),
    ],
    "healthy_claims_are_kept": [
        ("taken from a node that was well", changed(Life, {"process": "d"}, cut_off=())),
        (
            "given up by a node that was well",
            told(lambda s: s.told(s.the(Began, 0x11), 1.2, "lost")),
        ),
        ("given back by a node that was not to end", without(Told, token=0x141, reason="shutdown")),
    ],
    "lost_runs_are_told": [
        ("a paused run is never told", both(without(Told, token=0x101), without(Ended, token=0x101))),
        ("a paused run is told late", _late(0x101, 33.0)),
        ("a run that was cut off goes on", _late(0x131, 78.0)),
        ("a forgotten run goes on", both(without(Told, token=0x121), changed(Ended, {"token": 0x121}, at=70.0, how="returned"))),
    ],
    "deaths_are_found_in_time": [
        (
            "found ten seconds later",
            both(
                changed(Run, {"token": 0x111}, finished_at=db(48.0)),
                changed(Began, {"token": 0x112}, at=48.5),
                changed(Ended, {"token": 0x112}, at=48.8),
                changed(Run, {"token": 0x112}, started_at=db(48.5), finished_at=db(48.8)),
            ),
        ),
    ],
    "no_row_is_left_running": [
        ("for a node that is dead", told(lambda s: _running(s, "C", 39.0))),
        ("for a node that nobody knows", told(lambda s: _running(s, "Z", 39.0))),
        ("without a heartbeat", told(lambda s: _running(s, "B", 79.0))),
    ],
    "each_occurrence_once": [
        ("skipped, and run as well", told(lambda s: s.add(skipped(40, 64.0, 69.5)))),
        ("recorded twice", told(lambda s: s.ran(40, "a", 62.6, 0x409, took=0.1, scheduled_at=db(62.0), name="job40", key="job40"))),
    ],
    "every_occurrence_is_accounted_for": [
        ("one is missing", without(Run, job_id=40, outcome="skipped", scheduled_at=db(66.0))),
        ("one is not of the schedule", told(lambda s: s.add(skipped(40, 65.0, 68.5)))),
        ("the first is missing", changed(Call, {"job_id": 40, "verb": "schedule"}, scheduled_at=db(60.0))),
        ("one was before the first", changed(Call, {"job_id": 40, "verb": "schedule"}, scheduled_at=db(64.0))),
        ("the row has passed one over", changed(Row, {"job_id": 40}, scheduled_at=db(96.0), run_at=db(96.0))),
        (
            "a resume does not explain what was lost before",
            both(without(Run, token=0x402), without(Began, token=0x402), without(Ended, token=0x402)),
        ),
    ],
    "nothing_runs_early": [
        ("before its occurrence", changed(Call, {"job_id": 1}, scheduled_at=db(2.0))),
        ("by the database's clock", changed(Run, {"job_id": 1}, started_at=db(0.9))),
    ],
    "attempts_are_bounded": [
        ("more failures than retries", changed(Call, {"job_id": 2}, retries=-1)),
        ("given up too soon", changed(Call, {"job_id": 7}, retries=2)),
        ("more stalls than allowed", told(_fifth_stall)),
        ("given up for stalls that were not", _given_up("stalled 3 times: its node or process died during the run")),
        ("expired without a limit", _given_up("expired")),
        ("given up with no reason", _given_up("the job's row is malformed", expires_in=1.0)),
    ],
    "attempts_are_counted": [
        (
            "a snooze was counted",
            both(changed(Run, {"token": 0x23}, attempt=3), changed(Began, {"token": 0x23}, attempt=3)),
        ),
        (
            "a stall was not counted",
            both(changed(Run, {"token": 0x112}, attempt=1), changed(Began, {"token": 0x112}, attempt=1)),
        ),
        ("the code saw another number", changed(Began, {"token": 0x112}, attempt=3)),
    ],
    "each_run_has_its_line": [
        ("a run without a line", without(Run, token=0x22)),
        ("a line without a run", both(without(Began, token=0x11), without(Ended, token=0x11))),
        ("finished before it started", changed(Run, {"token": 0x11}, finished_at=db(0.99), started_at=db(1.0))),
    ],
    "lines_say_what_happened": [
        ("an error was recorded as success", changed(Ended, {"token": 0x11}, how="raised")),
        ("a success was recorded as interrupted", changed(Ended, {"token": 0x22}, how="returned")),
        ("killed long after its last word", told(lambda s: _killed(s, 61.0, 63.0))),
        (
            "a thread cannot be killed",
            both(told(lambda s: _killed(s, 61.0, 61.2)), changed(Began, {"token": 0x721}, isolation="thread")),
        ),
    ],
    "transactions_happen_exactly_once": [
        (
            "twice",
            told(lambda s: s.effect(s.the(Began, 0x201), 12.15, 9, "transaction")),
        ),
        ("committed, and not there", without(Effect, sequence=1)),
        ("recorded for another occurrence", changed(Run, {"token": 0x212}, scheduled_at=db(39.2))),
        ("rolled back, and there", changed(Ended, {"token": 0x201}, transaction="lost")),
    ],
    "fenced_effects_are_the_owners": [
        ("after the new owner", changed(Effect, {"sequence": 3}, sequence=5, at=db(24.1))),
        ("after the claim was taken", changed(Effect, {"sequence": 3}, at=db(24.4))),
    ],
    "effects_belong_to_runs": [
        ("of a run that never began", changed(Effect, {"sequence": 4}, run_id=run_id(22, 0x999))),
        ("for another occurrence", changed(Effect, {"sequence": 4}, scheduled_at=db(20.0))),
    ],
    "cancels_are_kept": [
        ("cancelled, and failed", changed(Run, {"job_id": 30}, outcome="failed", reason="expired")),
        ("its run was to be the last", told(_after_31)),
    ],
    "requests_reach_the_run": [
        (
            "it is not told",
            both(
                without(Told, token=0x311),
                changed(Ended, {"token": 0x311}, at=19.0),
                changed(Run, {"token": 0x311}, finished_at=db(19.0)),
            ),
        ),
    ],
    "pauses_and_deletes_are_kept": [
        ("it runs while it is paused", changed(Call, {"job_id": 32, "verb": "resume"}, began=70.0, ended=70.1)),
        ("it is still there", both(without(Run, job_id=33), told(lambda s: s.add(row(33, "pending", 500.0))))),
    ],
    "slots_are_kept": [("one too many", told(_crowd))],
    "code_runs_in_its_process": [
        ("begun twice", told(lambda s: s.add(s.the(Began, 0x11)))),
        ("on another node", changed(Began, {"token": 0x11}, node="B")),
        ("in a process that nobody started", changed(Began, {"token": 0x11}, process="z")),
        ("after its process", changed(Life, {"process": "c"}, ended=39.05, started=38.0)),
        ("ended twice", told(lambda s: s.add(s.the(Ended, 0x11)))),
    ],
    "shutdown_is_bounded": [
        ("it takes too long", changed(Life, {"process": "a"}, asked_to_stop=90.0)),
        ("by its own word", changed(Life, {"process": "a"}, asked_to_stop=90.0, left=95.9)),
        (
            "begun after it was asked to stop",
            told(
                lambda s: s.stored(53, 95.0),
                lambda s: s.ran(53, "a", 95.7, 0x531, took=0.1, scheduled_at=db(95.0)),
            ),
        ),
        (
            "a row is left",
            told(lambda s: s.add(_holding(96.5, 54, 0x541, "A"))),
        ),
    ],
}  # fmt: skip


def rules_broken(records: Iterable[Record]) -> set[str]:
    return {violation.rule for violation in check(History.of(records))}


def test_a_good_history_passes() -> None:
    """Faults alone break no rule: what they excuse is excused."""
    assert check(History.of(good())) == []
    assert check(History.of(told(lambda s: _killed(s, 61.0, 61.2))(good()))) == []


@pytest.mark.parametrize(
    ("rule", "change"),
    [pytest.param(rule, change, id=f"{rule}: {what}") for rule, ways in BAD.items() for what, change in ways],
)
def test_each_breach_is_found_by_its_rule_alone(rule: str, change: Change) -> None:
    """A history that breaks one promise is blamed for that one, and for no other."""
    assert rules_broken(change(good())) == {rule}


def test_every_rule_has_a_history_that_breaks_it() -> None:
    """No rule is only decoration."""
    assert {rule.__name__ for rule in RULES} == set(BAD)
