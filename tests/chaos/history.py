"""What was observed in one run: plain frozen records, one per line of a JSON-lines file.

Two clocks. A field whose comment says nothing is seconds of `boottime()`, the one clock of the machine that no
fault touches. A field marked *database* is seconds since 1970 by the database's clock, as `epoch()` makes them;
`History.boot()` maps it, by the pairs that were sampled. `scheduled_at` is such a time, and the occurrence's name:
it compares equal between a job's own lines, its effects and the database's rows.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

__all__ = [
    "Away",
    "Began",
    "Call",
    "Clock",
    "Effect",
    "End",
    "Ended",
    "Fault",
    "Held",
    "History",
    "Life",
    "Record",
    "Row",
    "Run",
    "Settings",
    "Snapshot",
    "Told",
    "append",
    "boottime",
    "epoch",
    "read",
]

Span = tuple[float, float]


def boottime() -> float:
    """Now. It goes on while a process is stopped, and nobody can set it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def epoch(at: datetime) -> float:
    """An aware time as *database* seconds, rounded to the microsecond that PostgreSQL keeps."""
    return round(at.timestamp(), 6)


class Record:
    """A line of the history."""


@dataclass(frozen=True, kw_only=True)
class Settings(Record):
    """What every node was started with, in seconds. Exactly one per history."""

    heartbeat_interval: float
    no_heartbeat_timeout: float
    job_check_interval: float
    shutdown_timeout: float
    max_concurrent_jobs: int
    seed: int
    nodes: int = 1
    faults: tuple[str, ...] = ()
    plant: str | None = None  # the bug that was planted on purpose
    settle: float = 60.0  # all due work is done so long after the last fault
    #: What a loaded machine may add to any bound: scheduling of threads, a slow commit.
    allowance: float = 1.5


@dataclass(frozen=True, kw_only=True)
class Call(Record):
    """One call of a client. What `schedule` or `enqueue` was given stands in the fields after `value`."""

    #: schedule, enqueue, cancel, pause, resume, reschedule, trigger, delete
    verb: str
    client: str
    began: float
    ended: float
    #: ok: it returned. failed: it raised, and nothing was changed. unknown: the connection broke in the middle.
    answer: Literal["ok", "failed", "unknown"]
    job_id: int | None  # None: not known (failed, unknown)
    name: str
    key: str | None = None
    value: Any = None  # what it returned, where that is not a record: JSON
    error: str | None = None  # class and text of what it raised
    #: False: it ran in a transaction of the caller's that was rolled back afterwards: as if never called.
    committed: bool = True
    parameters: Any = None  # None is the same as {}
    #: As a row stores it: {"every": seconds} or {"cron": …, "timezone": …}; None: one-time.
    schedule: Mapping[str, Any] | None = None
    #: *database*; as the call's record answered it, or as it was asked for. None: at once.
    run_at: float | None = None
    #: *database*; the record's scheduled_at, where the call answered one.
    scheduled_at: float | None = None
    retries: int = 0
    max_stalls: int = 3
    timeout: float | None = None
    misfire: str = "run_once"
    misfire_grace: float = 60.0
    catchup: int = 100
    jitter: float = 0.0
    expires_in: float | None = None


@dataclass(frozen=True, kw_only=True)
class Began(Record):
    """A job's code begins; written by that code itself as its first act, to its process's file."""

    at: float
    process: str  # the Life's name, also when a child of it runs the code
    node: str  # ctx.node
    job_id: int
    name: str
    key: str | None
    run_id: str
    token: int
    attempt: int
    scheduled_at: float  # *database*
    parameters: Any
    isolation: str = "thread"
    pid: int = 0  # of the process that wrote this: not the node's for isolation="process"
    looks: bool = True  # it asks at least every 50 ms whether it should stop, and writes `Told`; a stubborn one does not


@dataclass(frozen=True, kw_only=True)
class Told(Record):
    """The code saw for the first time that it should stop. Written by code that looks at least every 50 ms."""

    at: float
    process: str
    job_id: int
    run_id: str
    token: int
    reason: str  # cancelled, timeout, shutdown, lost


