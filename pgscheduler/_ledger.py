"""The claims that this node holds: one dictionary, one lock, no SQL.

A claim is held from the moment it is claimed until its outcome is *written*. A run that has ended but whose
outcome still waits for a slow database keeps its heartbeat; else it would look stalled and run twice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable

from .clock import elapsed
from .states import Claim

__all__ = ["Ledger"]


class _Changed:
    """Wakes those who wait for the ledger to change; costs nothing while nobody waits."""

    def __init__(self) -> None:
        self._event: threading.Event | None = None

    def tell(self) -> None:
        event = self._event
        if event is not None:
            event.set()

    def wait(self, seconds: float) -> None:
        event = self._event = threading.Event()
        event.wait(seconds)


class Ledger:
    """Who holds what, and since when it is proven."""

    def __init__(self, no_heartbeat_timeout: float, heartbeat_interval: float) -> None:
        self._lock = threading.Lock()
        self._held: dict[
            int, Claim
        ] = {}  # by job id; the dispatcher adds, the recorder drops; guarded by _lock
        # A claim that could not be renewed for this long is given up here before anyone else may take it.
        self._patience = no_heartbeat_timeout - heartbeat_interval
        self._interval = heartbeat_interval
        # No claim here was proven before this: until it is too old there is nothing to look for. Guarded by _lock.
        self._oldest = math.inf
        #: Set when a claim was let go; `shutdown` waits on it.
        self.changed = _Changed()
        self._fenced = False  # set when a claim ran out; cleared by a heartbeat that reached the database
        self._proven_at: float | None = None  # elapsed(), when the last such heartbeat was sent

    def hold(self, claims: Iterable[Claim]) -> list[Claim]:
        """Take these in; returns the runs that are lost by it.

        Who is given a job that it holds already has lost the older claim without having been told (the server
        forgot it in a crash, say), and no heartbeat will ask about it any more.
        """
        older = []
        with self._lock:
            for claim in claims:
                before = self._held.get(claim.id)
                if before is not None and not before.lost and not before.settled:
                    older.append(before)
                self._held[claim.id] = claim
                if claim.beaten_at < self._oldest:
                    self._oldest = claim.beaten_at
        self.lose(older)
        return older

    def outlived(self, claim: Claim) -> bool:
        """True if the claim is so old that somebody else may have the job, also before the fence has seen it: after a
        freeze, or behind a job that held the GIL, another thread may be the first to wake up."""
        return elapsed() - claim.beaten_at > self._patience

    def drop(self, claims: Iterable[Claim]) -> None:
        """Let go of claims whose outcome is written, or that were lost."""
        with self._lock:
            for claim in claims:
                # The same job may have been claimed anew meanwhile; that claim stays.
                if self._held.get(claim.id) is claim:
                    del self._held[claim.id]
        self.changed.tell()

    def __len__(self) -> int:
        return len(self._held)

    def holds(self, claim: Claim) -> bool:
        return self._held.get(claim.id) is claim

    def all(self) -> list[Claim]:
        with self._lock:
            return list(self._held.values())

    def to_beat(self, everything: bool) -> list[Claim]:
        """Claims that need a heartbeat: older than half an interval, so that none waits for two of them.

        With `everything` (a cancel was announced) all of them: a heartbeat's answer tells who is to stop.
        """
        horizon = elapsed() - self._interval / 2
        return [c for c in self.all() if not c.lost and (everything or c.beaten_at < horizon)]

    def beaten(self, claims: Iterable[Claim], at: float) -> None:
        """These heartbeats are written; `at` is when they were *sent*, so the node's view is never the younger."""
        for claim in claims:
            claim.beaten_at = max(claim.beaten_at, at)
        self._proven_at = at
        self._fenced = False

    def expire(self) -> list[Claim]:
        """Self-fencing: the claims that could not be renewed in time, newly marked as lost."""
        horizon = elapsed() - self._patience
        if self._oldest >= horizon:
            return []
        with self._lock:
            running = [c for c in self._held.values() if not c.lost and not c.settled]
            gone = [c for c in running if c.beaten_at < horizon]
            self._oldest = min((c.beaten_at for c in running if c.beaten_at >= horizon), default=math.inf)
        if gone:
            self._fenced = True
            self.lose(gone)
        return gone

    def lose(self, claims: Iterable[Claim]) -> None:
        """These are no longer ours: their runs are told, and nothing of them will be written."""
        for claim in claims:
            claim.stop("lost")

    @property
    def fenced(self) -> bool:
        """True while this node must not claim: it could not prove itself alive, whether it held claims or not."""
        proven_at = self._proven_at
        return self._fenced or (proven_at is not None and elapsed() - proven_at > self._patience)

    def seconds_to_expiry(self) -> float:
        """How long no claim can run out; at most one heartbeat interval."""
        return min(max(self._oldest + self._patience - elapsed(), 0.0), self._interval)
