"""A history, sorted for its rules: who ran what when, what each call may have changed, who could do what.

Tolerance is made here and nowhere else. It follows from what was recorded about the faults: a process that was
stopped or starved could do nothing, one that was cut off could not reach the database, a database that was away
could be reached by nobody; each needs a stated time to be back.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

from tests.chaos.history import Began, Call, Effect, Ended, History, Life, Row, Run, Told
from tests.chaos.spans import Span, complement, merged, widened

__all__ = ["STORING", "TERMINAL", "View", "same_json", "shown"]

#: Seconds until every loop of every node is back at work after the database is: a loop looks again after at most
#: two, opening a connection may take as long again.
BACK_AFTER_AWAY = 5.0
#: After a partition: a packet that was lost is sent again after up to its own doubled delay, and what waits for it
#: is given up after tcp_user_timeout at the latest.
BACK_AFTER_CUT = 10.0
#: Seconds by which a time of the database, mapped to ours, may be wrong.
CLOCK_ERROR = 0.3
#: Commits that were not waited for reach the disk within three rounds of the WAL writer.
UNFLUSHED = 1.0
#: What was claimed ahead is begun, or given back, within so long.
HOARD = 1.0

STORING = ("schedule", "enqueue")
TERMINAL = ("completed", "failed", "timed_out", "cancelled", "orphaned")
#: The words that stand in `runs` when the database, not the node, found out.
FOUND_SILENT = "no heartbeat since"

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def _by(items: Iterable[V], key: Callable[[V], K], order: Callable[[V], Any]) -> dict[K, list[V]]:
    found: dict[K, list[V]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    for each in found.values():
        each.sort(key=order)
    return dict(found)


class View:
    """Look-ups over one history. Nothing is judged here."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.settings = history.settings
        self.end = history.end
        self.boot = history.boot

    # --- what happened to a job -----------------------------------------------------------------------

    @cached_property
    def begans(self) -> dict[int, list[Began]]:
        """By job, in time."""
        return _by(self.history.begans, lambda b: b.job_id, lambda b: b.at)

    @cached_property
    def began(self) -> dict[str, Began]:
        """By run."""
        return {b.run_id: b for b in self.history.begans}

    @cached_property
    def ended(self) -> dict[str, Ended]:
        return {e.run_id: e for e in self.history.endeds}

    @cached_property
    def tolds(self) -> dict[str, list[Told]]:
        return _by(self.history.tolds, lambda t: t.run_id, lambda t: t.at)

    @cached_property
    def runs(self) -> dict[int, list[Run]]:
        """A job's lines of history in the order in which they were written."""
        return _by(self.history.runs, lambda r: r.job_id, lambda r: (r.finished_at, r.attempt))

    @cached_property
    def run_of(self) -> dict[tuple[int, int], Run]:
        """By job and token."""
        return {(r.job_id, r.token): r for r in reversed(self.history.runs) if r.token is not None}

    @cached_property
    def row(self) -> dict[int, Row]:
        return {row.job_id: row for row in self.history.rows}

    @cached_property
    def effects(self) -> dict[int, list[Effect]]:
        """By job, in the order of their sequence."""
        return _by(self.history.effects, lambda e: e.job_id, lambda e: e.sequence)

    @cached_property
    def committed(self) -> set[str]:
        """The runs whose `ctx.transaction()` left its effect."""
        return {e.run_id for e in self.history.effects if e.kind == "transaction"}

    @cached_property
    def _begans_for(self) -> dict[tuple[int, float], list[Began]]:
        return _by(self.history.begans, lambda b: (b.job_id, b.scheduled_at), lambda b: b.at)

    @cached_property
    def _runs_for(self) -> dict[tuple[int, float], list[Run]]:
        return _by(
            self.history.runs, lambda r: (r.job_id, r.scheduled_at), lambda r: (r.finished_at, r.attempt)
        )

    def begans_for(self, job: int, occurrence: float) -> list[Began]:
        """Of one occurrence of a recurring job; all of a one-time job."""
        return (
            self._begans_for.get((job, occurrence), []) if self.recurring(job) else self.begans.get(job, [])
        )

    def runs_for(self, job: int, occurrence: float) -> list[Run]:
        """The same for the lines of history."""
        return self._runs_for.get((job, occurrence), []) if self.recurring(job) else self.runs.get(job, [])

    @cached_property
    def seen(self) -> set[int]:
        """Every job of which anything was seen."""
        return {*self.runs, *self.row, *self.begans, *self.effects}

    # --- what was asked ---------------------------------------------------------------------------------

    @cached_property
    def stored(self) -> dict[int, list[Call]]:
        """The calls that stored a job and know it, by job."""
        known = [
            c
            for c in self.history.calls
            if c.verb in STORING and c.answer == "ok" and c.committed and c.job_id is not None
        ]
        return _by(known, lambda c: c.job_id or 0, lambda c: c.began)

    @cached_property
    def _nameless(self) -> list[Call]:
        """Stored perhaps, or certainly, but nobody told us as which job."""
        return [
            c
            for c in self.history.calls
            if c.verb in STORING and c.committed and c.job_id is None and c.answer != "failed"
        ]

    @cached_property
    def nameless(self) -> dict[tuple[str, str | None, str], list[Call]]:
        """The same by what they asked for."""
        return _by(self._nameless, self.signature, lambda c: c.began)

    @staticmethod
    def signature(of: Call | Run | Row | Began) -> tuple[str, str | None, str]:
        """By what a job is found when its id is not known."""
        return of.name, of.key, canonical(of.parameters)

    @cached_property
    def _facts(self) -> dict[int, Run | Row | Began]:
        """One line about each job that was seen."""
        found: dict[int, Run | Row | Began] = {b.job_id: b for b in self.history.begans}
        found.update({run.job_id: run for run in self.history.runs})
        found.update({row.job_id: row for row in self.history.rows})
        return found

    def facts(self, job: int) -> Run | Row | Began | None:
        return self._facts.get(job)

    @cached_property
    def _asked(self) -> dict[int, list[Call]]:
        by_id = _by(
            (c for c in self.history.calls if c.job_id is not None and c.committed and c.answer != "failed"),
            lambda c: c.job_id or 0,
            lambda c: c.began,
        )
        by_key = _by(
            (c for c in self.history.calls if c.job_id is None and c.committed and c.answer != "failed"),
            lambda c: (c.name, c.key),
            lambda c: c.began,
        )
        found = {}
        for job in {*by_id, *self.seen}:
            calls = list(by_id.get(job, ()))
            fact = self._facts.get(job)
            name, key = (
                (fact.name, fact.key) if fact else (calls[0].name, calls[0].key) if calls else ("", None)
            )
            if key is not None:
                calls += by_key.get((name, key), ())
            elif job not in self.stored and fact is not None:
                calls += self.nameless.get(self.signature(fact), ())
            found[job] = sorted(calls, key=lambda c: c.began)
        return found

    def asked(self, job: int, *verbs: str) -> list[Call]:
        """All calls that did, or may, concern a job: those that know its id, and the unknown ones of its key."""
        if not verbs:
            return self._asked.get(job, [])
        found = [self._asked_by_verb.get((job, verb), []) for verb in verbs]
        return found[0] if len(found) == 1 else sorted(chain.from_iterable(found), key=lambda c: c.began)

    @cached_property
    def _asked_by_verb(self) -> dict[tuple[int, str], list[Call]]:
        pairs = ((job, call) for job, calls in self._asked.items() for call in calls)
        found = _by(pairs, lambda pair: (pair[0], pair[1].verb), lambda pair: pair[1].began)
        return {key: [call for _, call in each] for key, each in found.items()}

    @cached_property
    def _storing(self) -> dict[int, list[Call]]:
        found: dict[int, list[Call]] = {}
        for job in self._asked:
            calls = found[job] = []
            for call in self.asked(job, *STORING):
                # Each deploy stores the recurring jobs again, unchanged: that says nothing new.
                if not calls or call.schedule is None or _definition(call) != _definition(calls[-1]):
                    calls.append(call)
        return found

    def storing(self, job: int) -> list[Call]:
        """Those that stored it, or may have."""
        return self._storing.get(job, [])

    @cached_property
    def _recurring(self) -> set[int]:
        known = {job for job, calls in self._storing.items() if any(c.schedule is not None for c in calls)}
        return known | {
            r.job_id for r in self.history.runs if r.schedule is not None and not self.storing(r.job_id)
        }

    def recurring(self, job: int) -> bool:
        return job in self._recurring

    def in_effect(self, calls: Iterable[Call], at: float) -> list[Call]:
        """Of calls that each replace what the one before them said: which one may have counted `at`.

        A call whose answer never came may have taken effect at any time since.
        """
        before = [c for c in calls if c.began <= at]
        known = [c for c in before if c.answer == "ok"]
        latest = max((c.began for c in known if c.ended <= at), default=None)
        return [c for c in before if c.answer != "ok" or latest is None or c.ended >= latest]

    # --- when code ran ----------------------------------------------------------------------------------

    @cached_property
    def lives(self) -> dict[str, Life]:
        return {life.process: life for life in self.history.lives}

    @cached_property
    def life_of_node(self) -> dict[str, Life]:
        return {life.node: life for life in self.history.lives if life.node is not None}

    def death(self, process: str) -> float:
        """When a process ended; the end of the history if it did not."""
        life = self.lives.get(process)
        return self.end.rows_read if life is None or life.ended is None else life.ended

    @cached_property
    def begans_of(self) -> dict[str, list[Began]]:
        """By process, in time."""
        return _by(self.history.begans, lambda b: b.process, lambda b: b.at)

    @cached_property
    def held_by(self) -> dict[str | None, list[tuple[float, int]]]:
        """By node: when a snapshot saw which job running for it."""
        seen = ((h.node, s.began, h.job_id) for s in self.history.snapshots for h in s.held)
        found = _by(seen, lambda each: each[0], lambda each: each[1])
        return {node: [(at, job) for _, at, job in each] for node, each in found.items()}

    def started(self, began: Began) -> float:
        """When a run was begun, by its node's word: a process of its own may take seconds until its first line."""
        run = self.run_of.get((began.job_id, began.token))
        if run is None or run.started_at is None:
            return began.at
        return min(began.at, self.boot(run.started_at) + CLOCK_ERROR)

    def ran_until(self, began: Began) -> float:
        """The last instant at which a run's code is known to have gone on.

        Its own last line says so. Without one it ended with its process: a thread cannot be killed. A process of
        its own can, at any time, so of that only what it wrote is known; had it been spared, it had written more.
        """
        ended = self.ended.get(began.run_id)
        if ended is not None:
            return ended.at
        if began.isolation == "process":
            return max([began.at, *(t.at for t in self.tolds.get(began.run_id, ()))])
        return self.death(began.process)

    # --- who could do what ------------------------------------------------------------------------------

    @cached_property
    def aways(self) -> list[Span]:
        """Nobody was at work on the database: it was away, or its users were not back yet."""
        return widened(((a.began, a.ended) for a in self.history.aways), BACK_AFTER_AWAY)

    @cached_property
    def _frozen(self) -> dict[str, list[Span]]:
        return {life.process: merged([*life.stopped, *life.starved]) for life in self.history.lives}

    def frozen(self, process: str) -> list[Span]:
        """When a process could do nothing at all."""
        return self._frozen.get(process, [])

    def asleep(self, began: Began) -> bool:
        """Whether a process was put to sleep on its way into a run, after the last look at its claim, and woke in it
        when the claim was gone. No code can prevent that."""
        run = self.run_of.get((began.job_id, began.token))
        if run is None or run.outcome != "stalled":
            return False
        gone = self.boot(run.finished_at)
        return any(
            low <= gone and low <= began.at <= high + CLOCK_ERROR for low, high in self.frozen(began.process)
        )

    @cached_property
    def _speechless(self) -> dict[str, list[Span]]:
        return {
            life.process: merged(
                [*self._frozen[life.process], *widened(life.cut_off, BACK_AFTER_CUT), *self.aways]
            )
            for life in self.history.lives
        }

    def speechless(self, process: str) -> list[Span]:
        """When a process could not be counted on to say anything to the database."""
        return self._speechless.get(process, self.aways)

    def silent(self, process: str, at: float) -> bool:
        """Whether a process had a reason to be taken for dead at this time: speechless for long enough before."""
        settings = self.settings
        timeout, interval = settings.no_heartbeat_timeout, settings.heartbeat_interval
        needed = max(timeout - interval - settings.allowance, interval)
        since = at - timeout * 1.25 - interval - settings.allowance
        spans = self.speechless(process)
        return sum(max(min(high, at) - max(low, since), 0.0) for low, high in spans) >= needed

    @cached_property
    def unattended(self) -> list[Span]:
        """When no node was there to find out that another had died, or the database was not there to tell it."""
        last = max([self.end.rows_read, *(a.ended for a in self.history.aways)]) + 1e6
        attended: list[Span] = []
        for life in self.history.lives:
            if life.ready is None:
                continue
            ended = min(x for x in (life.asked_to_stop, life.ended, last) if x is not None)
            attended += complement(self.speechless(life.process), life.ready, ended)
        nobody = complement(merged(attended), float("-inf"), last)
        return merged([*nobody, *self.aways])

    def forgotten(self, began: Began) -> float | None:
        """When a crash of the database may have made it forget this claim; None: no crash did."""
        frozen = sum(high - low for low, high in self.frozen(began.process) if low < began.at < high + HOARD)
        for away in self.history.aways:
            # Claimed before the crash, by so little that the commit was not on the disk yet; begun at any time after.
            claimed_after = began.at - HOARD - self.settings.allowance - frozen
            if away.crashed and claimed_after <= away.began <= began.at + UNFLUSHED + self.settings.allowance:
                return away.began
        return None


def _definition(call: Call) -> Any:
    """What a call says of a job, and whether it is known to have said it."""
    one_call = {"client": "", "began": 0.0, "ended": 0.0, "value": None, "run_at": None, "scheduled_at": None}
    return dataclasses.replace(call, job_id=None, error=None, **one_call)


def canonical(value: Any) -> str:
    """One text for equal JSON; None is the same as no parameters."""
    return json.dumps({} if value is None else value, sort_keys=True, separators=(",", ":"))


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0, but true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other
    return type(one) is type(other) and one == other


def shown(of: Began | Run | Row | Call) -> str:
    """A job in words."""
    key = "" if of.key is None else f"/{of.key}"
    return f"job {of.job_id} ({of.name}{key})"


def occurrences_of(job_runs: Iterable[Run]) -> Iterator[tuple[float, list[Run]]]:
    """A job's lines by occurrence, each in the order in which they were written."""
    found = _by(job_runs, lambda r: r.scheduled_at, lambda r: (r.finished_at, r.attempt))
    yield from sorted(found.items())