@dataclass(frozen=True, kw_only=True)
class Ended(Record):
    """The code ends; its last act. A run without one was killed, or never ended."""

    at: float
    process: str
    job_id: int
    run_id: str
    token: int
    #: returned, raised (an error of its own), stopped (JobCancelled), lost (RunLostError), or the signal that it
    #: raised: retry, snooze, cancel, fail.
    how: str
    #: ctx.transaction() was left: "committed", "lost", "unknown" (the connection broke); None: not used.
    transaction: str | None = None
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class Effect(Record):
    """A row that a job inserted in the database; only what was committed is here."""

    #: transaction: inside ctx.transaction(). fenced: after assert_owner in the same transaction, as its next
    #: statement. free: neither.
    kind: Literal["transaction", "fenced", "free"]
    sequence: int  # from a sequence, taken by the insert
    at: float  # *database*: clock_timestamp() in the insert
    job_id: int
    run_id: str
    token: int
    scheduled_at: float  # *database*


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """A row of the runs table, read at the end."""

    job_id: int
    name: str
    key: str | None
    token: int | None
    node: str | None
    attempt: int
    outcome: str
    scheduled_at: float  # *database*
    started_at: float | None  # *database*
    finished_at: float  # *database*
    parameters: Any = None
    schedule: Mapping[str, Any] | None = None
    reason: str | None = None
    error: str | None = None  # its beginning is enough
    result: Any = None  # of a line that stands for several skipped ones: {"from": iso, "before": iso}


@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """A row of the jobs table, read at the end."""

    job_id: int
    name: str
    key: str | None
    state: str
    run_at: float  # *database*
    scheduled_at: float  # *database*
    created_at: float  # *database*
    token: int | None = None
    node: str | None = None
    claimed_at: float | None = None  # *database*
    heartbeat_at: float | None = None  # *database*
    failures: int = 0
    stalls: int = 0
    cancel_requested: bool = False
    after_run: str | None = None
    completed_at: float | None = None  # *database*
    schedule: Mapping[str, Any] | None = None
    parameters: Any = None


@dataclass(frozen=True, kw_only=True)
class Held:
    """A running row in a snapshot."""

    job_id: int
    token: int
    node: str | None
    claimed_at: float  # *database*
    heartbeat_at: float | None = None  # *database*
    failures: int = 0
    stalls: int = 0


