"""What the hooks did becomes an outcome: pure functions, tested with values made by hand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest

from pgscheduler import (
    Backoff,
    Cancel,
    Cron,
    Every,
    Fail,
    Job,
    JobCancelled,
    JobConfig,
    Outcome,
    Retry,
    Snooze,
    _ledger,
)
from pgscheduler._decide import (
    Plan,
    ProcessDiedError,
    RemoteError,
    Verdict,
    _misfire,
    decide,
    following,
    prepare,
)
from pgscheduler._ledger import Ledger
from pgscheduler._registry import Registered, Registry
from pgscheduler._runner import Runner
from pgscheduler.job import policy_of
from pgscheduler.states import Claim, Ended, micros

NOON = datetime(2031, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Nothing(Job):
    """Never run here."""

    def run(self, ctx: Any) -> None: ...


def plan(
    *,
    schedule: Any = None,
    failures: int = 0,
    stalls: int = 0,
    scheduled_at: datetime = NOON,
    claimed_at: datetime = NOON,
    run_at: datetime | None = None,
    cancel: bool = False,
    done: bool = False,
    **policies: Any,
) -> Plan:
    """A claim that is to be decided on."""
    config = JobConfig(name="nothing", schedule=schedule, **policies)
    row = (
        7, "nothing", None, 5, micros(run_at or scheduled_at), micros(scheduled_at), failures, stalls,
        config.schedule_json(), config.options_json(),
        None, cancel, done, micros(claimed_at),
    )  # fmt: skip
    claim = Claim(row, 99, 0.0, 0.0)
    return Plan(claim, Registered("nothing", Nothing(config)), policy_of(config.options_json()), schedule)


def brief(end: Ended) -> tuple[Any, ...]:
    return (end.outcome, end.ends, end.failures, end.stalls, end.delay)


BOOM = ValueError("boom")
FIXED = Backoff(initial=timedelta(seconds=10), factor=2, jitter=0)
ENDS = {
    "completed": (Outcome.COMPLETED, True, 0, 0, None),
    "cancelled": (Outcome.CANCELLED, True, 0, 0, None),
    "failed": (Outcome.FAILED, True, 0, 0, None),
}


@pytest.mark.parametrize(
    ("verdict", "reason", "expected"),
    [
        (Verdict(None), None, ENDS["completed"]),
        (Verdict({"a": 1}), None, ENDS["completed"]),
        (Verdict(None), "shutdown", ENDS["completed"]),  # it ended in time: the work is done
        (Verdict(None), "lost", ENDS["completed"]),  # for the fence to refuse
        (Verdict(error=BOOM), None, ENDS["failed"]),
        (Verdict(error=SystemExit(1)), None, ENDS["failed"]),
        (Verdict(error=RemoteError("text")), None, ENDS["failed"]),
        (Verdict(None), "cancelled", ENDS["cancelled"]),
        (Verdict(error=BOOM), "cancelled", ENDS["cancelled"]),
        (Verdict(error=JobCancelled("cancelled")), "cancelled", ENDS["cancelled"]),
        (Verdict(error=JobCancelled("cancelled")), None, ENDS["cancelled"]),
        (Verdict(error=asyncio.CancelledError()), None, ENDS["cancelled"]),
        (Verdict(None), "timeout", (Outcome.TIMED_OUT, True, 0, 0, None)),
        (Verdict(error=JobCancelled("timeout")), "timeout", (Outcome.TIMED_OUT, True, 0, 0, None)),
        (Verdict(error=JobCancelled("shutdown")), "shutdown", (Outcome.INTERRUPTED, False, 0, 0, 0.0)),
        (Verdict(error=asyncio.CancelledError()), "lost", (Outcome.INTERRUPTED, False, 0, 0, 0.0)),
        (Verdict(error=BOOM), "shutdown", ENDS["failed"]),
        (Verdict(Snooze(30)), None, (Outcome.INTERRUPTED, False, 0, 0, 30.0)),
        (Verdict(error=Snooze(30)), None, (Outcome.INTERRUPTED, False, 0, 0, 30.0)),
        (Verdict(error=Cancel("no")), None, ENDS["cancelled"]),
        (Verdict(Fail("no")), None, ENDS["failed"]),
        (Verdict(Retry(5)), None, ENDS["failed"]),  # no retries left
        (Verdict(error=ProcessDiedError("gone")), None, (Outcome.STALLED, False, 0, 1, 0.0)),
        (Verdict(error=ProcessDiedError("gone")), "timeout", (Outcome.TIMED_OUT, True, 0, 0, None)),
        (Verdict(error=ProcessDiedError("gone")), "shutdown", (Outcome.INTERRUPTED, False, 0, 0, 0.0)),
        (Verdict(error=ProcessDiedError("gone")), "cancelled", ENDS["cancelled"]),
    ],
)  # fmt: skip
def test_one_time_without_retries(verdict: Verdict, reason: str | None, expected: tuple[Any, ...]) -> None:
    """Each way in which a run can end has one outcome, and the row leaves or stays accordingly."""
    assert brief(decide(plan(), reason, False, verdict, 0.0, 1.0)) == expected


@pytest.mark.parametrize(
    ("verdict", "reason", "delay"),
    [
        (Verdict(error=BOOM), None, 20.0),
        (Verdict(Retry(5)), None, 5.0),
        (Verdict(error=Retry()), None, 20.0),
        (Verdict(None), "timeout", 20.0),
    ],
)
def test_a_counted_failure_with_a_retry_left(verdict: Verdict, reason: str | None, delay: float) -> None:
    """One more failure, and a delay by the backoff, unless the job names its own."""
    end = decide(plan(failures=1, retries=2, backoff=FIXED), reason, False, verdict, 0.0, 1.0)
    assert (end.ends, end.failures, end.delay) == (False, 2, delay)


@pytest.mark.parametrize("verdict", [Verdict(Fail("no")), Verdict(error=Cancel("no"))])
def test_fail_and_cancel_use_no_retry(verdict: Verdict) -> None:
    """Fail and Cancel end the job however many retries are left."""
    assert decide(plan(retries=5), None, False, verdict, 0.0, 1.0).ends


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_retries_are_bounded(failures: int) -> None:
    """With two retries the third counted failure is the last."""
    assert decide(plan(failures=failures, retries=2), None, False, Verdict(error=BOOM), 0.0, 1.0).ends is (
        failures >= 2
    )


@pytest.mark.parametrize(
    "verdict", [Verdict(error=BOOM), Verdict(Snooze(9)), Verdict(error=JobCancelled("lost")), Verdict(None)]
)
@pytest.mark.parametrize("reason", [None, "cancelled", "timeout", "shutdown", "lost"])
def test_a_committed_transaction_decides(verdict: Verdict, reason: str | None) -> None:
    """Once ctx.transaction() has committed the run is completed, whatever came after it."""
    assert decide(plan(retries=3), reason, True, verdict, 0.0, 1.0).outcome is Outcome.COMPLETED


def test_backoff_none_and_broken() -> None:
    """A backoff that answers None ends the retries; one that raises costs a minute."""
    stop = decide(
        plan(retries=5, backoff=lambda failures, error: None), None, False, Verdict(error=BOOM), 0.0, 1.0
    )
    assert (stop.outcome, stop.ends) == (Outcome.FAILED, True)
    broken = decide(
        plan(retries=5, backoff=lambda failures, error: 1 / 0), None, False, Verdict(error=BOOM), 0.0, 1.0
    )
    assert (broken.ends, broken.delay) == (False, 60.0)
    assert "backoff failed" in (broken.reason or "")


@pytest.mark.parametrize(
    "verdict", [Verdict(None), Verdict(error=BOOM), Verdict(error=Cancel("no")), Verdict(Fail("no"))]
)
def test_a_recurring_job_never_ends(verdict: Verdict) -> None:
    """Whatever its run did, a recurring job goes on with its next occurrence and fresh counts."""
    end = decide(plan(schedule=Cron("0 * * * *"), failures=1, stalls=1), None, False, verdict, 0.0, 1.0)
    assert (end.ends, end.failures, end.stalls, end.next_at) == (False, 0, 0, NOON + timedelta(hours=1))


def test_errors_carry_their_traceback_and_no_locals() -> None:
    """The error's text has type, message and traceback, and no frame's values."""

    def run() -> None:
        password = "hunter2"  # noqa: F841
        raise BOOM

    try:
        run()
    except ValueError as error:
        text = decide(plan(), None, False, Verdict(error=error), 0.0, 1.0).error or ""
    assert "ValueError: boom" in text
    assert "Traceback" in text
    assert len(text) <= 8200


def test_a_result_that_is_not_json_does_not_undo_the_work() -> None:
    """What cannot be stored is left out; the run stays completed."""
    end = decide(plan(), None, False, Verdict({1, 2}), 0.0, 1.0)
    assert (end.outcome, end.result) == (Outcome.COMPLETED, None)


# --- occurrences ------------------------------------------------------------------------------------------


def test_following_without_overlap() -> None:
    """A run that ends before the next occurrence skips nothing."""
    schedule = Cron("* * * * *")
    assert following(schedule, policy_of("{}"), NOON, NOON + timedelta(seconds=59)) == (NOON + MINUTE, [])


@pytest.mark.parametrize(("minutes", "lines"), [(1, 1), (3, 3), (50, 50), (5000, 102)])
def test_following_records_what_the_run_ran_over(minutes: int, lines: int) -> None:
    """Occurrences that fell into the run are recorded as overlap, the oldest of very many in one line."""
    found, skipped = following(
        Cron("* * * * *"), policy_of("{}"), NOON, NOON + minutes * MINUTE + timedelta(seconds=5)
    )
    assert found == NOON + (minutes + 1) * MINUTE
    assert (len(skipped), {line["reason"] for line in skipped}) == (lines, {"overlap"})
    assert skipped[0]["scheduled_at"] == (NOON + MINUTE).isoformat()
    assert skipped[-1]["scheduled_at"] == (NOON + minutes * MINUTE).isoformat()


@pytest.mark.parametrize("misfire", ["run_once", "skip"])
def test_an_interval_keeps_its_phase(misfire: str) -> None:
    """A run that goes on beyond the next occurrences does not begin the interval anew at its end."""
    policy = policy_of(f'{{"misfire":"{misfire}"}}')
    found, _ = following(Every(2 * MINUTE), policy, NOON, NOON + timedelta(minutes=3, seconds=7))
    assert found == NOON + 4 * MINUTE


def test_an_interval_keeps_its_phase_when_it_is_skipped() -> None:
    """Occurrences that are passed over as misfires do not begin the interval anew either."""
    late_by = NOON + 7.5 * MINUTE
    case = plan(schedule=Every(2 * MINUTE), claimed_at=late_by, misfire="skip", misfire_grace=MINUTE)
    end = _misfire(case)
    assert end is not None
    assert (end.outcome, end.next_at) == (None, NOON + 8 * MINUTE)


def test_following_with_run_all() -> None:
    """A job that wants every occurrence gets the very next one, however late."""
    assert following(Every(MINUTE), policy_of('{"misfire":"run_all"}'), NOON, NOON + 10 * MINUTE) == (
        NOON + MINUTE,
        [],
    )


def late(minutes: int, **policies: Any) -> Plan:
    return plan(
        schedule=Cron("* * * * *"), claimed_at=NOON + minutes * MINUTE + timedelta(seconds=1), **policies
    )


def test_misfire_on_time() -> None:
    """Nothing missed: the occurrence is the row's own."""
    case = late(0)
    assert (_misfire(case), case.occurrence, case.skipped) == (None, None, [])


