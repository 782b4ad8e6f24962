"""Proof of life: one statement per interval for this node and all its claims; and the fence when it fails.

Two loops. `Heartbeat` writes, on a connection of its own, so that no job can keep it waiting for one. `Fence`
watches the clock: it must work exactly when the heartbeat hangs in a dead network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from ._ledger import Ledger
from ._observer import Observer
from ._store import Store
from .clock import elapsed
from .states import Claim

__all__ = ["Fence", "Heartbeat"]


class Heartbeat:
    """The step of the heartbeat loop."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        interval: float,
        describe: Callable[[], Mapping[str, Any]],
        on_lost: Callable[[list[Claim]], None],
        recovered: Callable[[], None],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._interval = interval
        self._describe = describe  # the node's row: id, host, names, …
        self._on_lost = on_lost
        self._recovered = recovered
        self._connection: psycopg.Connection[Any] | None = None
        self.observer: Observer | None = None
        self.everything = False  # set by the listener when a cancel was announced
        self._due = 0.0

    def step(self) -> float:
        """Beat; returns the seconds until the next. Raises when the database cannot be reached."""
        everything, self.everything = self.everything, False
        claims = self._ledger.to_beat(everything)
        sent = elapsed()
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._store.connect()
                sent = elapsed()
            alive = self._store.heartbeat(self._connection, self._describe(), claims)
        except BaseException:
            self.close()
            self.everything = self.everything or everything
            raise
        kept, lost, locked = [], [], False
        for claim in claims:
            token, cancel, renewed = alive.get(claim.id, (None, False, False))
            if token != claim.token:
                lost.append(claim)
                continue
            if renewed:
                kept.append(claim)
            else:
                # Ours, but once the lock is gone its last heartbeat is what counts: no proof, so ask again soon.
                locked = True
            if cancel and claim.stop_reason is None:
                claim.cancel_requested = True
                claim.stop("cancelled")
        fenced = self._ledger.fenced
        self._ledger.beaten(kept, sent)
        if self.observer is not None:
            self.observer.beaten(sent)
        # A run that ended while we asked is not lost: its outcome was written, or will find out itself.
        lost = [c for c in lost if self._ledger.holds(c) and not c.settled and not c.lost]
        if lost:
            self._ledger.lose(lost)
            self._on_lost(lost)
        if fenced:
            self._recovered()
        return self._interval / 4 if locked else self._interval

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Fence:
    """The step of the fence loop: claims that could not be renewed in time are given up here first."""

    def __init__(self, ledger: Ledger, on_lost: Callable[[list[Claim]], None]) -> None:
        self._ledger = ledger
        self._on_lost = on_lost

    def step(self) -> float:
        gone = self._ledger.expire()
        if gone:
            self._on_lost(gone)
        # Checked often: after a freeze the first thing this node does should be to know that it was frozen.
        return min(max(self._ledger.seconds_to_expiry(), 0.01), 1.0)
