"""When the chores are done: a dead node is looked for often enough for the promise, whatever the dice say."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pgscheduler import _maintenance
from pgscheduler._maintenance import CHORES, Chore, Maintenance, Settings

TIMEOUT = 100.0


class Told(Maintenance):
    """Writes down what is done when, by a clock of its own, instead of doing it."""

    def __init__(self) -> None:
        super().__init__(None, Settings(TIMEOUT, 1_209_600, 86_400), None, lambda rows: None)  # type: ignore[arg-type]
        self.done: list[tuple[str, float]] = []
        self.clock = 1000.0

    def do(self, chore: Chore) -> bool:
        self.done.append((chore.name, self.clock))
        return False


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0])
def test_dead_nodes_are_looked_for_four_times_in_each_timeout(monkeypatch: Any, drawn: float) -> None:
    """Jobs of a dead node are due again within 1.25 timeouts: no more than a quarter lies between two looks. P9."""
    told = Told()
    monkeypatch.setattr(_maintenance, "monotonic", lambda: told.clock)
    monkeypatch.setattr(_maintenance, "uniform", lambda low, high: low + drawn * (high - low))
    while told.clock < 1000 + 10 * TIMEOUT:
        slept = told.step()
        assert slept > 0
        told.clock += slept
    looks = [at for name, at in told.done if name == "stalled"]
    assert looks[0] == 1000.0
    gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert len(gaps) >= 40
    assert max(gaps) <= TIMEOUT / 4


def test_every_chore_is_done_at_the_start(monkeypatch: Any) -> None:
    """What happened while no node was there is found at once."""
    told = Told()
    monkeypatch.setattr(_maintenance, "monotonic", lambda: told.clock)
    told.step()
    assert [name for name, _ in told.done] == [chore.name for chore in CHORES]
