"""The reckoning of the recovery measurement, on counts made by hand."""

from __future__ import annotations

import pytest

from tests.chaos import recovery
from tests.chaos.recovery import Trial


def test_rates_are_per_second_whenever_the_samples_came() -> None:
    """A steady hundred per second, sampled irregularly, with three seconds of nothing in it."""
    moments = [0.0, 0.13, 0.9, 1.4, 2.0, 5.0, 5.5, 6.2, 8.0]
    counts = [(at, int(100 * (at if at <= 2 else max(at - 3, 2)))) for at in moments]

    assert recovery._rates(counts, 0.0, 8) == pytest.approx([100, 100, 0, 0, 0, 100, 100, 100])
    assert recovery._rates(counts, 0.5, 1) == pytest.approx([100], abs=1)


def test_a_share_of_nothing_is_no_success() -> None:
    """A node that did nothing before says nothing about recovery."""
    assert not Trial("crash", 6, 0.1, before=0.0, after=10.0, windows=[], lost=0).share >= 0.98
    assert Trial("crash", 6, 0.1, before=200.0, after=196.0, windows=[], lost=0).share == 0.98


def test_wrong_arguments_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A way that does not exist is refused before a server is started."""
    assert recovery.main(["--ways", "crash,flood"]) == 2
    assert "crash, freeze" in capsys.readouterr().err
