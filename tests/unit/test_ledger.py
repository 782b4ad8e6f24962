"""Self-fencing looks at claims only when one may have run out, and finds each one in time all the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgscheduler import _ledger
from pgscheduler._ledger import Ledger
from pgscheduler.states import Claim

PATIENCE, INTERVAL = 8.0, 2.0


def claim(id_: int, sent: float) -> Claim:
    return Claim((id_, "job", None, 5, 0, 0, 0, 0, None, None, None, False, False, 0), id_, sent, 0.0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0, 5)),
        # A claim whose answer came late was sent before others that are held already.
        st.tuples(st.just("hold"), st.floats(0, 9)),
        st.tuples(st.sampled_from(["beat", "settle", "drop"]), st.integers(0, 20)),
        st.just(("beat all", 0)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_each_claim_is_given_up_at_the_first_look_after_it_ran_out(steps: list[tuple[str, Any]]) -> None:
    """Whatever was held, renewed, ended and let go before: as if every look went through all claims."""
    with pytest.MonkeyPatch.context() as patch:
        now = 100.0
        patch.setattr(_ledger, "elapsed", lambda: now)
        ledger = Ledger(PATIENCE + INTERVAL, INTERVAL)
        claims: list[Claim] = []
        for step, value in steps:
            one = claims[value % len(claims)] if claims and step in ("beat", "settle", "drop") else None
            if step == "wait":
                now += value
            elif step == "hold":
                claims.append(claim(len(claims) + 1, now - value))
                ledger.hold([claims[-1]])
            elif step == "beat all":
                ledger.beaten([c for c in ledger.all() if not c.lost], now)
            elif one is not None and step == "beat":
                ledger.beaten([one], now)
            elif one is not None and step == "settle":
                one.settled = True
            elif one is not None:
                ledger.drop([one])
            running = [c for c in ledger.all() if not c.lost and not c.settled]
            wanted = [c for c in running if c.beaten_at < now - PATIENCE]
            first = min((c.beaten_at for c in running), default=now + INTERVAL)
            assert ledger.seconds_to_expiry() <= max(first + PATIENCE - now, 0.0)
            assert ledger.expire() == wanted
            assert all(c.lost for c in wanted)


def test_a_look_at_claims_that_are_all_fresh_touches_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 held claims must not be gone through each second."""
    now = 100.0
    monkeypatch.setattr(_ledger, "elapsed", lambda: now)
    ledger = Ledger(PATIENCE + INTERVAL, INTERVAL)
    ledger.hold([claim(1, now), claim(2, now + 1)])
    monkeypatch.setattr(ledger, "_held", None)
    now += PATIENCE
    assert ledger.expire() == []
    assert ledger.seconds_to_expiry() == 0
    now += 0.5
    with pytest.raises(AttributeError):  # now it has to look
        ledger.expire()


def test_what_was_given_up_or_has_ended_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost runs may go on for hours, and outcomes wait for a slow database."""
    now = 100.0
    monkeypatch.setattr(_ledger, "elapsed", lambda: now)
    ledger = Ledger(PATIENCE + INTERVAL, INTERVAL)
    lost, ended = claim(1, now), claim(2, now)
    ended.settled = True
    ledger.hold([lost, ended])
    now += PATIENCE + 1
    assert ledger.expire() == [lost]
    monkeypatch.setattr(ledger, "_held", None)
    now += PATIENCE
    assert ledger.expire() == []
    assert ledger.seconds_to_expiry() == INTERVAL


def test_an_empty_ledger_is_looked_at_once_an_interval() -> None:
    ledger = Ledger(PATIENCE + INTERVAL, INTERVAL)
    assert ledger.seconds_to_expiry() == INTERVAL
    assert ledger.expire() == []
