"""Writing what ended: each commit takes all outcomes that piled up while the last one was in flight.

The recorder has a thread and a connection of its own, so that the server writes outcomes while the dispatcher's next
claim is made into objects, and the other way round. Taking turns on one connection cost a quarter of the drain rate.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import psycopg

from . import states
from ._context import RunContext
from ._ledger import Ledger
from ._observer import Observer
from ._store import Refused, Store, is_connection_error
from .clock import monotonic
from .states import Claim, Ended, Outcome

__all__ = ["Fast", "Recorder"]

LINGER = 0.008  # seconds between commits while there is more work; outcomes pile up meanwhile
BATCH_LIMIT = 2000  # plain completions per commit
FINISH_LIMIT = 500  # other outcomes per commit; their statement looks each up in a list of the others
NOTE_INTERVAL = 1.0  # seconds between writes of progress and log lines
IDLE = 5.0  # seconds; only a fallback for a wake-up that should have come
STUCK = 0.5  # seconds; a commit that takes longer waits for a disk, or for a standby that may never come
LOCKED_PAUSE = 0.5  # seconds between tries at a row that somebody holds locked; the first comes after LINGER

#: The common outcome: a one-time job that completed, returned nothing and said nothing, as (claim, started, ended).
Fast = tuple[Claim, float, float]
#: What says which claim it is: its (id, token).
Key = tuple[int, int]

_NOTHING = Refused([], [])


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
        self._failing = False  # the last commit was refused, or could not be sent, or there is no connection
        self._sent_at: float | None = None  # monotonic: since when the commit that is under way has been
        self._written = 0
        self._noted: dict[int, RunContext] = {}
        self._noted_lock = threading.Lock()
        self._notes_at = 0.0
        self._unsaid: dict[Key, dict[str, Any]] = {}  # notes that a commit could not write, for the next one
        # Outcomes whose rows somebody else holds locked, each with the time of the next try; and how long that pause is.
        self._locked: list[tuple[float, Ended]] = []
        self._pauses: dict[Key, float] = {}
        # Outcomes that may be in history already: their write got no answer.
        self._doubts: set[Key] = set()
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
        return len(self._completed) + len(self._finished) + len(self._locked) + self._in_flight

    @property
    def stuck(self) -> bool:
        """True while commits get no answer, or fail: whatever is claimed meanwhile would pile up behind them."""
        sent_at = self._sent_at
        slow = sent_at is not None and monotonic() - sent_at > STUCK
        return slow or (self._failing and self.unwritten > 0) or len(self._locked) > BATCH_LIMIT

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
            self._keep_notes(notes)
            raise
        before = self._written
        if finished or notes:
            self._write([], finished, notes)
        if self._written > before:
            self.on_due()
        if self._completed or self._finished or self.ready:
            return LINGER
        now = monotonic()
        again = [now + IDLE, *(at for at, _ in self._locked)]
        if self._noted or self._unsaid:
            again.append(self._notes_at)
        return max(min(again) - now, 0.0)

    def finish(self) -> None:
        """The loop ends: write what its last step left (a claim that came while the shutdown began), and close."""
        patience = monotonic() + LOCKED_PAUSE
        with contextlib.suppress(Exception):
            while self._completed or self._finished or (self._locked and monotonic() < patience):
                pause = self.step()
                if self._locked:
                    time.sleep(min(pause, LINGER))
        self.close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def waiting(self) -> list[Outcome | None]:
        """How those runs ended that wait to be written."""
        return [Outcome.COMPLETED] * len(self._completed) + [ended.outcome for ended in self._finished]

    def settle(self, completed: list[Fast], finished: list[Ended], answer: Refused) -> None:
        """The commit is done: let go of what is written, and keep what is for another one."""
        refused = set(answer.lost)
        if refused or answer.locked:
            completed, finished = self._keep(completed, finished, refused, set(answer.locked))
        written = [c for c, _, _ in completed] + [e.claim for e in finished]
        if self._doubts or self._pauses:
            for claim in written:
                self._doubts.discard(_key(claim))
                self._pauses.pop(_key(claim), None)
        if refused:
            # By token: the same job may be held under a newer claim, which is not the one that was refused.
            lost = [c for c in written if _key(c) in refused]
            lost += [c for c in self._ledger.all() if _key(c) in refused and c not in lost and not c.settled]
            lost = [c for c in lost if not c.lost]  # the others were told, and counted, before
            self._ledger.lose(lost)
            self._on_lost(lost)
            completed = [f for f in completed if _key(f[0]) not in refused]
            finished = [e for e in finished if _key(e.claim) not in refused]
        self.recorded += len(completed) + len(finished)
        self.tell([], completed, finished)
        self._ledger.drop(written)

    # --- parts of a step --------------------------------------------------------------------------------

    def _take(self, now: float) -> tuple[list[Fast], list[Ended], list[dict[str, Any]]]:
        if self._locked:
            due = [outcome for at, outcome in self._locked if at <= now]
            self._locked = [(at, outcome) for at, outcome in self._locked if at > now]
            for outcome in due:
                self._again(outcome)
        completed = [self._completed.popleft() for _ in range(min(len(self._completed), BATCH_LIMIT))]
        finished = [self._finished.popleft() for _ in range(min(len(self._finished), FINISH_LIMIT))]
        ids = {claim.id for claim, _, _ in completed}
        if len(ids) < len(completed):
            # An old claim of a job and its successor: one statement takes one outcome per job.
            completed, twins = _apart(completed)
            self._completed.extendleft(reversed(twins))
        if self._unsaid:
            for ended in finished:
                if (note := self._unsaid.pop(_key(ended.claim), None)) is not None:
                    ended.progress = ended.progress or note["progress"]
                    ended.logs = note["logs"] + ended.logs
        notes: list[dict[str, Any]] = []
        if (self._noted or self._unsaid) and now >= self._notes_at:
            self._notes_at = now + NOTE_INTERVAL
            with self._noted_lock:
                contexts, self._noted = list(self._noted.values()), {}
            for context in contexts:
                claim = context._claim
                if claim.settled:
                    continue  # its outcome carries what is left
                progress, lines = context._take_notes()
                if progress is not None or lines:
                    before = self._unsaid.pop(_key(claim), {"progress": None, "logs": []})
                    note = {"progress": progress or before["progress"], "logs": before["logs"] + lines}
                    notes.append({"id": claim.id, "token": claim.token, **note})
            notes += self._unsaid.values()
            self._unsaid = {}
        return completed, finished, notes

    def _write(self, completed: list[Fast], finished: list[Ended], notes: list[dict[str, Any]]) -> None:
        self._in_flight = taken = len(completed) + len(finished)
        plain = other = _NOTHING
        with self._telling if self.on_moved is not None else contextlib.nullcontext():
            try:
                connection = self._connected()
                self._sent_at = monotonic()
                completed, finished = self._resolve_doubts(connection, completed, finished)
                if completed:
                    plain = self._store.complete(connection, completed)
                if finished or notes:
                    other = self._store.finish(connection, finished, notes)
            except BaseException as error:
                self._written += taken - len(completed) - len(finished)  # those that were no longer in doubt
                self._completed.extendleft(reversed(completed))
                self._finished.extendleft(reversed(finished))
                self._keep_notes(notes)
                self._in_flight, self._sent_at, self._failing = 0, None, True
                if is_connection_error(error):
                    self._doubts.update(_key(c) for c, _, _ in completed)
                    self._doubts.update(_key(e.claim) for e in finished)
                    self.close()
                else:
                    self._salvage()  # the server refused: nothing of this commit happened
                raise
            waited, self._sent_at, self._failing = self.stuck, None, False
            refused = Refused(plain.lost + other.lost, plain.locked + other.locked)
            self._keep_notes([note for note in notes if (note["id"], note["token"]) in refused.locked])
            self.settle(completed, finished, refused)
        self._written += taken
        self._in_flight = 0
        if waited:
            self.on_free()  # the dispatcher has waited for this

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._failing = True
            self._connection = self._store.connect()
            self._store.prepare_outcomes(self._connection)
            self._failing = False
            self.on_free()  # the dispatcher may have waited for this
        return self._connection

    def _keep(
        self, completed: list[Fast], finished: list[Ended], refused: set[Key], locked: set[Key]
    ) -> tuple[list[Fast], list[Ended]]:
        """Put aside what another commit must write, and take it out of `refused`; returns the rest."""
        kept: set[Key] = set()
        outcomes: list[Fast | Ended] = [*completed, *finished]
        for outcome in outcomes:
            claim = _claim(outcome)
            key = _key(claim)
            if key in locked:
                self._try_later(claim, outcome)
            elif key not in refused:
                continue
            elif isinstance(outcome, Ended) and outcome.marked:
                # The transaction is gone, or the claim. Whether the claim is still ours, the next answer tells.
                self._finished.append(states.forgotten(outcome))
            elif key in self._doubts:
                self._again(outcome)  # its first write may have come through just now: history is asked again
            else:
                continue
            kept.add(key)
        refused -= kept
        self._written -= len(kept)
        return (
            [f for f in completed if _key(f[0]) not in kept],
            [e for e in finished if _key(e.claim) not in kept],
        )

    def _try_later(self, claim: Claim, outcome: Fast | Ended) -> None:
        """Somebody else has the row locked. A heartbeat is done with it at once; a transaction of the user's may take
        as long as it likes, and then nobody else can have the job either."""
        before = self._pauses.get(_key(claim), LINGER / 2)
        pause = self._pauses[_key(claim)] = min(2 * before, LOCKED_PAUSE)
        if not isinstance(outcome, Ended):
            _, started, ended = outcome
            outcome = states.ended(claim, Outcome.COMPLETED, started, ended)  # its statement does not wait
        self._locked.append((monotonic() + pause, outcome))
        if before < pause == LOCKED_PAUSE:
            self._log.warning(
                "outcome waits for the job's row, which a transaction holds locked",
                job=claim.name,
                key=claim.key,
                job_id=claim.id,
                attempt=claim.attempt,
            )

    def _again(self, outcome: Fast | Ended) -> None:
        if isinstance(outcome, Ended):
            self._finished.appendleft(outcome)
        else:
            self._completed.appendleft(outcome)

    def _keep_notes(self, notes: list[dict[str, Any]]) -> None:
        """These are not written, or nobody knows: a line may then be there twice, rather than not at all."""
        self._unsaid.update(((note["id"], note["token"]), note) for note in notes)

    # --- rare things ------------------------------------------------------------------------------------

    def _resolve_doubts(
        self, connection: psycopg.Connection[Any], completed: list[Fast], finished: list[Ended]
    ) -> tuple[list[Fast], list[Ended]]:
        """After a lost connection: which outcomes did get written? They are settled here; returns the others.

        Without this a run whose record *was* committed would look as if it had lost its claim.
        """
        outcomes: list[Fast | Ended] = [*completed, *finished] if self._doubts else []
        doubtful = [outcome for outcome in outcomes if self._doubted(_claim(outcome))]
        if not doubtful:
            return completed, finished
        found = self._store.written(connection, [_claim(outcome) for outcome in doubtful])
        # What still has its claim is written now, or was passed over once more: it stays in doubt until it is settled.
        over = {key for key, (recorded, ours) in found.items() if recorded is not None or not ours}
        lost = [
            key
            for outcome in doubtful
            if (key := _key(_claim(outcome))) in over and not _is_written(outcome, found[key][0])
        ]
        self._doubts -= over
        if over:
            self.settle(
                [f for f in completed if _key(f[0]) in over],
                [e for e in finished if _key(e.claim) in over],
                Refused(lost, []),
            )
        return (
            [f for f in completed if _key(f[0]) not in over],
            [e for e in finished if _key(e.claim) not in over],
        )

    def _doubted(self, claim: Claim) -> bool:
        return _key(claim) in self._doubts

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
                except BaseException as error:
                    if is_connection_error(error) or not isinstance(error, Exception):
                        self._finished.appendleft(outcome)
                        self._doubts.add(_key(outcome.claim))
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
        for key, note in list(self._unsaid.items()):
            try:
                answer = self._store.finish(connection, [], [note])
            except Exception as error:
                if is_connection_error(error) or _is_server_trouble(error):
                    raise
                self._log.error("notes refused by the server", job_id=note["id"], error=str(error)[:300])
            else:
                if answer.locked:
                    continue
                self.settle([], [], answer)
            del self._unsaid[key]


def _key(claim: Claim) -> Key:
    return claim.id, claim.token


def _claim(outcome: Fast | Ended) -> Claim:
    return outcome.claim if isinstance(outcome, Ended) else outcome[0]


def _is_written(outcome: Fast | Ended, recorded: str | None) -> bool:
    """Whether a claim is over because of this outcome, given what history says of it."""
    sent = outcome.outcome if isinstance(outcome, Ended) else Outcome.COMPLETED
    if recorded is None:
        return sent is None  # given back, which leaves no line; or lost, and nothing was begun
    # `stalled` is what another node writes that took this one for dead.
    return recorded != Outcome.STALLED or sent is Outcome.STALLED


def _apart(completed: list[Fast]) -> tuple[list[Fast], list[Fast]]:
    """The first outcome of each job, and the others."""
    first: dict[int, Fast] = {}
    twins = [outcome for outcome in completed if first.setdefault(outcome[0].id, outcome) is not outcome]
    return list(first.values()), twins


def _is_server_trouble(error: BaseException) -> bool:
    """True if the server cannot write anything now (disk full, out of memory, read error): the data is not at fault."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state is not None and state[:2] in ("40", "53", "55", "58", "XX")
