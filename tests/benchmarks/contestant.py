"""What a contestant of the benchmark is: a library, its settings, and a small program that all of them answer alike.

A contestant is one file in `contestants/` that defines `CONTESTANT`, beside the program that uses the library as its
documentation says (`contestants/<name>/`, in the library's own language). The program is started by the harness with
one verb, reads its settings from the environment, and speaks JSON, one object a line, on standard output. Times are
nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share (Python `time.monotonic_ns()`, Node
`process.hrtime.bigint()`, Java `System.nanoTime()`, Go `unix.ClockGettime(unix.CLOCK_MONOTONIC, …)`). What programs of
one language have in common is in `contestants/_protocol.py` and `contestants/_protocol.mjs`.

Environment: `BENCH_DSN` (a `postgresql://` URL of a database that is its own), `BENCH_SETTING` (the name of one of
its settings), `BENCH_STAMP` (`none`, `each` or `latency`, see `work`).

Every job has the name `bench` and the parameters `{"n": int, "sleep_ms": number, "at": ns}`.

Verbs:

`prepare`
    Creates the library's tables in the empty database and ends.
`enqueue MODE COUNT SLEEP_MS`
    Stores COUNT jobs that are due at once: MODE `bulk` as the library's documentation stores many (its best way),
    MODE `one` with one ordinary call and one commit per job on an open connection. Prints
    `{"enqueued": COUNT, "seconds": s}`; the seconds cover the calls, not the start of the program or the connection.
`produce`
    Prints `{"ready": ns}`; then, for every line `COUNT` that it reads, stores COUNT jobs with the ordinary call (the
    bulk call when COUNT is above 1), `at` being the time just before the call, and prints `{"committed": ns}` when the
    commit has been answered. Ends at the end of its input.
`work`
    Prints `{"ready": ns}` once it looks for jobs, and works until the end of its input (or SIGTERM): then it stops
    as the library's documentation says, prints `{"stopped": ns}`, and ends. A job first reads the clock, then sleeps
    `sleep_ms` (not at all if 0), then counts itself. Every 20 ms, when the count changed, the program prints
    `{"ran": count, "first": ns of the first start}`. With `BENCH_STAMP=each` every job prints `{"start": ns, "n": n}`
    at once. With `BENCH_STAMP=latency` it keeps `start - at` of every job and prints `{"latencies_us": [int, …]}`
    before `stopped`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).parent


class Unavailable(Exception):
    """This contestant cannot run here (no toolchain, registry out of reach); the text says why."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to configure a contestant.

    `says` names what is set, and the page of the library's documentation that gives it; a reader must be able to
    check that the best setting is the one that its authors recommend for speed.
    """

    name: str
    says: str


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A library in the benchmark.

    `settings`: the first is the best that its documentation gives, the one named `default` sets nothing.
    `install` gets an empty or earlier used directory of its own and returns the command that starts the program; it
    is quick when all is there already, and raises `Unavailable` with the reason when the library cannot be had.
    `unfinished`: SQL that answers one boolean, true while a job is not finished; cheap, it is asked every few ms at
    the end of a drain.
    `history`: what is kept of a finished job, in a few words. `skips`: workload → why it has none.
    """

    name: str
    version: str
    language: str
    settings: tuple[Setting, ...]
    history: str
    unfinished: str
    install: Callable[[Path], list[str]]
    skips: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def setting(self, name: str) -> Setting:
        for setting in self.settings:
            if setting.name == name:
                return setting
        raise LookupError(f"{self.name} has no setting {name!r}: {', '.join(s.name for s in self.settings)}")