@dataclass(frozen=True, kw_only=True)
class Snapshot(Record):
    """All running rows at one instant between `began` and `ended`."""

    began: float
    ended: float
    held: tuple[Held, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Life(Record):
    """One process of a node. Written when it is over, or at the end."""

    process: str
    node: str | None = None  # the Scheduler's id; None: it died before it said so
    pid: int = 0
    started: float = 0.0
    ready: float | None = None  # start() had returned
    asked_to_stop: float | None = None  # SIGTERM
    left: float | None = None  # its own last word: nothing but the end of the process is to come
    ended: float | None = (
        None  # as its parent saw it, which is later; None: still alive when the rows were read
    )
    exit_code: int | None = None  # -9: killed
    clean: bool | None = None  # what shutdown() returned
    stopped: tuple[Span, ...] = ()  # SIGSTOP to SIGCONT
    cut_off: tuple[Span, ...] = ()  # from the database only: proxy or partition
    starved: tuple[Span, ...] = ()  # somebody held the GIL
    skew: float = 0.0  # what was added to its wall clock


@dataclass(frozen=True, kw_only=True)
class Fault(Record):
    """One thing that the nemesis did. What a rule forgives follows from `Life` and `Away`, not from this."""

    kind: str
    began: float
    ended: float
    what: str  # the process, or "database"


@dataclass(frozen=True, kw_only=True)
class Away(Record):
    """An interval in which the database answered nobody: from the blow until it answered again."""

    began: float
    ended: float
    kind: str = "restart"  # restart, crash, stopped, …
    #: Commits that were not waited for may be gone (claims and heartbeats are such): a crash, not a clean restart.
    crashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Clock(Record):
    """The database's clock and ours, sampled together; more than one, all over the run."""

    database: float
    boottime: float


@dataclass(frozen=True, kw_only=True)
class End(Record):
    """How the run came to its end. Exactly one per history."""

    faults_over: (
        float  # the last fault had ended, every node that should live did, clients scheduled nothing more
    )
    rows_read: float  # when runs, rows and effects were read (in one snapshot, so far as the three fit)


_KINDS: dict[str, type[Record]] = {kind.__name__: kind for kind in Record.__subclasses__()}


def dump(record: Record) -> str:
    """One line, without its end."""
    found = {"is": type(record).__name__, **asdict(record)}  # type: ignore[call-overload]
    return json.dumps(found, separators=(",", ":"), ensure_ascii=True)


def load(line: str) -> Record:
    """The record of one line."""
    found = json.loads(line)
    kind = _KINDS[found.pop("is")]
    if kind is Snapshot:
        found["held"] = tuple(Held(**held) for held in found["held"])
    elif kind is Life:
        for name in ("stopped", "cut_off", "starved"):
            found[name] = tuple((began, ended) for began, ended in found[name])
    elif kind is Settings:
        found["faults"] = tuple(found["faults"])
    return kind(**found)


def append(file: int | Path, record: Record) -> None:
    """Add a line in one write: to a descriptor opened with O_APPEND, or to a path."""
    data = dump(record).encode() + b"\n"
    if isinstance(file, int):
        os.write(file, data)
        return
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[Record]:
    """The records of a file. A last line without its end was being written when its process was killed."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and line.strip():
            yield load(line)


@dataclass(frozen=True)
class History:
    """Everything that was observed, by kind, in no particular order."""

    settings: Settings
    end: End
    calls: tuple[Call, ...] = ()
    begans: tuple[Began, ...] = ()
    tolds: tuple[Told, ...] = ()
    endeds: tuple[Ended, ...] = ()
    effects: tuple[Effect, ...] = ()
    runs: tuple[Run, ...] = ()
    rows: tuple[Row, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    lives: tuple[Life, ...] = ()
    faults: tuple[Fault, ...] = ()
    aways: tuple[Away, ...] = ()
    clocks: tuple[Clock, ...] = field(default=())

    _LISTS: ClassVar[dict[type[Record], str]] = {
        Call: "calls",
        Began: "begans",
        Told: "tolds",
        Ended: "endeds",
        Effect: "effects",
        Run: "runs",
        Row: "rows",
        Snapshot: "snapshots",
        Life: "lives",
        Fault: "faults",
        Away: "aways",
        Clock: "clocks",
    }

    @classmethod
    def of(cls, records: Iterable[Record]) -> History:
        """From loose records, of any order."""
        found: dict[str, list[Record]] = {name: [] for name in cls._LISTS.values()}
        single: dict[type[Record], Record] = {}
        for record in records:
            name = cls._LISTS.get(type(record))
            if name is not None:
                found[name].append(record)
            elif single.setdefault(type(record), record) is not record:
                raise ValueError(f"a history has one {type(record).__name__}, this one has two")
        lists: dict[str, Any] = {name: tuple(each) for name, each in found.items()}
        settings, end = single[Settings], single[End]
        assert isinstance(settings, Settings)
        assert isinstance(end, End)
        return cls(settings, end, **lists)

    @classmethod
    def load(cls, *paths: Path) -> History:
        """From one saved file, or from the files of all who wrote."""
        return cls.of(record for path in paths for record in read(path))

    def save(self, path: Path) -> None:
        """All of it to one file."""
        with path.open("w", encoding="utf-8") as file:
            for record in self:
                file.write(dump(record) + "\n")

    def __iter__(self) -> Iterator[Record]:
        for item in fields(self):
            value = getattr(self, item.name)
            yield from value if isinstance(value, tuple) else (value,)

    @cached_property
    def _pairs(self) -> tuple[list[float], list[float]]:
        pairs = sorted((c.database, c.boottime - c.database) for c in self.clocks)
        return [database for database, _ in pairs], [offset for _, offset in pairs]

    def boot(self, database: float) -> float:
        """A *database* time as boottime: by the sampled pair that is nearest."""
        times, offsets = self._pairs
        if not times:
            raise ValueError("a history without a Clock cannot place the database's times")
        index = bisect_left(times, database)
        if index == len(times) or (index > 0 and database - times[index - 1] <= times[index] - database):
            index -= 1
        return database + offsets[index]
