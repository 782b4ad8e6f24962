"""What a node did, added up as it commits: batch by batch, a quarter of a microsecond for each job of a big one.

prometheus_client's own counters and histograms take a lock and walk their buckets for each value: 1 µs, several times
for each job.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pgscheduler.states import Claim, Ended, Outcome

from ._table import BUCKETS, OTHER

__all__ = ["FAILURES", "Counts", "Histogram", "Labels"]

FAILURES = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.STALLED)


class Labels:
    """Which names have series of their own. A name that has one keeps it; those beyond the limit share `other`.

    Names that this node runs and names that it only sees in the table have the same limit each, so that whoever
    stores jobs of a thousand names takes nothing from those that matter.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._own: set[str] = set()
        self._seen: set[str] = set()

    def own(self, name: str) -> str:
        return self._label(name, self._own)

    def seen(self, name: str) -> str:
        return name if name in self._own else self._label(name, self._seen)

    def _label(self, name: str, known: set[str]) -> str:
        if name not in known:
            if len(known) >= self._limit:
                return OTHER
            known.add(name)
        return name


class Histogram:
    """How many values fell into each of `BUCKETS`, the last place being for what is beyond, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def observe_all(self, seconds: list[float]) -> None:
        """The same for many, without a step of Python for each: those of one batch mostly fall into one bucket."""
        self.sum += sum(seconds)
        place, last = bisect_left(BUCKETS, min(seconds)), bisect_left(BUCKETS, max(seconds))
        before = 0
        if place < last:
            seconds = sorted(seconds)
        while place < last:
            until = bisect_right(seconds, BUCKETS[place])
            self.counts[place] += until - before
            place, before = place + 1, until
        self.counts[place] += len(seconds) - before

    def add(self, other: Histogram) -> None:
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def copy(self) -> Histogram:
        copied = Histogram()
        copied.add(self)
        return copied

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class JobCounts:
    """The figures of one label."""

    #: Attempts by outcome.
    ran: dict[Outcome, Histogram] = field(default_factory=dict)
    #: `ran[COMPLETED]`, which nearly all are.
    completed: Histogram = field(default_factory=Histogram)
    #: Lines of history without an attempt.
    unstarted: Counter[Outcome] = field(default_factory=Counter)
    lateness: Histogram = field(default_factory=Histogram)

    def __post_init__(self) -> None:
        self.ran[Outcome.COMPLETED] = self.completed

    def of(self, outcome: Outcome) -> Histogram:
        found = self.ran.get(outcome)
        if found is None:
            found = self.ran[outcome] = Histogram()
        return found

    def copy(self) -> JobCounts:
        copied = JobCounts(unstarted=self.unstarted.copy(), lateness=self.lateness.copy())
        for outcome, histogram in self.ran.items():
            copied.of(outcome).add(histogram)
        return copied


class Counts:
    """An `Observer` of one node. Told on the node's threads, read by a scrape's; one lock, held for a batch."""

    def __init__(self, labels: Labels, heartbeat_interval: float) -> None:
        self.labels = labels
        self._interval = heartbeat_interval
        self._lock = threading.Lock()
        self._jobs: dict[str, JobCounts] = {}  # by name; names beyond the limit share one
        self._by_label: dict[str, JobCounts] = {}
        self.resets: Counter[str] = Counter()
        self.orphans = 0
        self.heartbeats = Histogram()
        self._beaten_at: float | None = None

    # --- told by the node -----------------------------------------------------------------------------

    def moved(
        self, claims: list[Claim], completed: list[tuple[Claim, float, float]], finished: list[Ended]
    ) -> None:
        """What one commit moved. Written for speed: this is the only thing that every job pays for."""
        with self._lock:
            if completed:
                took = [ended - started for _, started, ended in completed]
                for name, seconds in _by_name([claim for claim, _, _ in completed], took):
                    self._job(name).completed.observe_all(seconds)
            if claims:
                # Both are the database's time, of one statement: nothing is claimed before it is due.
                late = [claim.lateness for claim in claims]
                for name, seconds in _by_name(claims, late):
                    self._job(name).lateness.observe_all(seconds)
            for move in finished:
                self._finished(move)

    def _finished(self, move: Ended) -> None:
        job = self._job(move.claim.name)
        if move.skipped:
            job.unstarted[Outcome.SKIPPED] += len(move.skipped)
        if move.outcome is None:
            return
        if move.started is None:
            job.unstarted[move.outcome] += 1
        else:
            job.of(move.outcome).observe(move.ended - move.started)

    def skipped(self, claim: Claim, lines: int) -> None:
        """Skipped occurrences that were recorded before the run that came late."""
        with self._lock:
            self._job(claim.name).unstarted[Outcome.SKIPPED] += lines

    def beaten(self, sent: float) -> None:
        """A heartbeat was written; `sent` is when it was sent, in seconds of `elapsed()`."""
        with self._lock:
            before, self._beaten_at = self._beaten_at, sent
            if before is not None:
                self.heartbeats.observe(max(sent - before - self._interval, 0.0))

    def kept(self, chore: str, rows: list[Any]) -> None:
        """What a chore of the maintenance touched."""
        with self._lock:
            if chore == "stalled":
                self.resets.update(self.labels.seen(name) for _, name, *_ in rows)
            elif chore == "orphans":
                self.orphans += len(rows)

    def _job(self, name: str) -> JobCounts:
        job = self._jobs.get(name)
        if job is None:
            job = self._jobs[name] = self._by_label.setdefault(self.labels.own(name), JobCounts())
        return job

    # --- read by a scrape -----------------------------------------------------------------------------

    def jobs(self) -> dict[str, JobCounts]:
        """By label, all of one moment; names that this node could run and has not are there with zeros."""
        with self._lock:
            return {label: job.copy() for label, job in self._by_label.items()}

    def know(self, names: list[str]) -> None:
        """This node has registered these: their series begin at zero, so that a first failure is an increase."""
        with self._lock:
            for name in names:
                self._job(name)

    def rest(self) -> tuple[dict[str, int], int, Histogram]:
        """Resets by label, orphans, the lateness of heartbeats."""
        with self._lock:
            return dict(self.resets), self.orphans, self.heartbeats.copy()


def _by_name(claims: list[Claim], values: list[float]) -> Iterable[tuple[str, list[float]]]:
    """The values of each name; a big batch is mostly of one."""
    names = {claim.name for claim in claims}
    if len(names) == 1:
        return [(names.pop(), values)]
    found: dict[str, list[float]] = {name: [] for name in names}
    for claim, value in zip(claims, values, strict=True):
        found[claim.name].append(value)
    return found.items()
