"""The primary is killed under load, and a standby takes over: one that had everything, and one that had not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.checker import check, report
from tests.failover.cluster import why_not
from tests.failover.losses import losses, stale_writes
from tests.failover.scenarios import asynchronous, synchronous

pytestmark = [
    pytest.mark.skipif("PGSCHEDULER_FAILOVER" not in os.environ, reason="PGSCHEDULER_FAILOVER is not set"),
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(400),
]

#: What holds whatever a failover has forgotten. The other rules compare what clients were told with what there is, or
#: tell jobs apart by their ids, and the new primary gives out again those that the old one gave unseen.
HOLD_ANYWAY = {
    "a_lost_claim_writes_nothing",
    "nothing_is_left_undone",
    "no_row_is_left_running",
    "nothing_runs_early",
    "attempts_are_bounded",
    "slots_are_kept",
    "code_runs_in_its_process",
    "shutdown_is_bounded",
}


def test_a_synchronous_standby_takes_over(tmp_path: Path) -> None:
    """No acknowledged job is lost, no transaction happens twice, every promise is kept, and work goes on in seconds."""
    result = synchronous(tmp_path, seed=1, tell=print)
    violations = check(result.history)
    assert violations == [], report(result.history, violations)
    assert result.surprises == []
    assert result.figures.full is not None


def test_a_standby_that_lagged_takes_over(tmp_path: Path) -> None:
    """What it had not received is lost; nothing of it is believed later, and what is left is run to its end."""
    result = asynchronous(tmp_path, seed=1, tell=print)
    assert list(stale_writes(result)) == []
    lost = losses(result)
    assert lost.acknowledged > 0, "the standby did not lag"
    violations = [v for v in check(result.history) if v.rule in HOLD_ANYWAY]
    assert violations == [], report(result.history, violations)
    assert result.surprises == []
    assert result.figures.full is not None
