"""Patroni, etcd and HAProxy: its leader is killed under load, and comes back; then it hands over as planned."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.checker import check, report
from tests.failover.patroni import why_not
from tests.failover.scenarios import patroni

pytestmark = [
    pytest.mark.skipif("PGSCHEDULER_FAILOVER" not in os.environ, reason="PGSCHEDULER_FAILOVER is not set"),
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize("planned", [False, True], ids=["killed", "switchover"])
def test_the_leader_changes(tmp_path: Path, planned: bool) -> None:
    """Through HAProxy, with a synchronous standby: every promise is kept, and work goes on by itself."""
    result = patroni(tmp_path, seed=1, planned=planned, tell=print)
    violations = check(result.history)
    assert violations == [], report(result.history, violations)
    assert result.surprises == []
    assert result.figures.full is not None