def test_misfire_run_once() -> None:
    """run_once: the latest occurrence runs, the others are recorded."""
    case = late(5)
    assert _misfire(case) is None
    assert case.occurrence == NOON + 5 * MINUTE
    assert [line["scheduled_at"] for line in case.skipped] == [
        (NOON + n * MINUTE).isoformat() for n in range(5)
    ]


def test_misfire_skip_within_and_beyond_its_grace() -> None:
    """skip: the latest one still runs within the grace; beyond it none does, and all are recorded."""
    case = plan(
        schedule=Cron("0 * * * *"),
        claimed_at=NOON + timedelta(minutes=61),
        misfire="skip",
        misfire_grace=timedelta(minutes=2),
    )
    assert _misfire(case) is None
    assert (case.occurrence, len(case.skipped)) == (NOON + timedelta(hours=1), 1)
    case = plan(
        schedule=Cron("0 * * * *"),
        claimed_at=NOON + timedelta(minutes=65),
        misfire="skip",
        misfire_grace=timedelta(minutes=2),
    )
    end = _misfire(case)
    assert end is not None
    assert (end.outcome, len(end.skipped), end.next_at) == (None, 2, NOON + timedelta(hours=2))


def test_misfire_run_all_is_bounded() -> None:
    """run_all: every occurrence, at most `catchup`; what is older is recorded."""
    case = late(5, misfire="run_all")
    assert (_misfire(case), case.occurrence, case.skipped) == (None, None, [])
    case = late(50, misfire="run_all", catchup=10)
    assert _misfire(case) is None
    assert case.occurrence == NOON + 41 * MINUTE
    assert [line["reason"] for line in case.skipped] == ["misfire: more than catchup"]


