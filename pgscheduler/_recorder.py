"""Writing what ended: each commit takes all outcomes that piled up while the last one was in flight.

The recorder has a thread and a connection of its own, so that the server writes outcomes while the dispatcher's next
claim is made into objects, and the other way round. Taking turns on one connection cost a quarter of the drain rate.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import psycopg

from . import states
from ._context import RunContext
from ._ledger import Ledger
from ._observer import Observer
from ._store import Store, is_connection_error
from .clock import monotonic
from .states import Claim, Ended

__all__ = ["Fast", "Recorder"]

LINGER = 0.008  # seconds between commits while there is more work; outcomes pile up meanwhile
BATCH_LIMIT = 2000  # plain completions per commit
FINISH_LIMIT = 500  # other outcomes per commit; their statement looks each up in a list of the others
NOTE_INTERVAL = 1.0  # seconds between writes of progress and log lines
IDLE = 5.0  # seconds; only a fallback for a wake-up that should have come
STUCK = 0.5  # seconds; a commit that takes longer waits for a disk, or for a standby that may never come

#: The common outcome: a one-time job that completed, returned nothing and said nothing, as (claim, started, ended).
Fast = tuple[Claim, float, float]


class Recorder:
    """The step of the recorder loop, and the one place where outcomes meet the database."""

    def __init__(
        self, store: Store, ledger: Ledger, node: str, log: Any, on_lost: Callable[[list[Claim]], None]
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._node = node
        self._log = log
        self._on_lost = on_lost
        self.ready: Collection[Claim] = ()  # the slots' queue; set once by the node
        self.on_free: Callable[[], None] = lambda: None  # a slot is about to be idle
        self.on_due: Callable[[], None] = lambda: None  # what was written may have made a job due
        #: Told after each commit what it moved: (claims, completed, finished). None while nobody subscribes.
        self.on_moved: Callable[[list[Claim], list[Fast], list[Ended]], None] | None = None
        self.observer: Observer | None = None  # told the same
        # One who tells at a time. While somebody subscribes it is also held from before a commit until that was told:
        # what the commit let another thread claim is then told after it.
        self._telling = threading.RLock()
        self._connection: psycopg.Connection[Any] | None = None
        self._wake: Callable[[], None] = lambda: None
        # Slots append, the recorder's thread takes. What a failed commit could not write comes back.
        self._completed: deque[Fast] = deque()
        self._finished: deque[Ended] = deque()
        self._in_flight = 0
        self._failing = False  # the last commit was refused, or could not be sent
        self._sent_at: float | None = None  # monotonic: since when the commit that is under way has been
        self._written = 0
        self._noted: dict[int, RunContext] = {}
        self._noted_lock = threading.Lock()
        self._notes_at = 0.0
        # (id, token) of outcomes that may be in history already: their write got no answer.
        self._doubts: set[tuple[int, int]] = set()
        self.recorded = 0

    # --- called by slots and other loops ----------------------------------------------------------------

    def wake_with(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def wake(self) -> None:
        """There is work for the slots, and soon for this loop."""
        self._wake()

    def report(self, claim: Claim, outcome: Any) -> None:
        """A run has ended: an `Ended`, or a `Fast`. Called on the slot's thread; the next commit writes it."""
        claim.settled = True
        if type(outcome) is tuple:
            self._completed.append(outcome)
        else:
            self._finished.append(outcome)
        if not self.ready:
            # A slot is about to be idle. While there is prefetched work, the loops' own rhythm will do.
            self._wake()
            self.on_free()

    def release(self, claims: list[Claim]) -> None:
        """Give back what was never begun."""
        for claim in claims:
            claim.settled = True
            self._finished.append(states.released(claim))
        self._wake()

    def noted(self, context: RunContext) -> None:
        """A run said something: progress or a log line."""
        with self._noted_lock:
            first = not self._noted
            self._noted[id(context)] = context
        if first:
            self._wake()

    @property
    def unwritten(self) -> int:
        return len(self._completed) + len(self._finished) + self._in_flight

    @property
    def stuck(self) -> bool:
        """True while commits get no answer, or fail: whatever is claimed meanwhile would pile up behind them."""
        sent_at = self._sent_at
        slow = sent_at is not None and monotonic() - sent_at > STUCK
        return slow or (self._failing and self.unwritten > 0)

    @property
    def reported(self) -> int:
        """Outcomes so far; may fall short for a moment while some are on their way."""
        return self._written + self.unwritten

    def tell(self, claims: list[Claim], completed: list[Fast], finished: list[Ended]) -> None:
        """Whoever wants to know hears what a commit moved."""
        with self._telling:
            if self.on_moved is not None:
                self.on_moved(claims, completed, finished)
            if self.observer is not None:
                self.observer.moved(claims, completed, finished)

    # --- the loop ---------------------------------------------------------------------------------------

    def step(self) -> float:
        """Write what there is; returns the seconds to sleep."""
        now = monotonic()
        self._connected()  # before it is needed: the first outcome shall find the way open
        completed, finished, notes = self._take(now)
        # Each statement by itself is quicker than both in one pipeline (see `Store._direct`), and nothing needs them to
        # be one transaction.
        try:
            if completed:
                self._write(completed, [], [])
        except BaseException:
            self._finished.extendleft(reversed(finished))
            raise
        if finished or notes:
            self._write([], finished, notes)
        if finished:
            self.on_due()
        if self.unwritten or self.ready:
            return LINGER
        return max(self._notes_at - monotonic(), 0.0) if self._noted else IDLE

    def finish(self) -> None:
        """The loop ends: write what its last step left (a claim that came while the shutdown began), and close."""
        with contextlib.suppress(Exception):
            while self.unwritten:
                self.step()
        self.close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def take_all(self) -> tuple[list[Fast], list[Ended], list[dict[str, Any]]]:
        """Everything that waits to be written; for a pass without the loop."""
        self._notes_at = 0.0
        return self._take(monotonic())

    def settle(self, completed: list[Fast], finished: list[Ended], answer: list[tuple[int, int]]) -> None:
        """The commit is done: let go of what is written."""
        refused = set(answer)
        # The transaction is gone, or the claim. Whether the claim is still ours, the next answer tells.
        gone = [e for e in finished if e.marked and (e.claim.id, e.claim.token) in refused] if refused else []
        if gone:
            finished = [e for e in finished if not e.marked or (e.claim.id, e.claim.token) not in refused]
            refused.difference_update((e.claim.id, e.claim.token) for e in gone)
            self._finished.extend(states.forgotten(e) for e in gone)
            self._written -= len(gone)
        written = [c for c, _, _ in completed] + [e.claim for e in finished]
        if refused:
            # By token: the same job may be held under a newer claim, which is not the one that was refused.
            lost = [c for c in written if (c.id, c.token) in refused]
            lost += [
                c
                for c in self._ledger.all()
                if (c.id, c.token) in refused and c not in lost and not c.settled
            ]
            lost = [c for c in lost if not c.lost]  # the others were told, and counted, before
            self._ledger.lose(lost)
            self._on_lost(lost)
            completed = [f for f in completed if (f[0].id, f[0].token) not in refused]
            finished = [e for e in finished if (e.claim.id, e.claim.token) not in refused]
        self.recorded += len(completed) + len(finished)
        self.tell([], completed, finished)
        self._ledger.drop(written)

    # --- parts of a step --------------------------------------------------------------------------------

    def _take(self, now: float) -> tuple[list[Fast], list[Ended], list[dict[str, Any]]]:
        completed = [self._completed.popleft() for _ in range(min(len(self._completed), BATCH_LIMIT))]
        finished = [self._finished.popleft() for _ in range(min(len(self._finished), FINISH_LIMIT))]
        ids = {claim.id for claim, _, _ in completed}
        if len(ids) < len(completed):
            # An old claim of a job and its successor: one statement takes one outcome per job.
            completed, twins = _apart(completed)
            self._completed.extendleft(reversed(twins))
        notes: list[dict[str, Any]] = []
        if self._noted and now >= self._notes_at:
            self._notes_at = now + NOTE_INTERVAL
            with self._noted_lock:
                contexts, self._noted = list(self._noted.values()), {}
            for context in contexts:
                claim = context._claim
                if claim.settled:
                    continue  # its outcome carries what is left
                progress, lines = context._take_notes()
                if progress is not None or lines:
                    notes.append(
                        {"id": claim.id, "token": claim.token, "progress": progress, "logs": lines or None}
                    )
        return completed, finished, notes

    def _write(self, completed: list[Fast], finished: list[Ended], notes: list[dict[str, Any]]) -> None:
        self._in_flight = taken = len(completed) + len(finished)
        with self._telling if self.on_moved is not None else contextlib.nullcontext():
            try:
                connection = self._connected()
                self._sent_at = monotonic()
                completed, finished = self._resolve_doubts(connection, completed, finished)
                refused = self._store.complete(connection, completed) if completed else []
                if finished or notes:
                    refused += self._store.finish(connection, finished, notes)
            except BaseException as error:
                self._completed.extendleft(reversed(completed))
                self._finished.extendleft(reversed(finished))
                self._in_flight, self._sent_at = 0, None
                # A row that somebody keeps locked is no reason: the other outcomes are written (see `_salvage`).
                self._failing = not isinstance(error, psycopg.errors.LockNotAvailable)
                if is_connection_error(error):
                    self._doubts.update((c.id, c.token) for c, _, _ in completed)
                    self._doubts.update((e.claim.id, e.claim.token) for e in finished)
                    self.close()
                else:
                    self._salvage()  # the server refused: nothing of this commit happened
                raise
            waited, self._sent_at, self._failing = self.stuck, None, False
            self.settle(completed, finished, refused)
        self._written += taken
        self._in_flight = 0
        if waited:
            self.on_free()  # the dispatcher has waited for this

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = self._store.connect()
            self._store.prepare_outcomes(self._connection)
        return self._connection

    # --- rare things ------------------------------------------------------------------------------------

    def _resolve_doubts(
        self, connection: psycopg.Connection[Any], completed: list[Fast], finished: list[Ended]
    ) -> tuple[list[Fast], list[Ended]]:
        """After a lost connection: which outcomes did get written?

        Without this a run whose record *was* committed would look as if it had lost its claim.
        """
        claims = [c for c, _, _ in completed] + [e.claim for e in finished] if self._doubts else []
        claims = [c for c in claims if self._doubted(c)]
        if claims:
            known = self._store.written(connection, claims)
            if known:
                # By token: an older claim of the same job may be in history, as stalled.
                self._ledger.drop([c for c in claims if (c.id, c.token) in known])
                completed = [f for f in completed if (f[0].id, f[0].token) not in known]
                finished = [e for e in finished if (e.claim.id, e.claim.token) not in known]
            self._doubts.difference_update((c.id, c.token) for c in claims)
        return completed, finished

    def _doubted(self, claim: Claim) -> bool:
        return (claim.id, claim.token) in self._doubts

    def _salvage(self) -> None:
        """The server refused a commit's data: write outcome by outcome, so that one cannot hold up the others.

        What is in doubt is left to the next commit, which asks first.
        """
        connection = self._connected()
        taken = [self._completed.popleft() for _ in range(min(len(self._completed), BATCH_LIMIT))]
        completed, left = _apart([outcome for outcome in taken if not self._doubted(outcome[0])])
        self._completed.extendleft([*left, *(outcome for outcome in taken if self._doubted(outcome[0]))])
        if completed:
            try:
                refused = self._store.complete(connection, completed)
            except BaseException:
                self._completed.extendleft(reversed(completed))
                raise
            self.settle(completed, [], refused)
            self._written += len(completed)
        for _ in range(len(self._finished)):
            outcome = self._finished.popleft()
            if self._doubted(outcome.claim):
                self._finished.append(outcome)
                continue
            for attempt in (outcome, outcome.bare()):
                try:
                    refused = self._store.finish(connection, [attempt])
                except psycopg.errors.LockNotAvailable:
                    self._finished.append(outcome)
                    break
                except BaseException as error:
                    if is_connection_error(error) or not isinstance(error, Exception):
                        self._finished.appendleft(outcome)
                        self._doubts.add((outcome.claim.id, outcome.claim.token))
                        self.close()
                        raise
                    if _is_server_trouble(error):
                        self._finished.appendleft(outcome)
                        raise
                    self._log.error(
                        "outcome refused by the server",
                        job=outcome.claim.name,
                        key=outcome.claim.key,
                        attempt=outcome.claim.attempt,
                        error=str(error)[:300],
                    )
                    continue
                self.settle([], [attempt], refused)
                self._written += 1
                break
            else:
                # Not even without what the job said. Beating on would keep the job from everybody for ever.
                self._ledger.drop([outcome.claim])
                self._written += 1


def _apart(completed: list[Fast]) -> tuple[list[Fast], list[Fast]]:
    """The first outcome of each job, and the others."""
    first: dict[int, Fast] = {}
    twins = [outcome for outcome in completed if first.setdefault(outcome[0].id, outcome) is not outcome]
    return list(first.values()), twins


def _is_server_trouble(error: BaseException) -> bool:
    """True if the server cannot write anything now (disk full, out of memory, read error): the data is not at fault."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state is not None and state[:2] in ("40", "53", "55", "58", "XX")
