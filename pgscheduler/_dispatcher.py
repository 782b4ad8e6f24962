"""Claiming: one statement claims for all slots that are free, or soon will be.

Alone, a job is picked up within a millisecond or two. Under load, freed slots pile up while a claim is in flight, so the
next one takes hundreds at once: batching needs no timer of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg

from ._executors import Workers
from ._ledger import Ledger
from ._recorder import Recorder
from ._store import ClaimRequest, Store, is_connection_error, new_token
from .clock import monotonic
from .states import Claim

__all__ = ["Dispatcher"]

PREFETCH_SECONDS = 0.05  # claim ahead what the slots will have done by then; long jobs are never hoarded
LINGER = 0.004  # seconds between claims under load; the prefetch covers it more than ten times
BATCH_LIMIT = 2000  # jobs per claim
MARKED_RATE = (
    2000.0  # jobs per second from which on a claim starts at the marks: dead entries pile up before them
)
FULL_SCAN_INTERVAL = (
    0.25  # seconds between claims that look at everything, while those from the marks suffice
)
FULL_SCAN_SHARE = (
    20  # a full look that took longer than what it brought explains is followed by so much without
)
FULL_SCAN_PAUSE = 5.0  # seconds without one at most: nothing that fell due before a mark waits for longer
FULL_SCAN_FREE = 0.01  # seconds that any claim may take on a busy machine
FULL_SCAN_PER_JOB = 25e-6  # seconds that claiming a job, and recording one beside it, may take
BLOCKED = 1.0  # seconds; only a fallback for a wake-up that should have come
HOARD_SECONDS = 1.0  # what was claimed ahead and is not started by then goes back to the others
TRIAL_SECONDS = (
    1.0  # what kills its process seldom takes longer; what survived it no longer holds up the next one
)
ASK_SECONDS = 5.0  # between hints to the other nodes that something may be due, and no slot is free here


class Dispatcher:
    """The step of the dispatcher loop, and the one place where jobs are claimed."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        recorder: Recorder,
        node: str,
        names: Callable[[], list[str]],
        slots: int,
        check_interval: float,
        on_lost: Callable[[list[Claim]], None],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._recorder = recorder
        self._node = node
        self._names = names
        self._slots = slots
        self._check_interval = check_interval
        self._on_lost = on_lost
        self.workers: Workers | None = None  # set once by the scheduler: the two know each other
        self._connection: psycopg.Connection[Any] | None = None
        self._wake: Callable[[], None] = lambda: None
        self._unanswered: set[int] = set()  # tokens of claims whose answer never came
        # Claiming.
        self.claiming = True
        self._asked_at: datetime | None = None  # the database's time when it was last asked what is due next
        self._look_at: float | None = None  # monotonic: claim then; None: ask when the next job is due
        self._saturated = False  # the last claim brought all that it asked for, so there is more
        self._marks: dict[int, datetime] = {}  # per priority, where the last claim ended
        self._asked_names: list[str] = []  # those of the last claim
        self._blocked = False  # wants to claim and cannot: no free slot, no name, or fenced
        self._marks_exhausted = False  # the last claim found less than it asked for
        self._affordable_at = 0.0  # monotonic: before that, a look at everything would cost too much
        self._wasted = 0.0  # seconds that the last look at everything took beyond what it brought
        self._full_at = 0.0  # monotonic: from then on a claim looks at everything again
        self._rate = 0.0  # jobs per second, smoothed
        self._rate_at = monotonic()
        self._seen = 0  # outcomes that the last step knew of
        self._hoard = (0, 0.0)  # (runs started, when) at the last sign of life
        self._survivors: list[Claim] = []  # held claims of jobs whose node has died under them before
        self._trial_until = 0.0  # monotonic: until then none that has seen two deaths joins the last one
        self.on_busy: Callable[[], None] = lambda: None  # something may be due that this node has no slot for
        self._asked_others_at = -ASK_SECONDS
        self.counters = {"claimed": 0, "lost": 0, "cycles": 0, "full_looks": 0}

    # --- called by slots and side loops ---------------------------------------------------------------

    def count_from(self, moment: datetime) -> None:
        """What falls due after this moment (the database's) is not overdue: it is found without a first look."""
        self._asked_at = moment

    def wake_with(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def look(self) -> None:
        """Something may be due."""
        self._look_at = 0.0
        self._wake()

    def release_unstarted(self) -> None:
        """Give back what no slot has begun."""
        assert self.workers is not None
        self._recorder.release(self.workers.take_back())

    # --- the loop ---------------------------------------------------------------------------------------

    def step(self) -> float:
        """One look, if there is a reason for one; returns the seconds to sleep."""
        now = monotonic()
        self._release_hoarded(now)
        if self._unanswered:
            self._release_unanswered()
        reported = self._recorder.reported
        ended, self._seen = max(reported - self._seen, 0), max(reported, self._seen)
        request = self._request(now, ended)
        if request is not None:
            self._plan_next_look(request, self._claim(request), now)
        if ended or request is not None:
            self.counters["cycles"] += 1
            self._measure(ended, now)
        return self._sleep()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # --- parts of a step --------------------------------------------------------------------------------

    def _request(self, now: float, ended: int) -> ClaimRequest | None:
        """What to claim, if anything. The end of a run is a reason to look: the work that follows it may be there."""
        self._blocked = False
        wanted = ended or self._saturated or (self._look_at is not None and self._look_at <= now)
        if not wanted or not self.claiming:
            return None
        # In this order: an outcome that is written meanwhile then counts as unfinished, rather than twice as finished.
        held = len(self._ledger)
        unfinished = held - self._recorder.unwritten
        free = min(self._slots + int(self._rate * PREFETCH_SECONDS) - unfinished, BATCH_LIMIT)
        names = self._names()
        if free <= 0 or not names or self._ledger.fenced or self._recorder.stuck:
            self._blocked = True
            due = self._look_at is not None and self._look_at <= now
            if due and names and now - self._asked_others_at > ASK_SECONDS:
                self._asked_others_at = now
                self.on_busy()
            return None
        self._look_at = None  # before the claim: a hint that comes while it is under way must stay
        everything = not self._marks or now >= self._full_at
        if now >= self._affordable_at and (self._marks_exhausted or self._rate < MARKED_RATE):
            everything = True  # so that a more urgent priority is seen at once
        if names != self._asked_names:
            everything = True  # a name that is new here may have been due for long
            self._asked_names = names
        self._marks_exhausted = False
        # Whatever a node holds when it dies counts as a stall, and a few of them end a job. So those that have seen a
        # death are not claimed ahead, to wait beside what may kill this node too: there are never more than slots, and
        # they are first in line. Those that have seen two, of which the next may be the last, begin one at a time.
        self._survivors = [claim for claim in self._survivors if not (claim.settled or claim.lost)]
        on_trial = now < self._trial_until and any(claim.stalls > 1 for claim in self._survivors)
        once = max(self._slots - len(self._survivors), 0)
        return ClaimRequest(free, names, self._marks, everything, once, 0 if on_trial else min(once, 1))

    def claim(self, request: ClaimRequest) -> list[Claim]:
        """Claim. What an answer that never came may have taken is given back first."""
        if self._unanswered:
            self._release_unanswered()
        token = new_token()
        try:
            connection = self._connected()
            self._unanswered.add(token)
            claims = self._store.claim(connection, self._node, request, token)
        except BaseException as error:
            self._look_at = 0.0
            if is_connection_error(error):
                self.close()
            elif isinstance(error, psycopg.Error) and error.sqlstate is not None:
                self._unanswered.discard(token)  # the server refused: nothing was claimed
            raise
        self._unanswered.discard(token)
        return claims

    def _claim(self, request: ClaimRequest) -> list[Claim]:
        """Claim, hold what was claimed, and hand it to the slots."""
        assert self.workers is not None
        claims = self.claim(request)
        if claims:
            self.counters["claimed"] += len(claims)
            self._on_lost(self._ledger.hold(claims))
            self._recorder.tell(claims, [], [])  # before the slots have them: their ends are told after it
            if self.claiming:
                survivors = [claim for claim in claims if claim.stalls]
                self.workers.submit([c for c in claims if not c.stalls] if survivors else claims, survivors)
                self._recorder.wake()
            else:
                # The shutdown began while this claim was under way: nobody would tell its runs to stop.
                self._recorder.release(claims)
        return claims

    def _plan_next_look(self, request: ClaimRequest, claims: list[Claim], began: float) -> None:
        now = monotonic()
        self._saturated = len(claims) >= request.slots
        if request.everything:
            self.counters["full_looks"] += 1
            # A look over a bloated index, or over many jobs of names unknown here, must not take all the time.
            # One alone that took long has waited, for a lock or a processor: two in a row say what a look costs.
            wasted = max(now - began - FULL_SCAN_FREE - len(claims) * FULL_SCAN_PER_JOB, 0.0)
            pause = FULL_SCAN_SHARE * min(wasted, self._wasted)
            self._wasted = wasted
            self._affordable_at = now + min(pause, FULL_SCAN_PAUSE)
            self._full_at = max(self._affordable_at, now + FULL_SCAN_INTERVAL)
            self._marks = {}
        last = {claim.priority: claim for claim in claims}  # they are in order
        self._marks.update((priority, claim.run_at) for priority, claim in last.items())
        if survivors := [claim for claim in claims if claim.stalls]:
            # There may be more of them than this claim could bring, and behind them jobs that are new.
            self._survivors += survivors
            self._look_at = now
            if any(claim.stalls > 1 for claim in survivors):
                self._trial_until = now + TRIAL_SECONDS
        if not self._saturated:
            if not request.everything and self._look_at is None:
                self._look_at = max(self._affordable_at, now)  # nothing behind the marks; maybe before them
            self._marks_exhausted = True

    def _sleep(self) -> float:
        assert self.workers is not None
        if self.workers.ready:
            return LINGER
        now = monotonic()
        if self._blocked or not self.claiming:
            return BLOCKED  # woken by the next outcome, heartbeat or registration
        if self._saturated:
            return 0.0
        if self._look_at is None:
            due_at = now + self._seconds_to_next_due()
            if self._trial_until > now:
                due_at = min(due_at, self._trial_until)  # the next of those that begin one at a time
            if self._look_at is None:  # no hint came while we asked
                self._look_at = due_at
        return max(self._look_at - monotonic(), 0.0)

    def _seconds_to_next_due(self) -> float:
        try:
            asked_before = self._asked_at is not None or not self.counters["cycles"]
            seconds, self._asked_at = self._store.next_due(self._connected(), self._asked_at)
        except BaseException:
            self.close()
            raise
        if not asked_before:
            return 0.0  # what came due between the first claim and this question is in neither answer
        return self._check_interval if seconds is None else min(max(seconds, 0.0), self._check_interval)

    # --- rare things ------------------------------------------------------------------------------------

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = self._store.connect()
        return self._connection

    def _release_unanswered(self) -> None:
        """After a lost connection: what did a claim take unseen?"""
        connection = self._connected()
        try:
            for token in list(self._unanswered):
                connection.execute(self._store.sql["release_claim"], {"node": self._node, "token": token})
                self._unanswered.discard(token)
        except BaseException:
            self.close()
            raise

    def _release_hoarded(self, now: float) -> None:
        """Claimed ahead and still not started: long jobs came in between; let other nodes have them."""
        assert self.workers is not None
        started, since = self._hoard
        if not self.workers.ready or self.workers.started != started:
            self._hoard = (self.workers.started, now)
        elif now - since > HOARD_SECONDS:
            self._rate = 0.0
            self._hoard = (started, now)
            self.release_unstarted()

    def _measure(self, ended: int, now: float) -> None:
        """Jobs per second, as an exponential average over about a tenth of a second."""
        passed = max(now - self._rate_at, 1e-4)
        self._rate_at = now
        weight = min(passed / 0.1, 1.0)
        self._rate += (ended / passed - self._rate) * weight