@pytest.mark.parametrize("counts", [{"failures": 1}, {"stalls": 1}])
def test_the_retry_of_an_occurrence_is_not_a_misfire(counts: dict[str, int]) -> None:
    """An occurrence that was started keeps its turn, however late its retry is."""
    case = late(30, **counts)
    assert (_misfire(case), case.occurrence, case.skipped) == (None, None, [])


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"done": True}, (Outcome.COMPLETED, "completed by its transaction")),
        ({"done": True, "cancel": True}, (Outcome.COMPLETED, "completed by its transaction")),
        ({"cancel": True}, (Outcome.CANCELLED, "cancelled")),
        ({"stalls": 3}, (Outcome.FAILED, "stalled 3 times: its node or process died during the run")),
        ({"expires_in": MINUTE, "claimed_at": NOON + 2 * MINUTE}, (Outcome.FAILED, "expired")),
    ],
)
def test_settled_before_any_code_runs(case: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """Done, cancelled, stalled too often, expired: settled without a run, with the reason."""
    end = prepare(plan(**case))
    assert end is not None
    assert (end.outcome, end.reason, end.ends, end.started) == (*expected, True, None)


@pytest.mark.parametrize(("unproven", "begun"), [(1.9, True), (2.1, False)])
def test_a_claim_that_others_may_have_is_not_begun(
    monkeypatch: pytest.MonkeyPatch, unproven: float, begun: bool
) -> None:
    """After a freeze a run is given back, not begun, even if its slot wakes up before the fence does."""
    reported: list[Any] = []
    registry = Registry()
    registry.register(Nothing())
    ledger = Ledger(no_heartbeat_timeout=2.5, heartbeat_interval=0.5)
    report = lambda claim, end: reported.append(end)  # noqa: E731
    runner = Runner(registry, cast(Any, None), None, report, ledger.outlived, cast(Any, None))
    claim = plan().claim
    monkeypatch.setattr(_ledger, "elapsed", lambda: 100.0)  # it stands still between here and the look at it
    claim.beaten_at = 100.0 - unproven
    assert (runner.plan(claim) is not None) is begun
    assert [(end.outcome, end.ends) for end in reported] == ([] if begun else [(None, False)])


@pytest.mark.parametrize("case", [{}, {"stalls": 2}, {"expires_in": MINUTE, "claimed_at": NOON + MINUTE}])
def test_the_common_claim_falls_through(case: dict[str, Any]) -> None:
    """Nothing to settle: the claim is to run."""
    assert prepare(plan(**case)) is None


@pytest.mark.parametrize(
    "moment",
    [
        NOON,
        datetime(2031, 3, 1, 12, 0, 0, 999_999, tzinfo=UTC),
        datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(2, 1, 1, tzinfo=UTC),
        datetime(9997, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2031, 7, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    ],
    ids=str,
)
def test_a_claim_s_times_are_exact(moment: datetime) -> None:
    """To the microsecond, in UTC, over all that the table may hold; also those set later."""
    claim = plan(run_at=moment, scheduled_at=NOON, claimed_at=NOON).claim
    assert (claim.run_at, claim.run_at.tzinfo) == (moment, UTC)
    assert claim.lateness == (NOON - moment).total_seconds()
    claim.scheduled_at = moment
    assert (claim.scheduled_at, claim.claimed_at) == (moment, NOON)
