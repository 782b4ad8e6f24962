"""The cycle: record what ended and claim what is due, in one transaction and one round trip.

Alone, a job is picked up within a millisecond or two. Under load, outcomes and free slots pile up while a cycle's
commit is in flight, so the next cycle takes hundreds at once: batching needs no timer of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg

from . import states
from ._context import RunContext
from ._executors import Workers
from ._ledger import Ledger
from ._store import ClaimRequest, Cycle, Store, new_token
from .clock import monotonic
from .states import Claim, Ended

__all__ = ["Dispatcher"]

PREFETCH_SECONDS = 0.05  # claim ahead what the slots will have done by then; long jobs are never hoarded
LINGER = 0.004  # seconds between cycles under load; the prefetch covers it more than ten times
BATCH_LIMIT = 2000  # jobs per claim, and plain completions per cycle
FINISH_LIMIT = 500  # other outcomes per cycle; their statement looks each up in a list of the others
NOTE_INTERVAL = 1.0  # seconds between writes of progress and log lines
MARKED_RATE = (
    2000.0  # jobs per second from which on a claim starts at the marks: dead entries pile up before them
)
FULL_SCAN_INTERVAL = (
    0.25  # seconds between claims that look at everything, while those from the marks suffice
)
FULL_SCAN_SHARE = (
    20  # a full look that took longer than what it brought explains is followed by so much without
)
FULL_SCAN_FREE = 0.02  # seconds that any cycle may take on a busy machine
FULL_SCAN_PER_JOB = 50e-6  # seconds that claiming a job, and recording one beside it, may take
BLOCKED = 1.0  # seconds; only a fallback for a wake-up that should have come
HOARD_SECONDS = 1.0  # what was claimed ahead and is not started by then goes back to the others

Fast = tuple[Claim, float, float]


class Dispatcher:
    """The step of the dispatcher loop, and the one place where outcomes and claims meet the database."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        node: str,
        names: Callable[[], list[str]],
        slots: int,
        check_interval: float,
        log: Any,
        on_lost: Callable[[list[Claim]], None],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._node = node
        self._names = names
        self._slots = slots
        self._check_interval = check_interval
        self._log = log
        self._on_lost = on_lost
        self.workers: Workers | None = None  # set once by the scheduler: the two know each other
        #: Told after each commit what it moved: (claims, completed, finished). None while nobody subscribes.
        self.on_moved: Callable[[list[Claim], list[Fast], list[Ended]], None] | None = None
        self._connection: psycopg.Connection[Any] | None = None
        self._wake: Callable[[], None] = lambda: None
        # Outcomes: slots append, the dispatcher's thread takes. What a failed cycle could not write comes back.
        self._completed: deque[Fast] = deque()
        self._finished: deque[Ended] = deque()
        self._noted: dict[int, RunContext] = {}
        self._noted_lock = threading.Lock()
        self._notes_at = 0.0
        self._doubtful = False  # a write failed half-way: some of the outcomes may be in history already
        self._unanswered: set[int] = set()  # tokens of claims whose answer never came
        # Claiming.
        self.claiming = True
        self._asked_at: datetime | None = None  # the database's time when it was last asked what is due next
        self._look_at: float | None = None  # monotonic: claim then; None: ask when the next job is due
        self._saturated = False  # the last claim brought all that it asked for, so there is more
        self._marks: dict[int, datetime] = {}  # per priority, where the last claim ended
        self._blocked = False  # wants to claim and cannot: no free slot, no name, or fenced
        self._marks_exhausted = False  # the last claim found less than it asked for
        self._affordable_at = 0.0  # monotonic: before that, a look at everything would cost too much
        self._full_at = 0.0  # monotonic: from then on a claim looks at everything again
        self._rate = 0.0  # jobs per second, smoothed
        self._rate_at = monotonic()
        self._hoard = (0, 0.0)  # (runs started, when) at the last sign of life
        self.counters = {"claimed": 0, "recorded": 0, "lost": 0, "cycles": 0, "full_looks": 0}

    # --- called by slots and side loops ---------------------------------------------------------------

    def count_from(self, moment: datetime) -> None:
        """What falls due after this moment (the database's) is not overdue: it is found without a first look."""
        self._asked_at = moment

    def wake_with(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def report(self, claim: Claim, outcome: Any) -> None:
        """A run has ended: an `Ended`, or a `Fast`. Called on the slot's thread; the next cycle writes it."""
        claim.settled = True
        if type(outcome) is tuple:
            self._completed.append(outcome)
        else:
            self._finished.append(outcome)
        workers = self.workers
        if workers is None or not workers.ready:
            # A slot is about to be idle. While there is prefetched work, the cycle's own rhythm will do.
            self._wake()

    def noted(self, context: RunContext) -> None:
        """A run said something: progress or a log line."""
        with self._noted_lock:
            first = not self._noted
            self._noted[id(context)] = context
        if first:
            self._wake()

    def look(self) -> None:
        """Something may be due."""
        self._look_at = 0.0
        self._wake()

    def release_unstarted(self) -> None:
        """Give back what no slot has begun."""
        assert self.workers is not None
        self._release(self.workers.take_back())

    def _release(self, claims: list[Claim]) -> None:
        for claim in claims:
            claim.settled = True
            self._finished.append(states.released(claim))
        self._wake()

    @property
    def unwritten(self) -> int:
        return len(self._completed) + len(self._finished)

    # --- the loop ---------------------------------------------------------------------------------------

    def step(self) -> float:
        """One cycle; returns the seconds to sleep."""
        now = monotonic()
        self._release_hoarded(now)
        completed, finished, notes = self._take(now)
        request = self._request(now, len(completed) + len(finished))
        if request is not None or completed or finished or notes:
            answer = self._cycle(completed, finished, notes, request)
            self._settle(completed, finished, answer, now)
            if request is not None:
                self._plan_next_look(request, answer.claims, now)
        return self._sleep()

    def finish(self) -> None:
        """The loop ends: write what its last step left (a claim that came while the shutdown began), and close."""
        with contextlib.suppress(Exception):
            if self.unwritten:
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

    def settle(self, completed: list[Fast], finished: list[Ended], answer: Cycle) -> None:
        """What follows a pass's commit."""
        self._settle(completed, finished, answer, monotonic())

    # --- parts of a cycle -------------------------------------------------------------------------------

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

    def _request(self, now: float, taken: int) -> ClaimRequest | None:
        """What to claim, if anything. A cycle that writes outcomes looks as well: it costs no round trip."""
        self._blocked = False
        wanted = taken or self._saturated or (self._look_at is not None and self._look_at <= now)
        if not wanted or not self.claiming:
            return None
        unfinished = len(self._ledger) - taken - self.unwritten
        free = min(self._slots + int(self._rate * PREFETCH_SECONDS) - unfinished, BATCH_LIMIT)
        names = self._names()
        if free <= 0 or not names or self._ledger.fenced:
            self._blocked = True
            return None
        self._look_at = None  # before the claim: a hint that comes while it is under way must stay
        everything = not self._marks or now >= self._full_at
        if now >= self._affordable_at and (self._marks_exhausted or self._rate < MARKED_RATE):
            everything = True  # so that a more urgent priority is seen at once
        self._marks_exhausted = False
        return ClaimRequest(free, names, self._marks, everything)

    def _cycle(
        self,
        completed: list[Fast],
        finished: list[Ended],
        notes: list[dict[str, Any]],
        request: ClaimRequest | None,
    ) -> Cycle:
        token = new_token()
        try:
            connection = self._connected()
            completed, finished = self._resolve_doubts(connection, completed, finished)
            if request is not None:
                self._unanswered.add(token)
            answer = self._store.cycle(connection, self._node, completed, finished, notes, request, token)
        except BaseException as error:
            self._look_at = 0.0
            self._completed.extendleft(reversed(completed))
            self._finished.extendleft(reversed(finished))
            if _is_connection_error(error):
                self._doubtful = True
                self.close()
            else:
                self._unanswered.discard(token)  # the server refused: nothing of this cycle happened
                self._salvage()
            raise
        self._unanswered.discard(token)
        return answer

    def _settle(self, completed: list[Fast], finished: list[Ended], answer: Cycle, now: float) -> None:
        """The commit is done: let go of what is written, hold what was claimed and hand it to the slots."""
        assert self.workers is not None
        self.counters["cycles"] += 1
        written = [c for c, _, _ in completed] + [e.claim for e in finished]
        if answer.refused:
            refused = set(answer.refused)
            # By token: the same job may be held under a newer claim, which is not the one that was refused.
            lost = [c for c in written if (c.id, c.token) in refused]
            lost += [
                c
                for c in self._ledger.all()
                if (c.id, c.token) in refused and c not in lost and not c.settled
            ]
            self.counters["lost"] += len(lost)
            self._ledger.lose(lost)
            self._on_lost(lost)
            completed = [f for f in completed if (f[0].id, f[0].token) not in refused]
            finished = [e for e in finished if (e.claim.id, e.claim.token) not in refused]
        self._ledger.drop(written)
        self.counters["recorded"] += len(completed) + len(finished)
        if answer.claims:
            self.counters["claimed"] += len(answer.claims)
            self._ledger.hold(answer.claims)
            if self.claiming:
                self.workers.submit(answer.claims)
            else:
                # The shutdown began while this claim was under way: nobody would tell its runs to stop.
                self._release(answer.claims)
        self._measure(len(written), now)
        if self.on_moved is not None:
            self.on_moved(answer.claims, completed, finished)

    def _plan_next_look(self, request: ClaimRequest, claims: list[Claim], began: float) -> None:
        now = monotonic()
        self._saturated = len(claims) >= request.slots
        if request.everything:
            self.counters["full_looks"] += 1
            # A look over a bloated index, or over many jobs of names unknown here, must not take all the time.
            wasted = now - began - FULL_SCAN_FREE - len(claims) * FULL_SCAN_PER_JOB
            self._affordable_at = now + FULL_SCAN_SHARE * max(wasted, 0.0)
            self._full_at = max(self._affordable_at, now + FULL_SCAN_INTERVAL)
            self._marks = {}
        for claim in claims:
            self._marks[claim.priority] = claim.run_at  # in order, so the last one of each priority stays
        if not self._saturated:
            if not request.everything and self._look_at is None:
                self._look_at = max(self._affordable_at, now)  # nothing behind the marks; maybe before them
            self._marks_exhausted = True

    def _sleep(self) -> float:
        assert self.workers is not None
        if self.unwritten or self.workers.ready:
            return LINGER
        now = monotonic()
        if self._blocked or not self.claiming:
            return BLOCKED  # woken by the next outcome, heartbeat or registration
        if self._saturated:
            return 0.0
        if self._look_at is None:
            due_at = now + self._seconds_to_next_due()
            if self._look_at is None:  # no hint came while we asked
                self._look_at = due_at
        wait = max(self._look_at - monotonic(), 0.0)
        return min(wait, max(self._notes_at - now, 0.0)) if self._noted else wait

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

    def _resolve_doubts(
        self, connection: psycopg.Connection[Any], completed: list[Fast], finished: list[Ended]
    ) -> tuple[list[Fast], list[Ended]]:
        """After a lost connection: which outcomes did get written, and what did a claim take unseen?

        Without this a run whose record *was* committed would look as if it had lost its claim.
        """
        if self._doubtful:
            claims = [c for c, _, _ in completed] + [e.claim for e in finished]
            known = self._store.written(connection, claims) if claims else set()
            if known:
                self._ledger.drop([c for c in claims if c.id in known])
                completed = [f for f in completed if f[0].id not in known]
                finished = [e for e in finished if e.claim.id not in known]
            self._doubtful = False
        for token in list(self._unanswered):
            connection.execute(self._store.sql["release_claim"], {"node": self._node, "token": token})
            self._unanswered.discard(token)
        return completed, finished

    def _salvage(self) -> None:
        """The server refused a cycle's data: write outcome by outcome, so that one cannot hold up the others."""
        connection = self._connected()
        completed = [self._completed.popleft() for _ in range(min(len(self._completed), BATCH_LIMIT))]
        if completed:
            try:
                answer = self._store.cycle(connection, self._node, completed, [], [], None, 0)
            except BaseException:
                self._completed.extendleft(reversed(completed))
                raise
            self._settle(completed, [], answer, monotonic())
        for _ in range(len(self._finished)):
            outcome = self._finished.popleft()
            for attempt in (outcome, outcome.bare()):
                try:
                    answer = self._store.cycle(connection, self._node, [], [attempt], [], None, 0)
                except psycopg.errors.LockNotAvailable:
                    self._finished.append(outcome)
                    break
                except BaseException as error:
                    if _is_connection_error(error) or not isinstance(error, Exception):
                        self._finished.appendleft(outcome)
                        self._doubtful = True
                        self.close()
                        raise
                    self._log.error(
                        "outcome refused by the server", job=outcome.claim.name, error=str(error)[:300]
                    )
                    continue
                self._settle([], [attempt], answer, monotonic())
                break

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


def _apart(completed: list[Fast]) -> tuple[list[Fast], list[Fast]]:
    """The first outcome of each job, and the others."""
    first: dict[int, Fast] = {}
    twins = [outcome for outcome in completed if first.setdefault(outcome[0].id, outcome) is not outcome]
    return list(first.values()), twins


def _is_connection_error(error: BaseException) -> bool:
    """True if the connection is gone, so that nobody knows what the server did."""
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate[:2] in ("08", "57") or error.sqlstate == "25006"
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | ConnectionError | OSError)
