"""The fault test as a test: three minutes of everything that this machine allows, and a shorter proof that it sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.checker import check, report
from tests.chaos.nemesis import FAULTS
from tests.chaos.trial import Plan, run
from tests.support import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, /proc and CLOCK_BOOTTIME of Linux")

#: Minutes of faults are not for every run of the tests: PGSCHEDULER_CHAOS=1 asks for them.
ASKED_FOR = pytest.mark.skipif("PGSCHEDULER_CHAOS" not in os.environ, reason="PGSCHEDULER_CHAOS is not set")
SEED = int(os.environ.get("PGSCHEDULER_CHAOS_SEED", "1"))


@pytest.mark.slow
@ASKED_FOR
@pytest.mark.timeout(600)
# A pool that a fault closed under says so while it is being collected; the history is what is judged here.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_promise_is_kept_in_spite_of_everything(tmp_path: Path) -> None:
    """Kills, freezes, outages, cuts and bad jobs for three minutes: no promise is broken."""
    lines: list[str] = []
    result = run(Plan(seed=SEED, faults=tuple(FAULTS), keep=tmp_path), lines.append)
    violations = check(result.history)
    assert violations == [], "\n".join([*lines, report(result.history, violations)])
    assert result.surprises == []
    assert sum(result.faults.values()) > 20


PLANT_EACH = """
import os
from tests.chaos.plants import PLANTS, plant

for name in PLANTS:
    child = os.fork()  # each in a process of its own, for it stays
    if child == 0:
        plant(name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_plants_fit() -> None:
    """The guards that planted bugs take out are where they were: a plant that plants nothing proves nothing."""
    subprocess.run([sys.executable, "-c", PLANT_EACH], check=True, cwd=ROOT)


@pytest.mark.slow
@ASKED_FOR
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("plant", "rule"), [("failures", "attempts_are_bounded")])
def test_a_planted_bug_is_found(tmp_path: Path, plant: str, rule: str) -> None:
    """With a guard taken out of the nodes, a run without any fault finds that it is missing."""
    result = run(Plan(minutes=0.3, seed=SEED, faults=(), plant=plant, keep=tmp_path, settle=15))
    assert rule in {violation.rule for violation in check(result.history)}
